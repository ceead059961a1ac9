"""`appliance vsim`, the command for TSM developers."""

import io
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from appliance.vsim import script
from appliance.vsim.card import VirtualSim
from appliance.vsim.command import main

from .host import delivery_script
from .packages import KM_CHAN, P256, P384, RSA, case, draft, octets, tlv


class Bench:
    """A developer's folder with one SIM in it."""

    def __init__(self, folder: Path, index: int) -> None:
        self.folder, self.index = folder, index
        self.state = folder / "sim.json"
        kvn = draft(index).field(0x83)[0]
        masters = folder / "masters.toml"
        masters.write_text(f'km_bind = "{case(index)["km_bind"]}"\nkm_chan = "{KM_CHAN.hex()}"\nkvn = {kvn}\n')
        assert self.run("new", "--iccid", case(index)["iccid_digits"], "--masters", str(masters)) == 0

    def run(self, name: str, *arguments: str) -> int:
        return main([name, "--state", str(self.state), *arguments])

    def script(self, package: bytes, separator: str = "") -> Path:
        """What a delivery of the package is, as text."""
        file = self.folder / "script.txt"
        apdus = delivery_script(VirtualSim.load(self.state), package)
        file.write_text(
            "# a delivery\n" + "".join(re.sub("(..)", rf"\1{separator}", apdu.hex()) + "\n" for apdu in apdus)
        )
        return file


