"""What mechanisms are found to do, and what a wrapped private key is recognised as."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.keywrap import aes_key_wrap, aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pkcs11 import Attribute, ObjectClass

from appliance.domain import derivation
from appliance.errors import ApplianceError, Reason
from appliance.hsm.check import mechanisms
from appliance.hsm.check.bench import Bench
from appliance.hsm.check.conflicts import unwrapped_by_blocks, wrapped_by_blocks
from appliance.hsm.check.counter_kdf import Kdf3Parameter
from appliance.hsm.check.finding import Status, Verdict
from appliance.hsm.check.mechanisms import Behaviour, behaviours, examine
from appliance.hsm.check.wrapped import recognise
from tests.hsm.site import Site, profile

KEY = bytes(range(32))
P256 = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
PKCS8, TRADITIONAL = PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL


def der(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, form: PrivateFormat = PKCS8) -> bytes:
    return key.private_bytes(Encoding.DER, form, NoEncryption())


def spki(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def kwp(payload: bytes) -> bytes:
    return aes_key_wrap_with_padding(KEY, payload)


def kw(payload: bytes) -> bytes:
    return aes_key_wrap(KEY, payload)


def cbc(payload: bytes) -> bytes:
    return Cipher(algorithms.AES(KEY), modes.CBC(bytes(16))).encryptor().update(payload)


def filled(payload: bytes, size: int) -> bytes:
    """With PKCS#7 padding."""
    count = size - len(payload) % size
    return payload + bytes([count]) * count


def test_what_softhsm_does_is_found(site: Site) -> None:
    looked = {}
    with site.session() as session:
        for behaviour in behaviours([profile("some", key_types=("EC_P256",))]):
            if "RSA" in behaviour.part:
                continue
            if session.broken:
                session.renew()
            looked[behaviour.name, behaviour.part] = examine(session, behaviour)
        session.renew()
        assert site.session_objects() == 0
    right = {place for place, finding in looked.items() if finding.verdict is Verdict.RIGHT}
    absent = {place for place, finding in looked.items() if finding.verdict is Verdict.NOT_OFFERED}
    assert absent == {
        ("SP800_108_COUNTER_KDF (3AC)", ""),
        ("AES_KEY_WRAP_KWP (210B)", "EC_P256"),
        ("AES_KEY_WRAP_KWP (210B)", "EC_P384"),
    }
    assert set(looked) - right - absent == {("AES_KEY_WRAP (2109)", "EC_P256"), ("AES_KEY_WRAP (2109)", "EC_P384")}
    told = looked["AES_KEY_WRAP_PAD (210A)", "EC_P256"].found
    assert told == "RFC 5649 over PKCS#8, 5 zero bytes behind it, public key not inside; 80 bytes"
    assert looked["suite 01", ""].found == "runs; wraps by AES_KEY_WRAP_PAD (210A)"
    assert {finding.demands for finding in looked.values()} == {Status.FIT}


def test_a_needed_mechanism_that_is_missing_is_wrong_and_another_is_not(site: Site) -> None:
    def missing(_bench: Bench) -> tuple[Verdict, str]:
        raise ApplianceError(Reason.MECHANISM_MISSING, "CKM_X cannot be used.", hint="x")

    with site.session() as session:
        needed = examine(session, Behaviour("X", "", missing, needed=True))
        other = examine(session, Behaviour("X", "", missing))
    assert (needed.verdict, needed.demands) == (Verdict.WRONG, Status.UNFIT)
    assert (other.verdict, other.demands) == (Verdict.NOT_OFFERED, Status.FIT)
    assert needed.found == "CKM_X cannot be used."


def test_a_key_that_reads_back_otherwise_is_wrong_unless_nobody_needs_its_type(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mechanisms, "differences", lambda *_, **__: {Attribute.EXTRACTABLE: (True, False)})
    told = {}
    with site.session() as session:
        for behaviour in behaviours([profile("some", key_types=("EC_P256",))]):
            if behaviour.name in {"key pair", "derived key"} and "RSA" not in behaviour.part:
                finding = examine(session, behaviour)
                told[behaviour.part] = (finding.verdict, finding.demands)
                assert finding.found == "EXTRACTABLE: true | false"
    wrong = (Verdict.WRONG, Status.UNFIT)
    assert told == {
        "EC_P256": wrong,
        "EC_P384": (Verdict.NOTED, Status.FIT),
        "K_SIM": wrong,
        "K_PKG": wrong,
        "K_AUTH": wrong,
    }


