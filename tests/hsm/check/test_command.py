"""The command: on three modules as their users would call it, on the demo's settings, and called wrongly."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pkcs11 import Attribute, Mechanism

from appliance.cli import main
from appliance.demo import published
from appliance.hsm.check.attacks import ATTACKS
from appliance.hsm.check.finding import Section
from appliance.hsm.check.report import WIDTH, show
from tests.hsm.check.verdicts import POSSIBLE, expected
from tests.hsm.modules.provision import TOKENS, Token
from tests.path.site import Site, set_up
from tests.shim import Call

COMMAND = (sys.executable, "-P", "-m", "appliance", "hsm", "check")
MAKING = {"C_CreateObject", "C_GenerateKey", "C_GenerateKeyPair", "C_DeriveKey", "C_UnwrapKey", "C_CopyObject"}
FALSE = b"\0"
INHERENT = {attack.name for attack in ATTACKS if attack.inherent}
STATUS = {"softhsm": 0, "nss": 3, "opencryptoki": 1}
"""With what is possible on SoftHSM accepted: NSS permits more, and openCryptoki's soft token cannot run suite 01."""
SUITE = {
    "softhsm": "runs; wraps by AES_KEY_WRAP_PAD (210A)",
    "nss": "runs; wraps by AES_KEY_WRAP_KWP (210B)",
    "opencryptoki": "CKM_AES_ECB_ENCRYPT_DATA (0x1104) cannot be used: the module answered MechanismInvalid.",
}


def bare(token: Token, *options: str) -> "subprocess.CompletedProcess[str]":
    """On a token without settings."""
    module = token.module
    named = ("--module", module.path, "--token", module.token_label, "--arguments", module.arguments)
    return token.run(*COMMAND, *named, "--pin-fd", "0", *options, stdin=f"{token.pin}\n")


def shown(told: dict[str, Any]) -> list[str]:
    stream = StringIO()
    show(told, stream)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("name", TOKENS)
def test_a_bare_token_of_each_module_is_examined_to_the_end(name: str, tmp_path: Path) -> None:
    accepted = [option for attack in sorted(POSSIBLE["softhsm"] - INHERENT) for option in ("--accept", attack)]
    with TOKENS[name](tmp_path) as token:
        done = bare(token, "--json", *accepted)
        assert token.pin not in done.stdout + done.stderr
    assert done.returncode == STATUS[name], done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == STATUS[name]
    assert {row["name"]: row["verdict"] for row in told["attacks"]} == {
        attack.name: expected(name, attack.name).name for attack in ATTACKS
    }
    assert next(row["found"] for row in told["mechanisms"] if row["name"] == "suite 01") == SUITE[name]
    assert [row["verdict"] for row in told["objects"]] == ["NOTED", "NOTED", "RIGHT"]
    lines = shown(told)
    assert max(map(len, lines)) <= WIDTH
    for attack in ATTACKS:
        assert any(line.startswith(f"  {attack.name} ") for line in lines)
    explained = [line.strip() for line in lines if line.strip() in {attack.name for attack in ATTACKS}]
    assert explained == [attack.name for attack in ATTACKS if attack.name in POSSIBLE[name]]
    assert lines[-1].endswith(f"Exit status {STATUS[name]}.")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("d") / "demo"
    set_up(directory)
    return directory


@pytest.fixture
def demo(made: Path, tmp_path: Path, shim_module: Path) -> Site:
    return Site(made, tmp_path / "demo", shim_module)


def declared(settings: Path, *options: str, pin: str = published.PIN) -> "subprocess.CompletedProcess[str]":
    command = [*COMMAND, "--config", str(settings), "--pin-fd", "0", *options]
    return subprocess.run(command, input=f"{pin}\n", capture_output=True, text=True, check=False)


def uses_of_long_lived_keys(calls: list[Call]) -> set[tuple[str, int | None]]:
    """Functions and mechanisms that were given a handle found by a search: session keys are never searched for."""
    uses, found = set[tuple[str, int | None]](), set[tuple[int, int]]()
    for call in calls:
        if call.function == "C_Initialize":
            found = {(pid, handle) for pid, handle in found if pid != call.pid}  # its handles begin anew
        found |= {(call.pid, handle) for handle in call.found}
        if any((call.pid, handle) in found for handle in call.objects.values()):
            uses.add((call.function, call.mechanism))
    return uses


def test_declared_keys_are_held_against_the_settings_and_do_what_they_do_at_a_start_alone(demo: Site) -> None:
    issuer = demo.directory / f"sim_issuers/{published.SIM_ISSUER}.toml"
    issuer.write_text(issuer.read_text("utf-8").replace('"6204F8"', '"000000"', 1), "utf-8")
    done = declared(demo.demo.settings)
    assert done.returncode == 1, done.stderr
    assert published.PIN not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split() for line in lines if " kcv " in line] == [
        ["kcv", "right", "A5AE31,", "as", "declared"],
        ["kcv", "WRONG", "6204F8", "|", "000000", "is", "declared"],
    ]
    assert [section for section in Section if section.upper() in lines] == list(Section)
    assert "POSSIBLE (inherent)" in done.stdout
    assert lines[-1].endswith("Exit status 1.")
    calls = demo.shim.log()
    made = [call for call in calls if call.function in MAKING]
    assert {call.function for call in made} == MAKING
    for call in made:
        for template in call.templates.values():
            assert [a.value for a in template if a.type == Attribute.TOKEN] == [FALSE], call
    assert uses_of_long_lived_keys(calls) == {
        ("C_GetAttributeValue", None),
        ("C_DeriveKey", Mechanism.AES_ECB_ENCRYPT_DATA),
        ("C_SignInit", Mechanism.SHA256_RSA_PKCS),
    }
    assert not {"C_InitToken", "C_InitPIN", "C_SetPIN", "C_SeedRandom"} & {call.function for call in calls}


def test_a_wrong_pin_is_one_line_and_tried_once(demo: Site) -> None:
    done = declared(demo.demo.settings, pin="not-the-pin")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("appliance hsm: PIN_REJECTED: Token DEMO-JPKI refused the PIN")
    assert demo.shim.logins() == 1


def test_bad_settings_are_one_line_and_nobody_is_asked_for_a_pin(tmp_path: Path) -> None:
    (tmp_path / "appliance.toml").write_text("environment = 1\n", "utf-8")
    done = declared(tmp_path / "appliance.toml")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("appliance hsm: SETTINGS_INVALID: appliance.toml")


def test_a_pin_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    command = [*COMMAND, "--module", "/nowhere.so", "--token", "X", "--pin-file", str(tmp_path / "absent")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "appliance hsm: The PIN file cannot be opened: No such file or directory.\n"


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--module", "/x.so"],
        ["--token", "X"],
        ["--config", "appliance.toml", "--module", "/x.so", "--token", "X"],
        ["--config", "appliance.toml", "--token", "X"],
        ["--config", "appliance.toml", "--limit", "0"],
        ["--config", "appliance.toml", "--accept", "copy-weker"],
        ["--config", "appliance.toml", "--limit", "soon"],
    ],
)
def test_a_wrong_call_is_answered_with_the_usage(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["hsm", "check", *options])
    assert ended.value.code == 2
    assert "usage: appliance hsm" in capsys.readouterr().err


def test_help_tells_exit_statuses_and_every_attack(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["hsm", "check", "--help"])
    told = capsys.readouterr().out
    assert all(f"\n  {status}  " in told for status in (0, 1, 2, 3))
    assert all(f"\n  {attack.name} " in told for attack in ATTACKS)
