"""What the tests of the vault's process share: a token with keys and settings, and vaults started on it.

Each vault gets a slot of its own, so that tests share one token and one socket directory and run in any order. The
module is loaded by child processes alone: it serves one thread of one process, and not the test's.
"""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from appliance import config
from appliance.demo import published

REPOSITORY = Path(__file__).parents[2]
PROFILE = REPOSITORY / "hsm_config/profiles/jpki-user-authentication.toml"
PIN = published.PIN
SET_UP = """
import sys
from pathlib import Path
from appliance.demo.setup import set_up
set_up(Path(sys.argv[1]), Path(sys.argv[2]), port=1, vaults=2)
"""


@dataclass
class Site:
    """Settings with a token behind them."""

    path: Path
    """appliance.toml."""
    sockets: Path

    @property
    def settings(self) -> config.Settings:
        return config.load(self.path)

    def variant(
        self, name: str, change: Callable[[str], str], file: str = "appliance.toml", sockets: Path | None = None
    ) -> "Site":
        """The same token under settings of which one file is changed, in a directory beside them."""
        directory = self.path.parent.with_name(name)
        for path in self.path.parent.rglob("*.toml"):
            relative = path.relative_to(self.path.parent)
            (directory / relative).parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8")
            changed = change(text) if str(relative) == file else text
            assert changed != text or str(relative) != file, "the change changes something"
            (directory / relative).write_text(changed, encoding="utf-8")
        return Site(directory / self.path.name, sockets or self.sockets)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("v") / "site"
    subprocess.run([sys.executable, "-P", "-c", SET_UP, str(directory), str(PROFILE)], check=True)
    path = directory / "appliance.toml"
    sockets = config.load(path).vault.socket_directory
    yield Site(path, sockets)
    if sockets.parent != directory:  # elsewhere, where the path was too long for a socket
        for left in sockets.iterdir():
            left.unlink()
        sockets.rmdir()


class Vault:
    """A vault process as the supervisor would start it."""

    def __init__(self, site: Site, slot: int, generation: int, log: IO[bytes], *options: str) -> None:
        self.name = f"v{slot}-{generation}"
        self.socket = site.sockets / f"{self.name}.sock"
        self._log = Path(log.name)
        python = [sys.executable, "-P", *(options or ("-m", "appliance.vault"))]
        self.process = subprocess.Popen(
            [*python, "--config", str(site.path), "--slot", str(slot), "--generation", str(generation)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,
        )

    def give(self, pin: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{pin}\n".encode())
        self.process.stdin.flush()

    def lines(self) -> Iterator[dict[str, Any]]:
        """Its status lines, as they come, until its end."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield json.loads(line)

    def ready(self) -> "Vault":
        assert any(line.get("state") == "ready" for line in self.lines()), self.log()
        return self

    def close_lifeline(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def ended(self) -> int:
        """Its exit code, when it has ended."""
        for _ in self.lines():
            pass
        return self.process.wait()

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")


Start = Callable[..., Vault]
_slots = itertools.count(10)


@pytest.fixture
def start(site: Site, tmp_path: Path) -> Iterator[Start]:
    """Starts vaults; what still runs after the test is ended."""
    with ExitStack() as stack:

        def make(*options: str, at: Site = site, pin: str = PIN, slot: int | None = None, generation: int = 1) -> Vault:
            slot = next(_slots) if slot is None else slot
            log = stack.enter_context((tmp_path / f"{slot}-{generation}.log").open("wb"))
            vault = Vault(at, slot, generation, log, *options)
            stack.enter_context(vault.process)
            stack.callback(vault.process.kill)
            vault.give(pin)
            return vault

        yield make


@pytest.fixture(scope="module")
def vault(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    """One vault for all tests of a module that only ask it."""
    with (tmp_path_factory.mktemp("log") / "vault.log").open("wb") as log:
        running = Vault(site, 0, os.getpid(), log)
        with running.process:
            running.give(PIN)
            yield running.ready()
            running.close_lifeline()
            running.ended()
