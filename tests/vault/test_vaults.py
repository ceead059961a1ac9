"""`appliance vaults`: the supervisor with real vaults on a real token."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.demo import published
from appliance.supervisor import FINAL
from tests.vault.conftest import PIN, Site

WAIT = 60.0
Event = dict[str, object]


@pytest.fixture(scope="module")
def own(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site with sockets of its own: two vaults in slots 0 and 1."""
    sockets = tmp_path_factory.mktemp("s")
    sockets.chmod(0o700)
    yield site.variant("vaults", lambda text: text.replace(str(site.sockets), str(sockets)), sockets=sockets)


class Vaults:
    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.events: list[Event] = []

    def next(self, name: str) -> Event:
        """The next event of this name that the supervisor logs."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == name:
                return self.events[-1]
        raise AssertionError(f"it ended before {name}: {self.events}")


@contextmanager
def running(site: Site, *options: str, pin: str = PIN) -> Iterator[Vaults]:
    """`appliance vaults`, given the PIN through a file descriptor unless the options say otherwise."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(f"{pin}\n".encode())
    command = [sys.executable, "-P", "-m", "appliance", "vaults", "--config", str(site.path)]
    with subprocess.Popen(
        [*command, *(options or ("--pin-fd", str(reader)))],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(reader,),
    ) as process:
        os.close(reader)
        try:
            yield Vaults(process)
        finally:
            process.terminate()
            process.wait(WAIT)


def test_two_vaults_serve_and_a_killed_one_is_replaced(own: Site) -> None:
    with running(own) as vaults:
        started = vaults.next("vault started")
        vaults.next("vault ready")
        vaults.next("vault ready")
        assert len(list(own.sockets.glob("*.sock"))) == 2
        old = own.sockets / f"v0-{started['generation']}.sock"
        os.kill(int(str(started["pid"])), signal.SIGKILL)
        vaults.next("vault ready")
        (new,) = own.sockets.glob("v0-*.sock")
        assert new != old
        pids = [vaults.process.pid, *(int(str(event["pid"])) for event in vaults.events if "pid" in event)]
        for pid in set(pids) - {started["pid"]}:
            assert PIN.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
            try:
                assert PIN.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
            except PermissionError:  # not dumpable, and this is not root
                assert os.geteuid() != 0
        vaults.process.terminate()
        assert vaults.process.wait(WAIT) == 0
        assert PIN not in json.dumps(vaults.events)
    assert not list(own.sockets.glob("*.sock"))


def test_settings_that_are_being_edited_cost_no_vault_for_good(own: Site) -> None:
    variant = own.variant("edited", lambda text: text.replace("count = 2", "count = 1"))
    issuer = variant.path.parent / f"sim_issuers/{published.SIM_ISSUER}.toml"
    good = issuer.read_text(encoding="utf-8")
    with running(variant) as vaults:
        started = vaults.next("vault started")
        vaults.next("vault ready")
        issuer.write_text(good[: len(good) // 2], encoding="utf-8")
        os.kill(int(str(started["pid"])), signal.SIGKILL)
        assert vaults.next("vault cannot go on")["reason"] == "SETTINGS_INVALID"
        issuer.write_text(good, encoding="utf-8")
        vaults.next("vault ready")


def test_vaults_end_with_a_killed_supervisor(own: Site) -> None:
    with running(own) as vaults:
        vaults.next("vault ready")
        vaults.next("vault ready")
        vaults.process.kill()
        assert vaults.process.stderr is not None
        vaults.process.stderr.read()  # until EOF: the vaults share it, so they have ended
        assert not list(own.sockets.glob("*.sock"))


def test_a_wrong_pin_is_final_after_one_login(own: Site) -> None:
    with running(own, pin="not-the-pin-4711") as vaults:
        assert vaults.next("vault cannot go on")["reason"] == "PIN_REJECTED"
        assert vaults.process.wait(WAIT) == FINAL
        assert vaults.process.stderr is not None
        rest = vaults.process.stderr.read()
    events = [event["event"] for event in vaults.events] + [json.loads(line)["event"] for line in rest.splitlines()]
    assert events.count("vault started") == 1


def test_settings_that_cannot_be_used_are_refused_before_the_pin_is_read(own: Site) -> None:
    broken = own.variant("unusable", lambda text: text.replace("count = 2", "count = 0"))
    with running(broken, "--pin-file", "/no/such/file") as vaults:
        assert vaults.process.wait(WAIT) == FINAL
        assert vaults.process.stderr is not None
        said = vaults.process.stderr.read().decode()
    assert "SETTINGS_INVALID: appliance.toml: vault.count" in said


def test_a_pin_file_that_cannot_be_used_is_refused(own: Site) -> None:
    with running(own, "--pin-file", "/no/such/file") as vaults:
        assert vaults.process.wait(WAIT) == FINAL
        assert vaults.process.stderr is not None
        said = vaults.process.stderr.read().decode()
    assert said == "appliance vaults: The PIN file cannot be opened: No such file or directory.\n"