def test_key_types_are_needed_where_a_profile_certifies_them() -> None:
    def needed(*key_types: str) -> set[str]:
        found = behaviours([profile("some", key_types=key_types)] if key_types else [])
        return {behaviour.part for behaviour in found if behaviour.needed} - {""}

    assert needed("RSA_2048") == {"RSA_2048"}
    assert needed("RSA_2048", "EC_P384") == {"RSA_2048", "EC_P384"}
    assert needed() == set()


@pytest.mark.parametrize(
    ("wrapped", "key", "told"),
    [
        (kwp(der(P256)), P256, "RFC 5649 over PKCS#8, 0 zero bytes behind it, public key inside"),
        (kwp(der(P256) + bytes(7)), P256, "RFC 5649 over PKCS#8, 7 zero bytes behind it, public key inside"),
        (kwp(der(P256, TRADITIONAL)), P256, "RFC 5649 over ECPrivateKey, 0 zero bytes behind it, public key inside"),
        (kw(filled(der(P256), 8)), P256, "RFC 3394 over PKCS#8, 060606060606 behind it, public key inside"),
        (cbc(filled(der(P256), 16)), P256, "AES-CBC over PKCS#8, 060606060606 behind it, public key inside"),
        (kwp(der(RSA)), RSA, "RFC 5649 over PKCS#8, 0 zero bytes behind it"),
        (kwp(der(RSA, TRADITIONAL)), RSA, "RFC 5649 over RSAPrivateKey, 0 zero bytes behind it"),
    ],
)  # fmt: skip
def test_a_wrapped_key_is_recognised(
    wrapped: bytes, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, told: str
) -> None:
    assert str(recognise(KEY, wrapped, spki(key))) == told


@pytest.mark.parametrize(
    ("payload", "serves"),
    [
        (der(P256), True),
        (der(P256) + bytes(7), True),
        (der(P256) + bytes(8), False),
        (der(P256) + b"\x01", False),
        (der(P256, TRADITIONAL), False),
    ],
)
def test_suite_01_takes_pkcs8_and_a_few_zero_bytes(payload: bytes, serves: bool) -> None:
    found = recognise(KEY, kwp(payload), spki(P256))
    assert found is not None
    assert found.serves_suite_01 is serves


@pytest.mark.parametrize(
    "wrapped", [b"", bytes(80), kwp(b"no key"), kwp(der(RSA))], ids=["nothing", "zeros", "text", "RSA"]
)
def test_what_is_not_this_key_is_not_recognised(wrapped: bytes) -> None:
    assert recognise(KEY, wrapped, spki(P256)) is None


def test_key_wrap_by_single_blocks_is_rfc_3394() -> None:
    cipher = Cipher(algorithms.AES(KEY), modes.ECB())  # noqa: S305 - RFC 3394's block cipher
    wrapped = wrapped_by_blocks(der(RSA)[:64], b"\xa6" * 8, cipher.encryptor().update)
    assert wrapped == kw(der(RSA)[:64])
    assert unwrapped_by_blocks(wrapped, cipher.decryptor().update) == der(RSA)[:64]


def test_the_counter_kdfs_parameter_points_at_the_rest_of_a_kdf3_block() -> None:
    parameter = Kdf3Parameter(derivation.K_SIM, bytes(10))
    block = derivation.kdf3_blocks(derivation.K_SIM, bytes(10), 256)[0]
    assert bytes(parameter._rest) == block[1:]
    assert len(bytes(parameter)) == 5 * 8


def test_difference_is_told_as_found_and_expected() -> None:
    wrong = {Attribute.EXTRACTABLE: (True, False), Attribute.CLASS: (None, ObjectClass.SECRET_KEY)}
    assert mechanisms.difference_text(wrong) == "EXTRACTABLE: true | false; CLASS: not told | secret_key"
