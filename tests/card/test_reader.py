"""A virtual SIM in a real PC/SC reader: Debian's scriptor and OpenSC are its terminals."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import FileMemory, State
from tests.card.stack import CardStack, StackError
from tests.vsim.host import delivery_script
from tests.vsim.packages import P256, RSA, case, octets, personalisation

PIN = "1234"


def sim_in(file: Path, index: int, *, ready: bool) -> VirtualSim:
    """A SIM in a state file; `ready` with the package of the vectors and a PIN."""
    sim = VirtualSim(FileMemory.create(file, State(personalisation(index))))
    if ready:
        sim.install(octets(index, "package"))
        code = case(index)["activation_code"].encode()
        body = bytes([len(code)]) + code + PIN.encode()
        set_pin = b"\x00\x24\x00\x80" + bytes([len(body)]) + body
        for apdu in (bytes.fromhex("00A4040C0AD392F000260100000001"), bytes.fromhex("00A4020C020018"), set_pin):
            assert sim.transmit(apdu) == b"\x90\x00"
    return sim


@pytest.fixture
def rsa_card(tmp_path: Path) -> Iterator[CardStack]:
    sim_in(tmp_path / "sim.json", RSA, ready=True)
    with CardStack(tmp_path / "sim.json", tmp_path) as card:
        yield card


def test_opensc_logs_in_and_signs_and_openssl_verifies(rsa_card: CardStack, tmp_path: Path) -> None:
    (tmp_path / "message").write_bytes(b"message")
    signed = rsa_card.pkcs11(
        *("--login", "--pin", PIN, "--sign", "--mechanism", "SHA256-RSA-PKCS", "--id", "01"),
        *("-i", "message", "-o", "signature"),
    )
    assert signed.returncode == 0, signed.stderr
    key = x509.load_der_x509_certificate(octets(RSA, "certificate")).public_key()
    (tmp_path / "key.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    verified = rsa_card.run("openssl", "dgst", "-sha256", "-verify", "key.pem", "-signature", "signature", "message")
    assert verified.stdout == "Verified OK\n", verified.stderr


def test_opensc_reads_the_certificate_and_recognises_the_card(rsa_card: CardStack, tmp_path: Path) -> None:
    name = rsa_card.run("opensc-tool", "--name")
    assert name.stdout.strip() == "jpki", name.stderr
    read = rsa_card.pkcs11("--read-object", "--type", "cert", "--id", "01", "-o", "certificate")
    assert read.returncode == 0, read.stderr
    assert (tmp_path / "certificate").read_bytes() == octets(RSA, "certificate")


def test_opensc_with_a_wrong_pin_costs_one_try(rsa_card: CardStack, tmp_path: Path) -> None:
    (tmp_path / "message").write_bytes(b"message")
    refused = rsa_card.pkcs11(
        *("--login", "--pin", "9999", "--sign", "--mechanism", "SHA256-RSA-PKCS", "--id", "01"),
        *("-i", "message", "-o", "signature"),
    )
    assert refused.returncode != 0
    assert "CKR_PIN_INCORRECT" in refused.stderr
    rsa_card.close()
    assert VirtualSim.load(tmp_path / "sim.json").state.pin_tries == 2


def test_scriptor_delivers_a_package_and_reads_the_receipt(tmp_path: Path) -> None:
    sim = sim_in(tmp_path / "sim.json", P256, ready=False)
    script = delivery_script(sim, octets(P256, "package"))
    (tmp_path / "script.txt").write_text("".join(f"{apdu.hex().upper()}\n" for apdu in script))
    with CardStack(tmp_path / "sim.json", tmp_path) as card:
        played = card.run("scriptor", "script.txt")
        assert played.returncode == 0, played.stderr
        assert played.stdout.count(": Normal processing.") == len(script), played.stdout
        again = card.run("scriptor", "script.txt")
        assert "63 00" in again.stdout
    state = VirtualSim.load(tmp_path / "sim.json").state
    assert state.installed is not None
    assert state.sequence_counter == 2
    answer = "".join(played.stdout.split("> 80 CA DF 21 00")[1].split(":")[0].split())
    assert answer == f"<{(state.installed.receipt + bytes.fromhex('9000')).hex().upper()}"


def test_two_stacks_stand_side_by_side(rsa_card: CardStack, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    sim_in(other / "sim.json", P256, ready=False)
    (other / "iccid.txt").write_text("00A4000C023F00\n00A4000C022FE2\n00B000000A\n")
    with CardStack(other / "sim.json", other) as second:
        answer = second.run("scriptor", "iccid.txt").stdout
        assert octets(P256, "kdd").hex(" ").upper() in answer
        shutil.copy(other / "iccid.txt", tmp_path)
        assert octets(RSA, "kdd").hex(" ").upper() in rsa_card.run("scriptor", "iccid.txt").stdout


def test_nothing_is_left_when_the_stack_ends(rsa_card: CardStack, tmp_path: Path) -> None:
    def remaining() -> list[Path]:
        found = []
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                if str(tmp_path).encode() in process.read_bytes():
                    found.append(process)
        return found

    assert remaining()
    rsa_card.close()
    assert not remaining()


def test_missing_program_is_an_error_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.card.stack.PROGRAMS", {"no-such-program": "no-such-package"})
    with pytest.raises(StackError, match="apt install no-such-package"), CardStack(tmp_path / "sim.json", tmp_path):
        pass


def test_sim_that_does_not_start_is_an_error_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.card.stack.READY_SECONDS", 1.0)
    with pytest.raises(StackError, match=r"sim\.json"), CardStack(tmp_path / "sim.json", tmp_path):
        pass
