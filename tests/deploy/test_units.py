"""The systemd units: systemd takes them, they leave little open, and they agree with the program and its settings."""

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from appliance.supervisor import FINAL, Supervisor

from .program import PROGRAM, check

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "hsm_config" / "systemd"
EXPOSURE = {"jpki-vaults": 0.3, "jpki-front": 1.2}
"""What systemd may find at most, from 0 (nothing is open) to 10. The front's is its network."""


def directives(name: str) -> list[tuple[str, str]]:
    lines = (UNITS / f"{name}.service").read_text("utf-8").splitlines()
    return [(key, value) for key, sign, value in (line.partition("=") for line in lines) if sign and key[0] != "#"]


def directive(name: str, wanted: str) -> str:
    (value,) = [value for key, value in directives(name) if key == wanted]
    return value


def example() -> dict[str, Any]:
    return tomllib.loads((ROOT / "hsm_config" / "appliance.toml").read_text("utf-8"))


@pytest.mark.parametrize("name", EXPOSURE)
def test_systemd_knows_every_directive(name: str, tmp_path: Path) -> None:
    for other in EXPOSURE:  # they name each other
        text = (UNITS / f"{other}.service").read_text("utf-8").replace(PROGRAM, str(shutil.which("true")))
        (tmp_path / f"{other}.service").write_text(text, "utf-8")
    command = ["systemd-analyze", "verify", "--man=no", f"{tmp_path}/{name}.service"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "jpki-" in line] == []


@pytest.mark.parametrize("name", EXPOSURE)
def test_little_is_left_open(name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / f"{name}.service")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(rf"Overall exposure level for {name}.service: ([0-9.]+)", told)
    assert found and float(found[1]) <= EXPOSURE[name], told


@pytest.mark.parametrize("name", EXPOSURE)
def test_what_a_unit_starts_is_a_command_with_its_options(name: str) -> None:
    program, *command = shlex.split(directive(name, "ExecStart"))
    assert program == PROGRAM
    check(*command)


def test_the_vaults_are_not_started_again_once_somebody_must_act() -> None:
    assert directive("jpki-vaults", "RestartPreventExitStatus") == str(FINAL)


def test_both_get_the_time_that_they_take_to_stop() -> None:
    assert float(directive("jpki-front", "TimeoutStopSec")) > 2 * example()["front"]["drain_seconds"]
    assert float(directive("jpki-vaults", "TimeoutStopSec")) > 2 * Supervisor.stop_seconds


def test_the_front_stops_before_the_vaults() -> None:
    assert "jpki-vaults.service" in directive("jpki-front", "After").split()


def test_users_and_directories_are_those_of_the_example_settings() -> None:
    sockets = example()["vault"]["socket_directory"]
    front = example()["front"]
    tmpfiles = [line.split() for line in (UNITS / "tmpfiles.conf").read_text("utf-8").splitlines() if line[0] != "#"]
    users = re.findall(r"^u (\S+)", (UNITS / "sysusers.conf").read_text("utf-8"), flags=re.MULTILINE)
    assert users == [directive("jpki-vaults", "User"), directive("jpki-front", "User")]
    assert ["d", sockets, "2750", *users] in tmpfiles
    assert directive("jpki-vaults", "ReadWritePaths") == sockets
    assert front["ledger"].startswith(f"sqlite:////var/lib/{directive('jpki-front', 'StateDirectory')}/")
    assert Path(front["health_socket"]).parent == Path("/run", directive("jpki-front", "RuntimeDirectory"))
