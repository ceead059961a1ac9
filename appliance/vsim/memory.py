"""The SIM's persistent memory: one immutable `State`, replaced as a whole.

A state file is what the chip's memory would be: it holds the SIM's keys in clear, for its owner alone (mode 0600),
and belongs to one program at a time.
"""

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

from appliance.vsim.package import Installed
from appliance.vsim.personalisation import Personalisation

FORMAT = "virtual-sim-1"
PIN_TRIES = 3
CODE_TRIES = 5

T = TypeVar("T")


@dataclass(frozen=True)
class State:
    """Everything a SIM remembers.

    The package counter outlives what was installed with it. `pin_check` is a MAC of the PIN, None until the PIN is set.
    """

    sim: Personalisation
    ca_certificate: bytes = b""
    sequence_counter: int = 0
    package_counter: int = 0
    installed: Installed | None = None
    pin_check: bytes | None = field(default=None, repr=False)
    pin_tries: int = PIN_TRIES
    code_tries: int = CODE_TRIES


class Memory:
    """A SIM's memory for the life of a process."""

    def __init__(self, state: State) -> None:
        self._state = state

    @property
    def state(self) -> State:
        """What is stored."""
        return self._state

    def store(self, state: State) -> None:
        """Replace what is stored.

        Raises:
            OSError: nothing was replaced.
        """
        self._state = state


class FileMemory(Memory):
    """A SIM's memory in a JSON file, written and synced before `store` returns.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a virtual SIM's.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(_decode(path))
        self._path = path

    @classmethod
    def create(cls, path: Path, state: State) -> "FileMemory":
        """Make a new file.

        Raises:
            FileExistsError: there is one already; it is left alone.
        """
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        _write(path, state)
        return cls(path)

    def store(self, state: State) -> None:
        """Replace the file atomically."""
        _write(self._path, state)
        super().store(state)


def _write(path: Path, state: State) -> None:
    # mkstemp makes the file 0600.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump({"format": FORMAT} | asdict(state), file, default=bytes.hex, indent=1)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _decode(path: Path) -> State:
    try:
        stored = json.loads(path.read_bytes())
        if stored.pop("format") != FORMAT:
            raise ValueError
        return _build(State, stored)
    except (ValueError, TypeError, KeyError, AttributeError):
        # Without the cause: its text could quote a key.
        raise ValueError(f"{path}: not the state file of a virtual SIM ({FORMAT})") from None


def _build(cls: type[T], stored: dict[str, Any]) -> T:
    """The dataclass that `asdict` and hexadecimal made `stored` from; every field must be there, and no other."""
    members: list[Any] = [_member(f.type, stored.pop(f.name)) for f in fields(cls)]  # type: ignore[arg-type]  # a dataclass
    if stored:
        raise ValueError
    return cls(*members)


def _member(declared: Any, value: Any) -> Any:
    if isinstance(declared, UnionType):
        declared = type(None) if value is None else get_args(declared)[0]
    if is_dataclass(declared):
        return _build(declared, value)  # type: ignore[arg-type]  # is_dataclass covers instances too
    if declared is bytes:
        return bytes.fromhex(value)
    return value if value is None else declared(value)
