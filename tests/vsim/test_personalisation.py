"""The bureau's side: key diversification, ICCIDs, the masters file."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from appliance.vsim import iccid
from appliance.vsim.kdf import kdf3, scp03_kdf
from appliance.vsim.personalisation import Masters

from .packages import KM_CHAN, P256, P384, RSA, case, octets, personalisation

KDF = json.loads((Path(__file__).parents[1] / "vectors" / "kdf.json").read_text())


def kcv(key: bytes) -> str:
    """GPC B.6: AES over 16 bytes 01, the first three bytes."""
    return Cipher(AES(key), CBC(bytes(16))).encryptor().update(b"\x01" * 16)[:3].hex()


@pytest.mark.parametrize("vector", KDF["scp03_kdf"]["cases"])
def test_scp03_kdf_gives_the_published_answers(vector: dict[str, str | int]) -> None:
    key, context = bytes.fromhex(str(vector["key"])), bytes.fromhex(str(vector["context"]))
    assert scp03_kdf(key, int(vector["constant"]), context, int(vector["bits"])).hex() == vector["out"]


def test_kdf3_gives_globalplatformpros_keys() -> None:
    short, long = KDF["kdf3"]["cases"]
    master, kdd = bytes.fromhex(short["master"]), bytes.fromhex(short["kdd"])
    derived = {name: kcv(kdf3(master, constant, kdd, 128)) for constant, name in enumerate(("enc", "mac", "dek"), 1)}
    assert derived == short["kcv"]
    assert kdf3(bytes.fromhex(long["master"]), 1, bytes.fromhex(long["kdd"]), 256).hex() == long["enc"]


@pytest.mark.parametrize("index", [P256, RSA, P384])
def test_binding_keys_of_a_sim_are_those_of_the_vectors(index: int) -> None:
    binding = asdict(personalisation(index).binding)
    assert {name: binding[name].hex() for name in ("k_sim", "k_auth", "k_rcpt")} == {
        name: case(index)[name] for name in ("k_sim", "k_auth", "k_rcpt")
    }


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_channel_keys_follow_the_channels_own_diversification_data(bits: int) -> None:
    masters = Masters(octets(P256, "km_bind"), KM_CHAN, kvn=0x30, channel_kvn=0x21, channel_key_bits=bits)
    own = masters.personalise(octets(P256, "kdd"), bytes(10))
    assert own.channel.k_mac == kdf3(KM_CHAN, 2, bytes(10), bits)
    assert (own.channel.kdd, own.channel.kvn, own.binding.kvn) == (bytes(10), 0x21, 0x30)
    assert own.binding == masters.personalise(octets(P256, "kdd")).binding


def test_no_key_shows_in_a_repr() -> None:
    sim = personalisation(RSA)
    masters = Masters(octets(RSA, "km_bind"), KM_CHAN, kvn=1)
    text = repr(sim) + repr(masters)
    secrets = [*asdict(sim.binding).values(), *asdict(sim.channel).values(), masters.km_bind, masters.km_chan]
    for secret in secrets:
        if isinstance(secret, bytes) and secret != sim.channel.kdd:
            assert repr(secret) not in text
            assert secret.hex() not in text


@pytest.mark.parametrize("index", [P256, RSA, P384])
def test_iccid_is_coded_as_in_ef_iccid(index: int) -> None:
    digits = case(index)["iccid_digits"]
    assert iccid.encode(digits).hex() == case(index)["kdd"]
    assert iccid.decode(iccid.encode(digits)) == digits


def test_twenty_digits_fill_the_coding() -> None:
    digits = "8981309114170753642" + str(iccid.luhn("8981309114170753642"))
    assert iccid.decode(iccid.encode(digits)) == digits


@pytest.mark.parametrize("digits", ["8981309114170753645", "898130911417075364", "89813091141707536ab", ""])
def test_wrong_iccid_is_refused(digits: str) -> None:
    with pytest.raises(ValueError, match="ICCID"):
        iccid.encode(digits)


GOOD = f'km_bind = "{"00" * 32}"\nkm_chan = "{"11" * 32}"\nkvn = 0x30\n'


def test_masters_file_takes_every_option(tmp_path: Path) -> None:
    file = tmp_path / "masters.toml"
    file.write_text(GOOD + 'channel_kvn = 2\nchannel_key_bits = 256\nchannel_i = 0x71\nssd_aid = "A000000151"\n')
    sim = Masters.load(file).personalise(octets(P256, "kdd"))
    assert (sim.channel.kvn, sim.channel.i, len(sim.channel.k_enc), sim.ssd_aid.hex()) == (2, 0x71, 32, "a000000151")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "colour = 1\n", "unknown key colour"),
        (GOOD.replace("kvn = 0x30", ""), "missing kvn"),
        (GOOD.replace('"' + "00" * 32 + '"', '"0x"'), "km_bind is not a string"),
        (GOOD.replace("0x30", '"30"'), "kvn is not an integer"),
        (GOOD.replace("11", "00"), "never equal"),
        (GOOD + "channel_key_bits = 64\n", "128"),
        ("km_bind", "not a TOML file"),
    ],
)
def test_wrong_masters_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "masters.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"masters\.toml: .*{message}"):
        Masters.load(file)


@pytest.mark.parametrize(
    "options", [{"kvn": 0}, {"kvn": 0x80}, {"kvn": 1, "channel_i": 0x60}, {"kvn": 1, "ssd_aid": b"1"}]
)
def test_sim_that_cannot_be_is_not_made(options: dict[str, int]) -> None:
    masters = Masters(bytes(32), KM_CHAN, **options)  # type: ignore[arg-type]  # one case has bytes
    with pytest.raises(ValueError, match=r"KVN|i parameter|AIDs"):
        masters.personalise(octets(P256, "kdd"))
