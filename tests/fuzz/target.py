"""What a target is made of: bytes go in; nothing comes out, or an exception, which is a finding."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from appliance.errors import REASONS, ApplianceError, Reason

Run = Callable[[bytes], None]


class Native(NamedTuple):
    """A search without Python.

    Args:
        compile: writes the program of libFuzzer for it.
        times: how many executions it has for each one of another target; they take so much less time.
    """

    compile: Callable[[Path], None]
    times: int


@dataclass(frozen=True)
class Target:
    """One thing to be fuzzed.

    Args:
        open: makes what it needs, for the life of a context, and answers the function that takes an input.
        seeds: good inputs to begin with.
        longest: bytes of an input; what is longer is the caller's to refuse.
        native: how `make fuzz` searches it, where that is not by running `open`'s function.
    """

    open: Callable[[], AbstractContextManager[Run]]
    seeds: Callable[[], Iterable[bytes]]
    longest: int = 4096
    native: Native | None = None


class Choices:
    """An input read as decisions; at its end every number is 0 and all bytes are empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def number(self, size: int = 1) -> int:
        """A number of so many bytes, big-endian."""
        return int.from_bytes(self.octets(size))

    def octets(self, size: int) -> bytes:
        """The next bytes, fewer where the input ends."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def chunk(self) -> bytes:
        """Bytes behind their length in two bytes."""
        return self.octets(self.number(2))

    def rest(self) -> bytes:
        """All that is left."""
        return self.octets(len(self._data))


def chunk(value: bytes) -> bytes:
    """What `Choices.chunk` reads."""
    return len(value).to_bytes(2) + value


@contextmanager
def refused_with(*reasons: Reason) -> Iterator[None]:
    """A refusal for one of these reasons is right; it says what is wrong and what to do."""
    try:
        yield
    except ApplianceError as refusal:
        assert refusal.reason in reasons, f"{refusal.reason} is none of {reasons}"
        require_documented(refusal.reason, refusal.detail, refusal.hint)


def require_documented(reason: str, detail: str, hint: str) -> None:
    """An error that a caller may see: a reason of the table, a sentence and a way out; and no defect of ours."""
    assert reason in set(REASONS) - {Reason.INTERNAL}, f"{reason!r}: {detail}"
    assert detail, f"{reason} says nothing"
    assert hint, f"{reason} gives no way out"
