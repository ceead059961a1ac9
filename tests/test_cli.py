"""The `appliance` command: its table, and what a wrong call gets."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance.cli import COMMANDS, Command, main


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


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[object], int]], list[str]]:
    """Makes a command of a function; answers the words that call it."""

    def command(function: Callable[[object], int]) -> list[str]:
        monkeypatch.setitem(sys.modules, "appliance.made", SimpleNamespace(main=function))
        monkeypatch.setitem(COMMANDS, "made", Command("appliance.made", ""))
        return ["made"]

    return command


@pytest.mark.parametrize("size", [1, 1 << 20])  # of which the one fails at the end alone
def test_a_reader_that_leaves_ends_a_command_quietly(
    size: int, made: Callable[[Callable[[object], int]], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as unread:  # whose end would fail too, if anything were left for it
        monkeypatch.setattr(sys, "stdout", unread)
        assert main(made(lambda _: unread.write("x" * size))) == 128 + signal.SIGPIPE


def test_another_pipe_that_breaks_is_not_taken_for_standard_output(
    made: Callable[[Callable[[object], int]], list[str]],
) -> None:
    def breaks(_: object) -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        main(made(breaks))


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
