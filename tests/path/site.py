"""One appliance for tests: settings, token, TLS identities and ledger in a directory, and the programs on it."""

import json
import random
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from pkcs11 import Mechanism

from appliance.demo import published
from appliance.demo.setup import DemoSite
from tests.ledger.disk import Disk
from tests.shim import Shim, Which

from .callers import Caller
from .interposer import Interposer
from .programs import Front, Vaults, until

REPOSITORY: Final = Path(__file__).parents[2]
PROFILE: Final = REPOSITORY / "hsm_config/profiles/jpki-user-authentication.toml"
PORTS: Final = range(20_000, 32_000)
"""Below those that the kernel gives to outgoing connections: a front that was killed must get its port again."""
WRAP: Final = Which(function="C_WrapKey")
RSA_KEY_PAIR: Final = Which(function="C_GenerateKeyPair", mechanism=Mechanism.RSA_PKCS_KEY_PAIR_GEN)
"""Calls to hold. Every vault wraps a throwaway key while it starts; RSA keys it makes for requests alone."""


def set_up(directory: Path) -> None:
    """Makes a demo with one vault by its command; sites are copies of it."""
    command = [sys.executable, "-P", "-m", "appliance", "demo", "set-up", str(directory)]
    options = ["--vaults", "1", "--port", "1", "--profile", str(PROFILE)]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)


class Site:
    """A copy of a demo, with its programs.

    Args:
        demo: what `set_up` made.
        directory: for the copy; short, because sockets will be in it.
        module: of tests/shim; the demo's own is behind it.
        interposed: whether the front reaches each vault through an Interposer.
        settings: of [vault], such as count=2, as they are written in TOML.
    """

    def __init__(self, demo: Path, directory: Path, module: Path, *, interposed: bool = False, **settings: Any) -> None:
        shutil.copytree(demo, directory)
        self.directory = directory
        self.demo = DemoSite(directory)
        self.sockets = directory / "sockets"
        self.shim = Shim(directory / "shim")
        self.vaults: Vaults | None = None
        self.front: Front | None = None
        self._front_environment: dict[str, str] = {}
        self.interposers: dict[int, Interposer] = {}
        """By the slot of their vaults."""
        self.past: list[Interposer] = []
        """Interposers of vaults that have died."""
        self._count = int(settings.get("count", 1))
        self._doors = _made(directory / "doors") if interposed else None
        self._callers: list[Caller] = []
        self._programs = 0
        for path in (*directory.rglob("*.toml"), directory / "softhsm2.conf"):
            path.write_text(path.read_text(encoding="utf-8").replace(str(demo), str(directory)), encoding="utf-8")
        real = json.loads(self.setting("path", f'"{module}"'))
        self.setting("socket_directory", f'"{self.sockets}"')  # the demo's is elsewhere where its path is long
        self.setting("listen", f'"127.0.0.1:{_free_port()}"')
        environment = {"SOFTHSM2_CONF": f"{directory}/softhsm2.conf", **self.shim.environment(real)}
        pairs = ", ".join(f'{name} = "{value}"' for name, value in environment.items())
        self.setting("environment", f"{{ {pairs} }}", within="module")
        for name, value in settings.items():
            self.setting(name, value, within="vault")

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.directory / "ledger.db"

    def setting(self, name: str, value: object, within: str = "", file: str = "appliance.toml") -> str:
        """Writes a setting; answers what it was.

        Args:
            name: of the key; the first one in the file, or after the head of the table `within`, where it is added if
                it is not there.
            value: in TOML.
        """
        path = self.directory / file
        text = path.read_text(encoding="utf-8")
        start = text.index(f"[{within}]") if within else 0
        head, body = text[:start], text[start:]
        found = re.search(rf"^{name} = (.*)$", body.partition("\n\n")[0] if within else body, re.MULTILINE)
        if found:
            body = body[: found.start(1)] + str(value) + body[found.end(1) :]
        else:
            body = body.replace(f"[{within}]\n", f"[{within}]\n{name} = {value}\n", 1)
        path.write_text(head + body, encoding="utf-8")
        return found[1] if found else ""

    def on(self, library: Path) -> Disk:
        """A disk beneath the ledger of the fronts that are started from now on; `library` as of `compile_disk`."""
        disk = Disk(library, self.ledger)
        self._front_environment = disk.environment
        return disk

    def start_vaults(self, pin: str = published.PIN) -> Vaults:
        """The supervisor with its vaults; does not wait for them."""
        self.vaults = Vaults(self._log("vaults"), self.demo.settings, pin)
        return self.vaults

    def start_front(self) -> Front:
        """The front; returns when it accepts calls."""
        self.front = Front(self._log("front"), self._front_settings(), self._front_environment)
        self.front.next("front serves")
        return self.front

    def up(self) -> "Site":
        """Starts whatever does not run; returns when an Issue call would be served."""
        if self.vaults is None or not self.vaults.running:
            self._end_interposers(*self.interposers)
            self.start_vaults()
        if self._doors:
            for slot in range(self._count):
                if slot not in self.interposers:
                    self._interpose(slot, self._doors)
        if self.front is None or not self.front.running:
            self.start_front()
        self.caller("operator").wait_ready()
        return self

    def kill_front(self) -> None:
        """SIGKILL."""
        assert self.front
        self.front.kill()

    def kill_vault(self, *slots: int) -> None:
        """SIGKILL to the vaults of these slots, or to the only vault; their connections break."""
        assert self.vaults
        pids = self.vaults.pids()
        assert slots or len(pids) == 1
        self.vaults.kill_vault(*(pids[slot] for slot in slots or pids))
        self._end_interposers(*(slots or pids))

    def kill_supervisor(self) -> None:
        """SIGKILL; its vaults end by themselves."""
        assert self.vaults
        self.vaults.kill()

    def caller(self, role: str) -> Caller:
        """A client of this role with a connection of its own, until the site ends."""
        caller = Caller(self.demo.target, *self.demo.tls(role))
        self._callers.append(caller)
        return caller

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of the ledger's file, read beside the front."""
        with closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)) as ledger:
            return ledger.execute(statement, values).fetchall()

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """An `appliance` command on these settings, to its end."""
        command = [sys.executable, "-P", "-m", "appliance", *arguments, "--config", str(self.demo.settings)]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    def logs(self) -> bytes:
        """Everything that its programs have written."""
        return b"".join(path.read_bytes() for path in sorted(self.directory.glob("*.log")))

    def end(self) -> None:
        """Ends whatever runs."""
        for caller in self._callers:
            caller.close()
        if self.front:
            self.front.end()
        if self.vaults:
            self.vaults.end()
        self._end_interposers(*self.interposers)

    def _log(self, name: str) -> Path:
        self._programs += 1
        return self.directory / f"{self._programs}-{name}.log"

    def _front_settings(self) -> Path:
        if not self._doors:
            return self.demo.settings
        path = self.directory / "front.toml"
        shutil.copy(self.demo.settings, path)
        self.setting("socket_directory", f'"{self._doors}"', file=path.name)
        return path

    def _interpose(self, slot: int, doors: Path) -> None:
        vaults = self.vaults
        assert vaults
        until(lambda: slot in vaults.ready(), f"the vault of slot {slot} serves")
        self.interposers[slot] = Interposer(self.sockets / f"v{slot}-{vaults.ready()[slot]}.sock", doors)

    def _end_interposers(self, *slots: int) -> None:
        for slot in slots:
            if interposer := self.interposers.pop(slot, None):
                interposer.end()
                self.past.append(interposer)


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700)
    return directory


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")
