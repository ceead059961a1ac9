"""The test's side of shim.c: what stands in the directory that the module looks into.

`calls` gets two lines of JSON for each call of any process, one when it begins and one when it ends: a call that never
returns has the first alone. `fault` and `hold` are plans for a call to come; whichever process makes that call takes
the plan away, so it happens once. `held` and `released` are FIFOs that a test holds open at both ends.
"""

import json
import os
import secrets
import select
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

from .forwarding import forwarding

SOURCE: Final = Path(__file__).with_name("shim.c")
FIFOS: Final = ("held", "released")
HEADER: Final = "p11-kit/pkcs11.h"
WAIT: Final = 60.0
"""Seconds until a test gives up on a call that it wants to hold."""


def compile_module(directory: Path) -> Path:
    """The module, compiled into this directory."""
    flags = subprocess.run(["pkg-config", "--cflags", "p11-kit-1"], capture_output=True, text=True, check=True).stdout
    (directory / "forwarding.h").write_text(forwarding(header().read_text("utf-8")), encoding="utf-8")
    module = directory / "shim.so"
    options = ["-shared", "-fPIC", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", f"-I{directory}", *flags.split()]
    subprocess.run(["gcc", *options, "-o", module, SOURCE, "-ldl"], check=True)
    return module


def header() -> Path:
    """The PKCS#11 header that the module is compiled with."""
    command = ["pkg-config", "--variable=includedir", "p11-kit-1"]
    directory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    found = [path for path in (Path(directory) / HEADER, Path(directory) / "p11-kit-1" / HEADER) if path.exists()]
    return found[0]


class When(StrEnum):
    """BEFORE: the real function is not called. AFTER: it is, and what it answered is thrown away."""

    BEFORE = "before"
    AFTER = "after"


class End(StrEnum):
    """How a call ends that never returns."""

    HANG = "hang"
    KILL = "kill"
    SEGV = "segv"


class Which(NamedTuple):
    """The n-th call that a process makes from now on, counting only this function and this mechanism where given.

    The first is 1. Each process counts for itself; the first to come to n takes the plan.
    """

    n: int = 1
    function: str = ""
    mechanism: int | None = None

    def plan(self, when: When, what: str, *, lasting: bool = False) -> str:
        """As shim.c reads it."""
        assert self.n > 0
        mechanism = -1 if self.mechanism is None else int(self.mechanism)
        how_long = "on" if lasting else "once"
        return f"{secrets.token_hex(8)} {self.n} {when} {what} {self.function or '*'} {mechanism} {how_long}"


FIRST: Final = Which()


@dataclass(frozen=True)
class Fault:
    """What a call does in place of its work, or after it.

    Attributes:
        what: the CKR code that it answers, or the end of its process.
        lasting: so do all such calls after it, of every process by its own count, until the fault is withdrawn.
    """

    what: int | End
    when: When = When.BEFORE
    which: Which = FIRST
    lasting: bool = False


class AttributeIn(NamedTuple):
    """An attribute of a template; `value` is None where it may be secret (CKA_VALUE, CKA_PRIME_1, ...), or is long."""

    type: int
    length: int
    value: bytes | None = None


class AttributeAsked(NamedTuple):
    """An attribute that C_GetAttributeValue was asked for.

    Attributes:
        value: whether the caller wanted the value; else its length alone.
        length: what the module answered; None where it gave nothing, or did not answer.
    """

    type: int
    value: bool
    length: int | None


@dataclass(frozen=True)
class Call:
    """One call of one process. Names of parameters are the header's (p11-kit/pkcs11.h).

    Attributes:
        sequence: number of the call in its process, from 1.
        rv: what the caller got; None where the call has not returned.
        real: what the real module answered; None where it was not called, or has not answered.
        parameter: of the mechanism: its bytes; for the *_ENCRYPT_DATA derivations the data, behind the IV for CBC.
        query: the caller gave no buffer, and asked for the length alone.
        numbers: plain numbers, such as `pin_len`; lengths that the call answered too, such as `wrapped_key_len`.
        objects: handles passed in, such as `key`, `wrapping_key`, `base_key`, `object`.
        made: handles that the real module answered, such as `private_key`, even if the caller got an error.
        fault: such as "after 48", where a fault was due.
        held: it was held.
    """

    pid: int
    tid: int
    sequence: int
    function: str
    rv: int | None
    real: int | None
    session: int | None = None
    mechanism: int | None = None
    parameter: bytes = b""
    query: bool = False
    numbers: Mapping[str, int] = field(default_factory=dict)
    objects: Mapping[str, int] = field(default_factory=dict)
    made: Mapping[str, int] = field(default_factory=dict)
    found: tuple[int, ...] = ()
    templates: Mapping[str, tuple[AttributeIn, ...]] = field(default_factory=dict)
    asked: tuple[AttributeAsked, ...] = ()
    fault: str = ""
    held: bool = False


class Hold:
    """A call of some process that stands, or will stand, before its work."""

    def __init__(self, shim: "Shim", which: Which) -> None:
        self._shim, self._which = shim, which
        # Open at both ends, so that no process ever waits for this test to open one.
        self._held, self._released = (os.open(shim.directory / name, os.O_RDWR | os.O_CLOEXEC) for name in FIFOS)

    def arm(self) -> None:
        """Holds the next such call too."""
        self._shim.plan("hold", self._which.plan(When.BEFORE, "hold"))

    def wait(self) -> int:
        """The process that stands inside the call."""
        readable, _, _ = select.select([self._held], [], [], WAIT)
        assert readable, "nobody came to the call"
        return int(os.read(self._held, 16))

    def release(self) -> None:
        """Lets one held call go on."""
        os.write(self._released, b"\n")

    def close(self) -> None:
        """Lets every held call go on."""
        self._shim.withdraw("hold")
        os.close(self._held)
        os.close(self._released)


class Shim:
    """One directory for the modules of one appliance, in however many processes; made if it is not there."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self.directory = directory
        self._calls = directory / "calls"
        for name in FIFOS:
            os.mkfifo(directory / name)

    def environment(self, real: str | Path, reserved: str = "") -> dict[str, str]:
        """Variables for whoever loads the module.

        Args:
            real: path of the real module.
            reserved: for its C_Initialize, where it needs a string as pReserved.
        """
        variables = {"TEST_P11_REAL": str(real), "TEST_P11_SHIM": str(self.directory)}
        return {**variables, "TEST_P11_INIT_RESERVED": reserved} if reserved else variables

    def log(self) -> list[Call]:
        """Every call so far, in the order in which they began."""
        *lines, _ = self._calls.read_bytes().split(b"\n") if self._calls.exists() else [b""]
        begun: dict[tuple[int, int], dict[str, Any]] = {}
        for line in lines:
            record = json.loads(line)
            call = (record["pid"], record["sequence"])
            if "begin" in record:
                begun[call] = record
            elif call in begun:  # else the log was cleared while it was in work
                begun[call] |= record
        return [_call(record) for record in begun.values()]

    def clear_log(self) -> None:
        """Forgets the calls so far."""
        if self._calls.exists():
            os.truncate(self._calls, 0)

    def logins(self) -> int:
        """How often any process called C_Login, whatever came of it."""
        return sum(call.function == "C_Login" for call in self.log())

    def arm(self, fault: Fault) -> None:
        """Plans a fault.

        Raises:
            FileExistsError: one is planned already.
        """
        what = fault.what.value if isinstance(fault.what, End) else str(int(fault.what))
        self.plan("fault", fault.which.plan(fault.when, what, lasting=fault.lasting))

    @property
    def armed(self) -> bool:
        """Whether a fault is planned that no process has come to, or one that lasts."""
        return (self.directory / "fault").is_symlink()

    def disarm(self) -> None:
        """Withdraws the fault, where it is still planned."""
        self.withdraw("fault")

    @contextmanager
    def hold(self, which: Which) -> Iterator[Hold]:
        """That call is held, until `release` or the end of this context; one such context at a time."""
        hold = Hold(self, which)
        try:
            hold.arm()
            yield hold
        finally:
            hold.close()

    def plan(self, place: str, text: str) -> None:
        """Puts a plan where the module looks: a symbolic link, so that it is whole as soon as it is there."""
        (self.directory / place).symlink_to(text)

    def withdraw(self, place: str) -> None:
        """Takes away a plan that no process has come to."""
        (self.directory / place).unlink(missing_ok=True)


def _call(record: Mapping[str, Any]) -> Call:
    def named(kind: str) -> dict[str, Any]:
        return {key.partition(".")[2]: value for key, value in record.items() if key.startswith(f"{kind}.")}

    numbers, made = named("number"), named("made")
    session = numbers.pop("session", made.pop("session", None))
    outcome = record.get("outcome", [-1] * len(record.get("asked", ())))
    return Call(
        pid=record["pid"],
        tid=record["tid"],
        sequence=record["sequence"],
        function=record["begin"],
        rv=record.get("rv"),
        real=record.get("real"),
        session=session,
        mechanism=record.get("mechanism"),
        parameter=bytes.fromhex(record.get("parameter", "")),
        query=record.get("query", False),
        numbers=numbers,
        objects=named("object"),
        made=made,
        found=tuple(record.get("found", ())),
        templates={name: tuple(map(_attribute, values)) for name, values in named("template").items()},
        asked=tuple(
            AttributeAsked(kind, value, None if length < 0 else length)
            for (kind, value), length in zip(record.get("asked", ()), outcome, strict=True)
        ),
        fault=record.get("fault", ""),
        held=record.get("held", False),
    )


def _attribute(values: list[Any]) -> AttributeIn:
    kind, length, *shown = values
    return AttributeIn(kind, length, bytes.fromhex(shown[0]) if shown else None)
