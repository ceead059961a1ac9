"""Starts the vaults, hands each the PIN, and ends or replaces those that hang or die. Standard library alone.

This process keeps the PIN for as long as it runs, so it loads nothing that is not Python's own: what it needs of the
settings a vault tells it (`python -m appliance.vault.plan`). The rules:

- A vault gets the PIN as the first line of its stdin, which then stays open as its lifeline: EOF ends the vault.
- It answers on stdout with JSON lines: `{"state": "ready"}` once, and `{"call": kind, "age": seconds}` all the time.
- One vault logs in first, the others follow. Before a login has succeeded, a vault that may have spent a PIN try
  without saying how it ended is not started again.
- A vault that ends with `FINAL` says that a person must act: from then on none is started, the others serve on.
- A vault whose module call exceeds the limit for its kind, or whose lines stop, is killed; a new one, of a new
  generation, takes its slot.
"""

import argparse
import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from appliance.pin import PinUnavailable, add_pin_options, take_pin, wipe

FINAL = 78
"""Exit code (EX_CONFIG) of a vault, and of the supervisor: start none again until a person has acted."""
RETRY = 75
"""Exit code (EX_TEMPFAIL) of a vault that may be started again, though no login has succeeded yet."""

LOGIN = "login"
"""Kind of the module call that spends a PIN try."""
OTHER = "other"
"""Key of the limit for every kind that has none of its own."""

_PR_SET_DUMPABLE = 4
_FIRST_DELAY, _LONGEST_DELAY = 0.25, 10.0  # seconds before a vault that did not get ready is started again
_LINE_BYTES = 4096  # no line of a vault is longer


