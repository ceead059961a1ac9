"""A vault's place in the socket directory: one slot, one incarnation in it, one socket `v<slot>-<generation>.sock`.

The directory's mode decides who reaches the vaults; its owner alone may write there. A lock, held for as long as the
process lives, keeps two vaults out of one slot, so that whatever sockets the slot still has are a dead vault's.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import ApplianceError, Reason

_LONGEST_PATH = 107
"""Bytes: sockaddr_un.sun_path without its final zero, unix(7)."""
_SOCKET_UMASK = 0o117
"""Sockets of mode 0660."""


@contextmanager
def claimed(directory: Path, slot: int, generation: int) -> Iterator[Path]:
    """The path for this incarnation's socket, the slot being nobody else's within the context.

    Raises:
        ApplianceError: SETTINGS_INVALID where the directory cannot be used; DRAINING where the slot is still held.
    """
    path = directory / f"v{slot}-{generation}.sock"
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise _unusable(f"The socket path {path} is longer than {_LONGEST_PATH} bytes.", "Choose a shorter directory.")
    try:
        status = directory.stat()
        lock = os.open(directory / f"v{slot}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unusable(f"{directory}: {error.strerror}.", "Make it, writable by the vaults' user alone.") from error
    try:
        if status.st_uid != os.geteuid() or status.st_mode & 0o027:
            raise _unusable(
                f"{directory} is another user's, or others may enter it, or its group may write to it.",
                "Let it be the vaults' user's, with the front's group and mode 2750.",
            )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ApplianceError(
                Reason.DRAINING,
                f"Another vault still holds slot {slot}.",
                hint="It is tried again; are the vaults running twice?",
                slot=slot,
            ) from error
        for stale in directory.glob(f"v{slot}-*.sock"):
            stale.unlink(missing_ok=True)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(lock)


@contextmanager
def socket_mode() -> Iterator[None]:
    """Sockets bound within get mode 0660. The umask is the process's: bind nothing else meanwhile."""
    before = os.umask(_SOCKET_UMASK)
    try:
        yield
    finally:
        os.umask(before)


def _unusable(detail: str, hint: str) -> ApplianceError:
    return ApplianceError(Reason.SETTINGS_INVALID, detail, hint=hint, field="vault.socket_directory")
