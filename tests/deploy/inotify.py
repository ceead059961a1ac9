"""What happened in a directory, as the kernel tells it (inotify(7))."""

import ctypes
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple, Self

CREATED: Final = 0x100
ATTRIBUTES_CHANGED: Final = 0x4
_EVENT: Final = struct.Struct("iIII")


class Event(NamedTuple):
    """One event of one name."""

    name: str
    mask: int


class Watch:
    """Keeps every creation, and every change of mode or owner, of what is in a directory."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._fd >= 0, os.strerror(ctypes.get_errno())
        watched = libc.inotify_add_watch(self._fd, os.fsencode(directory), CREATED | ATTRIBUTES_CHANGED)
        assert watched >= 0, os.strerror(ctypes.get_errno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def events(self) -> list[Event]:
        """Those since the last time."""
        try:
            data, found = os.read(self._fd, 65536), []
        except BlockingIOError:
            return []
        while data:
            _, mask, _, length = _EVENT.unpack_from(data)
            name, data = data[_EVENT.size : _EVENT.size + length], data[_EVENT.size + length :]
            found.append(Event(os.fsdecode(name.rstrip(b"\0")), mask))
        return found
