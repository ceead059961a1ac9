"""The `appliance` command: its table, and what a wrong call gets."""

import subprocess
import sys
from pathlib import Path

import pytest

from appliance.cli import COMMANDS, main


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: appliance {name}")


def test_an_unknown_command_is_named_beside_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["isue"]) == 2
    told = capsys.readouterr().err
    assert "'isue'" in told
    assert "vaults" in told


def test_bad_settings_end_a_command_with_one_line_that_names_file_and_field(tmp_path: Path) -> None:
    settings = tmp_path / "appliance.toml"
    settings.write_text('environment = "demo"\nenvironmnt = 1\n', "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "serve", "--config", str(settings)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("appliance serve: SETTINGS_INVALID: appliance.toml")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_does_not_load_the_parts_of_others(name: str) -> None:
    heavy = {"pkcs11", "sqlalchemy", "grpc"} - {
        "vsim": set[str](),
        "scripts": set[str](),
        "vaults": set[str](),
        "run": set[str](),
        "serve": {"sqlalchemy", "grpc"},
        "health": {"grpc"},
        "ledger": {"sqlalchemy"},
        "hsm": {"pkcs11"},
        "demo": {"pkcs11", "grpc"},
    }[name]
    code = (
        "import contextlib, importlib, sys\n"
        f"importlib.import_module({COMMANDS[name].module!r})\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