def harden() -> None:
    """No core dump of this process, and no attaching to it by others of the same user; not inherited through exec."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE) failed")


def log_to_stderr(event: str, **facts: object) -> None:
    """One JSON line, like those of the other processes; its level is "info" unless a fact says otherwise."""
    when = datetime.now(UTC).isoformat()
    record = {"service": "supervisor", "event": event, "level": "info", **facts, "timestamp": when}
    sys.stderr.write(json.dumps(record) + "\n")
    sys.stderr.flush()


@dataclass
class _Vault:
    """One running incarnation."""

    generation: int
    process: "subprocess.Popen[bytes]"
    heard: float
    """When its last line came (monotonic seconds)."""
    unread: bytes = b""
    ready: bool = False
    ended_in: str | None = None
    """Kind of the module call that it was killed in, for having taken too long."""


@dataclass
class _Slot:
    number: int
    vault: _Vault | None = None
    failures: int = 0
    """Incarnations in a row that did not get ready."""
    due: float = 0.0
    """When the next one may start (monotonic seconds)."""

    def put_off(self) -> None:
        """Each failure doubles the wait for the next start."""
        self.due = time.monotonic() + min(_LONGEST_DELAY, _FIRST_DELAY * 2**self.failures)
        self.failures += 1


@dataclass
class Supervisor:
    """Keeps `count` vaults running.

    Args:
        command: argv of the vault of a slot and generation.
        count: how many vaults.
        limits: seconds that one module call may take, by kind; `OTHER` is for those not named.
        silence_seconds: how long a vault may say nothing.
        stop_seconds: how long vaults may take to end after their lifelines closed.
        log: takes an event name and its facts.
    """

    command: Callable[[int, int], Sequence[str]]
    count: int
    limits: Mapping[str, float]
    silence_seconds: float = 20.0
    stop_seconds: float = 15.0
    log: Callable[..., None] = log_to_stderr
    _slots: list[_Slot] = field(init=False)
    _generation: int = field(init=False, default=0)
    _logged_in: bool = field(init=False, default=False)
    _final: bool = field(init=False, default=False)
    _stop_by: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._slots = [_Slot(number) for number in range(self.count)]
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ)

    def stop(self) -> None:
        """Makes `run` close the lifelines, wait, and return. From any thread or signal handler."""
        with contextlib.suppress(OSError):  # full: it was woken long ago; closed: it has returned
            os.write(self._wake_write, b"s")

    def run(self, pin: bytearray) -> int:
        """Supervises until stopped (0) or until no vault may be started again and the last has ended (`FINAL`).

        Wipes the PIN.
        """
        try:
            while True:
                self._start_due(pin)
                if not any(slot.vault for slot in self._slots) and (self._final or self._stop_by is not None):
                    return 0 if self._stop_by is not None else FINAL
                for key, _ in self._selector.select(self._until_next_deadline()):
                    if isinstance(key.data, _Slot):
                        self._listen(key.data)
                    else:
                        self._close_lifelines()
                self._end_overdue()
        finally:
            wipe(pin)
            for slot in self._slots:  # none is left on a return; some are where this loop has a defect
                if slot.vault is not None:
                    os.killpg(slot.vault.process.pid, signal.SIGKILL)
                    slot.vault.process.wait()
            self._selector.close()
            os.close(self._wake_read)
            wake, self._wake_write = self._wake_write, -1
            os.close(wake)

    def _startable(self) -> list[_Slot]:
        """Slots to fill now or when due: the first alone until a login has succeeded, none once final or stopping."""
        if self._final or self._stop_by is not None:
            return []
        return [slot for slot in (self._slots if self._logged_in else self._slots[:1]) if slot.vault is None]

    def _start_due(self, pin: bytearray) -> None:
        for slot in self._startable():
            if slot.due <= time.monotonic():
                self._start(slot, pin)

    def _start(self, slot: _Slot, pin: bytearray) -> None:
        # Milliseconds of the clock, so that a new supervisor repeats no generation of the one before it.
        self._generation = max(self._generation + 1, time.time_ns() // 1_000_000)
        try:
            process = subprocess.Popen(  # noqa: S603 (the command is this program's own)
                self.command(slot.number, self._generation),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                process_group=0,
            )
        except OSError as error:
            self.log("vault not started", level="error", slot=slot.number, error=error.strerror)
            slot.put_off()
            return
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 (for the type checker)
        slot.vault = _Vault(self._generation, process, heard=time.monotonic())
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, slot)
        with contextlib.suppress(BrokenPipeError):  # it has died already; its end will be seen
            os.writev(process.stdin.fileno(), [pin, b"\n"])
        self.log("vault started", slot=slot.number, generation=self._generation, pid=process.pid)

    def _until_next_deadline(self) -> float | None:
        deadlines = [slot.due for slot in self._startable()]
        deadlines += [slot.vault.heard + self.silence_seconds for slot in self._slots if slot.vault]
        deadlines += [self._stop_by] if self._stop_by is not None else []
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _listen(self, slot: _Slot) -> None:
        """Takes what a vault has written; the end of its stdout is its end."""
        vault = slot.vault
        assert vault is not None and vault.process.stdout is not None  # noqa: S101 (registered only while it runs)
        data = vault.process.stdout.read(65536)
        if data is None:
            return
        if not data:
            self._bury(slot, vault)
            return
        *lines, rest = (vault.unread + data).split(b"\n")
        vault.unread = rest[:_LINE_BYTES]
        for line in lines:
            if (message := _parse(line)) is not None:
                vault.heard = time.monotonic()
                self._take(slot, vault, *message)

    def _take(self, slot: _Slot, vault: _Vault, state: str, call: str, age: float) -> None:
        limit = self.limits.get(call, self.limits[OTHER])
        if state == "ready":
            vault.ready = self._logged_in = True
            slot.failures = 0
            self.log("vault ready", slot=slot.number, generation=vault.generation)
        elif call and age > limit and vault.ended_in is None:
            vault.ended_in = call
            self._kill(slot, vault, f"{call} took longer than {limit:g} s")

    def _end_overdue(self) -> None:
        now = time.monotonic()
        overdue = self._stop_by is not None and now > self._stop_by
        for slot in self._slots:
            if slot.vault and overdue:
                self._kill(slot, slot.vault, "did not end after its lifeline")
            elif slot.vault and now - slot.vault.heard > self.silence_seconds:
                self._kill(slot, slot.vault, "silent")
        if overdue:
            self._stop_by = now + self.stop_seconds  # as in `_kill`

    def _kill(self, slot: _Slot, vault: _Vault, why: str) -> None:
        self.log("vault killed", level="warning", slot=slot.number, generation=vault.generation, why=why)
        os.killpg(vault.process.pid, signal.SIGKILL)
        vault.heard = time.monotonic()  # the kernel may need a while; not again at once

    def _bury(self, slot: _Slot, vault: _Vault) -> None:
        """Reaps a vault and decides what its end means for the next one."""
        assert vault.process.stdin is not None and vault.process.stdout is not None  # noqa: S101 (see `_start`)
        self._selector.unregister(vault.process.stdout)
        os.killpg(vault.process.pid, signal.SIGKILL)  # whatever else it started, or itself if it only closed stdout
        code = vault.process.wait()
        vault.process.stdin.close()
        vault.process.stdout.close()
        slot.vault = None
        self.log("vault ended", slot=slot.number, generation=vault.generation, code=code)
        if self._stop_by is not None:
            return
        may_have_spent_a_try = not self._logged_in and code != RETRY and vault.ended_in in {None, LOGIN}
        if (code == FINAL or may_have_spent_a_try) and not self._final:
            self._final = True
            advice = "no vault will be started again: see the vault's log, then start the service anew"
            self.log(advice, level="error", code=code)
        if not vault.ready:
            slot.put_off()

    def _close_lifelines(self) -> None:
        os.read(self._wake_read, 64)
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self.stop_seconds
            self.log("stopping")
            for slot in self._slots:
                if slot.vault and slot.vault.process.stdin:
                    slot.vault.process.stdin.close()


def _parse(line: bytes) -> tuple[str, str, float] | None:
    """State, call and age of a line of the protocol; None for any other line."""
    try:
        message = json.loads(line)
        return str(message.get("state", "")), str(message.get("call", "")), float(message.get("age", 0))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _plan(config: Path) -> tuple[int, dict[str, float]]:
    """How many vaults, and the limits, as a vault reads them from the settings; ends the program where it cannot."""
    answer = subprocess.run(  # noqa: S603 (the command is this program's own)
        _python("appliance.vault.plan", config), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
    )
    if answer.returncode != 0:
        raise SystemExit(answer.returncode)
    plan = json.loads(answer.stdout)
    return int(plan["count"]), {kind: float(seconds) for kind, seconds in plan["limits"].items()}


def _python(module: str, config: Path) -> list[str]:
    return [sys.executable, "-P", "-m", module, "--config", str(config)]  # -P: no module from the working directory


def main(argv: Sequence[str] | None = None) -> int:
    """Ask for the PIN and keep the vaults running until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="appliance vaults", description=main.__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the appliance's settings, appliance.toml")
    add_pin_options(parser)
    arguments = parser.parse_args(argv)
    harden()
    config = arguments.config.resolve()
    count, limits = _plan(config)
    try:
        pin = take_pin(arguments)
    except PinUnavailable as error:
        sys.stderr.write(f"appliance vaults: {error}\n")
        return FINAL

    def command(slot: int, generation: int) -> list[str]:
        return [*_python("appliance.vault", config), "--slot", str(slot), "--generation", str(generation)]

    supervisor = Supervisor(command, count, limits)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    return supervisor.run(pin)
