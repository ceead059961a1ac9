"""The appliance's programs as processes of their own, each with its log in a file that tells what happened when."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

WAIT: Final = 60.0
"""Seconds until a test gives up on an event; a busy machine is no failure."""
LOOK: Final = 0.02
"""Seconds between two looks at a log."""

Event = dict[str, Any]


def until(condition: Callable[[], bool], what: str) -> None:
    """Returns when the condition holds."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT:g} s"
        time.sleep(LOOK)


class Program:
    """One running `appliance` command."""

    def __init__(
        self, log: Path, *arguments: str, pass_fds: tuple[int, ...] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        self._passed = self._read = 0
        self._events: list[Event] = []
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "appliance", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                pass_fds=pass_fds,
                process_group=0,
                env={**os.environ, **(environment or {})},
            )

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def events(self) -> list[Event]:
        """Every line of its log that is complete, its children's among them."""
        with self.log.open("rb") as log:
            log.seek(self._read)
            complete, newline, _ = log.read().rpartition(b"\n")
        self._read += len(complete + newline)
        self._events += [json.loads(line) for line in complete.split(b"\n") if line.startswith(b"{")]
        return self._events

    def next(self, event: str, **facts: object) -> Event:
        """The next line of this event and these facts; those before it are passed over for good."""
        found: list[Event] = []

        def look() -> bool:
            ended = not self.running  # before the log is read: nothing comes after it
            for line in self.events()[self._passed :]:
                self._passed += 1
                if line.items() >= {"event": event, **facts}.items():
                    found.append(line)
                    return True
            assert not ended, f"ended without {event!r}:\n{self.log.read_text()}"
            return False

        until(look, f"{event!r} in {self.log.name}")
        return found[0]

    def signal(self, number: signal.Signals) -> None:
        """Sends it to this process alone."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(WAIT)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.signal(signal.SIGKILL)
        self.wait()


class Front(Program):
    """`appliance serve`."""

    def __init__(self, log: Path, settings: Path, environment: Mapping[str, str]) -> None:
        super().__init__(log, "serve", "--config", str(settings), environment=environment)

    def end(self) -> None:
        """Whatever state it is in."""
        if self.running:
            self.kill()


class Vaults(Program):
    """`appliance vaults`: the supervisor and its vaults, which log into the same file."""

    def __init__(self, log: Path, settings: Path, pin: str) -> None:
        reader, writer = os.pipe()
        os.write(writer, pin.encode() + b"\n")
        os.close(writer)
        self._settings = str(settings)
        super().__init__(log, "vaults", "--config", str(settings), "--pin-fd", str(reader), pass_fds=(reader,))
        os.close(reader)

    def pids(self) -> dict[int, int]:
        """Process ids of the vaults that have started and not ended, by slot."""
        pids: dict[int, int] = {}
        for line in self.events():
            if line["event"] == "vault started":
                pids[line["slot"]] = line["pid"]
            elif line["event"] == "vault ended":
                del pids[line["slot"]]
        return pids

    def ready(self) -> dict[int, int]:
        """Generations of the vaults that serve, by slot."""
        ready: dict[int, int] = {}
        for line in self.events():
            if line["event"] == "vault ready":
                ready[line["slot"]] = line["generation"]
            elif line["event"] == "vault ended":
                ready.pop(line["slot"], None)
        return ready

    def kill_vault(self, *pids: int) -> None:
        """SIGKILL to these vaults; returns when their supervisor has reaped them."""
        for pid in pids:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGKILL)
        until(lambda: set(pids).isdisjoint(self.pids().values()), "the killed vaults are reaped")

    def orphans(self) -> list[int]:
        """Vaults that have outlived their supervisor: they end by themselves, after what they have in hand."""
        return [] if self.running else [pid for pid in self.pids().values() if self._is_vault(pid)]

    def end(self) -> None:
        """Supervisor and vaults, whatever state they are in; each is reaped by its parent."""
        if self.running:
            self.signal(signal.SIGTERM)  # from now on it starts none
            self.signal(signal.SIGCONT)
            self.next("stopping")
            for pid in self.pids().values():
                with suppress(ProcessLookupError):  # just reaped
                    os.kill(pid, signal.SIGKILL)
            self.wait()
        for pid in self.orphans():
            with suppress(ProcessLookupError):  # just gone
                os.kill(pid, signal.SIGKILL)

    def _is_vault(self, pid: int) -> bool:
        """Whether this process is still one of these vaults, and not another one of its number."""
        try:
            return self._settings.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