@pytest.fixture(params=[P256, RSA, P384], ids=["P-256", "RSA-2048", "P-384"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    return Bench(tmp_path, request.param)


@pytest.fixture
def p256(tmp_path: Path) -> Bench:
    return Bench(tmp_path, P256)


def stdin(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_developer_delivers_sets_the_pin_and_signs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.run("play", str(bench.script(octets(bench.index, "package")))) == 0
    code = case(bench.index)["activation_code"]
    stdin(monkeypatch, code, "4711")
    capsys.readouterr()
    assert bench.run("set-pin") == 0
    message, signature = bench.folder / "message", bench.folder / "signature"
    message.write_bytes(b"message")
    stdin(monkeypatch, "4711")
    assert bench.run("sign", "--in", str(message), "--out", str(signature)) == 0
    key = x509.load_der_x509_certificate(octets(bench.index, "certificate")).public_key()
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature.read_bytes(), b"message", padding.PKCS1v15(), hashes.SHA256())
    else:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        digest: hashes.HashAlgorithm = hashes.SHA256() if bench.index == P256 else hashes.SHA384()
        key.verify(signature.read_bytes(), b"message", ec.ECDSA(digest))
    assert "4711" not in "".join(capsys.readouterr()).replace(str(bench.folder), "")
    assert bench.run("show") == 0
    shown = "".join(capsys.readouterr())
    assert code not in shown
    sim = VirtualSim.load(bench.state).state
    for secret in (sim.sim.binding.k_sim, sim.sim.channel.k_enc, octets(bench.index, "pkcs8")):
        assert secret.hex() not in shown


def test_developer_executes_a_template_and_gets_the_answers(p256: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    apdus = delivery_script(VirtualSim.load(p256.state), octets(P256, "package"))
    applet = next(at for at, apdu in enumerate(apdus) if at and apdu[1] == 0xA4)
    template, answer = p256.folder / "script.ber", p256.folder / "answer.ber"
    files = ("--in", str(template), "--out", str(answer))
    for part in (apdus[:applet], apdus[applet:]):
        select, *commands = part
        template.write_bytes(tlv(0xAA, b"".join(tlv(0x22, apdu) for apdu in commands)))
        assert p256.run("execute", "--aid", select[5 : 5 + select[4]].hex(), *files) == 0
        assert answer.read_bytes()[0] == 0xAB
        assert answer.read_bytes().hex() in capsys.readouterr().out
    installed = VirtualSim.load(p256.state).state.installed
    assert installed is not None
    assert answer.read_bytes() == tlv(0xAB, b"\x80\x01\x01" + tlv(0x23, installed.receipt + b"\x90\x00"))
    assert p256.run("execute", "--aid", "A000000003", *files) == 2
    assert "there is no application A000000003" in capsys.readouterr().err


def test_play_prints_each_command_and_the_receipt(p256: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert p256.run("play", str(p256.script(octets(P256, "package"), " "))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [name for name in script.NAMES.values() if any(name in line for line in lines)] == [
        "SELECT",
        "GET DATA",
        "INITIALIZE UPDATE",
        "EXTERNAL AUTHENTICATE",
        "INSTALL",
        "STORE DATA",
    ]
    installed = VirtualSim.load(p256.state).state.installed
    assert installed is not None
    assert lines[-1].strip() == installed.receipt.hex()


def test_play_stops_at_the_first_refusal_and_says_why(p256: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    sim = VirtualSim.load(p256.state).state.sim
    other = draft(P256).with_field(0x80, b"\x02").sealed(sim)
    assert p256.run("play", str(p256.script(other))) == 1
    out = capsys.readouterr().out
    assert "6A81 not supported" in out
    assert out.rstrip().endswith("the suite is unknown")
    assert VirtualSim.load(p256.state).state.installed is None


def test_play_of_the_same_script_again_ends_at_the_handshake(p256: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    file = p256.script(octets(P256, "package"))
    assert p256.run("play", str(file)) == 0
    capsys.readouterr()
    assert p256.run("play", str(file)) == 1
    assert "EXTERNAL AUTHENTICATE" in capsys.readouterr().out.splitlines()[-1]


def test_wrong_code_is_refused_with_the_tries_left(
    p256: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert p256.run("play", str(p256.script(octets(P256, "package")))) == 0
    stdin(monkeypatch, "AAAAAAAA", "1234")
    assert p256.run("set-pin") == 1
    assert "63C4 not accepted; 4 tries left" in capsys.readouterr().err


def test_secrets_are_no_arguments(p256: Bench) -> None:
    for arguments in (["set-pin", "1234"], ["sign", "--pin", "1234"]):
        with pytest.raises(SystemExit) as ended:
            p256.run(*arguments)
        assert ended.value.code == 2


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("new", ["--iccid", "8981309114170753644", "--masters", "{}/masters.toml"], "File exists"),
        ("new", ["--iccid", "8981309114170753645", "--masters", "{}/masters.toml"], "check digit"),
        ("new", ["--iccid", "8981309114170753644", "--masters", "{}/none.toml"], "No such file"),
        ("play", ["{}/masters.toml"], "line 1 is not a command APDU"),
        ("sign", ["--in", "{}/masters.toml", "--out", "{}/x"], "no package is installed"),
        ("serve", ["--port", "1"], "refused"),
    ],
)
def test_unusable_input_is_named(
    p256: Bench, name: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = p256.state.read_bytes()
    assert p256.run(name, *(argument.format(p256.folder) for argument in arguments)) == 2
    assert message in capsys.readouterr().err
    assert p256.state.read_bytes() == before


def test_help_shows_a_masters_file_that_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    shown = [line.strip() for line in text.splitlines() if " = " in line]
    masters = tmp_path / "masters.toml"
    masters.write_text("\n".join(line.removeprefix("# ") for line in shown))
    state = tmp_path / "sim.json"
    assert main(["new", "--state", str(state), "--iccid", "8981309114170753644", "--masters", str(masters)]) == 0
    commented = VirtualSim.load(state).state
    masters.write_text("\n".join(line for line in shown if not line.startswith("#")))
    state.unlink()
    assert main(["new", "--state", str(state), "--iccid", "8981309114170753644", "--masters", str(masters)]) == 0
    assert VirtualSim.load(state).state == commented


def test_script_is_read_as_scriptor_reads_it() -> None:
    lines = ["# comment", "", "00A4", "00 A4 \\", "04 00", "RESET", " 00b0 ", "exit", "not hexadecimal"]
    steps = [(step.line, step.apdu and step.apdu.hex()) for step in script.read(lines)]
    assert steps == [(3, "00a4"), (5, "00a40400"), (6, None), (7, "00b0")]


def test_line_that_is_not_hexadecimal_is_named() -> None:
    with pytest.raises(ValueError, match="line 2"):
        list(script.read(["00A4", "00A"]))
