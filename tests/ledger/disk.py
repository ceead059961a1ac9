"""A disk that fails, stands still or kills at the n-th call on a ledger's files: the test's side of disk.c.

The calls are SQLite's own: pread64, pwrite64, fdatasync and ftruncate64 on the file, its write-ahead log and the
log's index.
"""

import errno
import mmap
import struct
import subprocess
import time
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

SOURCE: Final = Path(__file__).with_name("disk.c")
WAIT: Final = 60.0
"""Seconds until a test gives up on a call; a busy machine is no failure."""
CHANGES: Final = "wsct"
"""Kinds of the calls that change the files: write, sync, sync of a commit's pages in the log, truncate."""
FILE, LOG, INDEX = "b", "l", "m"
"""Last letters of the files' names: ledger.db, its write-ahead log, and the log's index."""
ALWAYS: Final = 2**31 - 1

# struct control of disk.c.
_FAULT: Final = struct.Struct("=4i8s4s")
_NUMBER: Final = struct.Struct("=i")
_STANDING, _COUNTED, _LOGGED, _CALLS = 28, 32, 36, 40
_MOST: Final = 16384
_FILES: Final = {FILE: "file", LOG: "log", INDEX: "index"}
_NAMES: Final = {"r": "read", "w": "write", "s": "sync", "c": "commit", "t": "truncate"}


class Action(IntEnum):
    """What happens to a call; the numbers are disk.c's."""

    FAIL_BEFORE = 1
    FAIL_AFTER = 2
    KILL_BEFORE = 3
    KILL_AFTER = 4
    HOLD_BEFORE = 5
    HOLD_AFTER = 6


class Fault(NamedTuple):
    """The calls `first` to `last` of these kinds on these files, from 1 and from when it is armed.

    `error` is for those that fail.
    """

    action: Action
    first: int = 1
    last: int = ALWAYS
    kinds: str = CHANGES
    files: str = FILE + LOG + INDEX
    error: int = errno.EIO


def compile_disk(directory: Path) -> Path:
    """The library to preload, compiled into this directory."""
    library = directory / "disk.so"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", *warnings, "-o", library, SOURCE, "-ldl"], check=True)
    return library


class Disk:
    """Beneath one ledger, for the programs that are started with its `environment`.

    Args:
        library: what `compile_disk` made.
        ledger: the ledger's file, there or not.
        durable: gets what a cut of the power would leave.
    """

    def __init__(self, library: Path, ledger: Path, durable: Path | None = None) -> None:
        control = ledger.with_name("disk.control")
        control.write_bytes(bytes(_CALLS + 2 * _MOST))
        with control.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self.environment = {
            "LD_PRELOAD": str(library),
            "TEST_DISK_FILE": str(ledger),
            "TEST_DISK_CONTROL": str(control),
            **({"TEST_DISK_DURABLE": str(durable)} if durable else {}),
        }

    def arm(self, fault: Fault) -> None:
        """From now on, and counted from now."""
        self.disarm()
        self._put(_COUNTED, 0)
        numbers = (fault.first, fault.last, fault.error)
        _FAULT.pack_into(self._memory, 0, 0, *numbers, fault.kinds.encode(), fault.files.encode())
        self._put(0, fault.action)

    def disarm(self) -> None:
        """No fault any more; what is held goes on."""
        self._put(0, 0)
        self._until(standing=0)

    def wait(self) -> None:
        """Returns when a call is held."""
        self._until(standing=1)

    def forget(self) -> None:
        """No fault any more; what was held here is dead."""
        self._put(_STANDING, 0)
        self.disarm()

    @property
    def counted(self) -> int:
        """Calls of the armed kinds since it was armed."""
        return self._get(_COUNTED)

    @property
    def calls(self) -> list[str]:
        """Every call so far, such as "write log"."""
        logged = self._get(_LOGGED)
        assert logged <= _MOST
        told = self._memory[_CALLS : _CALLS + 2 * logged].decode()
        return [f"{_NAMES[kind]} {_FILES[file]}" for kind, file in zip(told[::2], told[1::2], strict=True)]

    def _put(self, at: int, number: int) -> None:
        _NUMBER.pack_into(self._memory, at, number)

    def _get(self, at: int) -> int:
        return int(_NUMBER.unpack_from(self._memory, at)[0])

    def _until(self, standing: int) -> None:
        deadline = time.monotonic() + WAIT
        while self._get(_STANDING) != standing:
            assert time.monotonic() < deadline, f"{standing} calls standing: not within {WAIT:g} s"
            time.sleep(0.001)
