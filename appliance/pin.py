"""Reading the PIN from a terminal, a descriptor or an owner-only file, and wiping it. Standard library alone.

It stands in no argument, environment or setting; a message about it never holds any of it.
"""

import argparse
import getpass
import os
import stat
from pathlib import Path

PIN_BYTES = 255
"""More than any token takes."""


class PinUnavailable(Exception):  # noqa: N818 (a state of the world that callers handle, not a defect)
    """The PIN could not be read; the message says why and never holds any of it."""


def wipe(secret: bytearray) -> None:
    """Overwrites a secret in place."""
    secret[:] = bytes(len(secret))


def add_pin_options(parser: argparse.ArgumentParser) -> None:
    """Where `take_pin` finds the PIN; without either, it asks."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--pin-fd", type=int, metavar="N", help="read the PIN from this open file descriptor")
    source.add_argument("--pin-file", type=Path, metavar="FILE", help="read the PIN from an owner-only file on tmpfs")


def take_pin(arguments: argparse.Namespace) -> bytearray:
    """The PIN from where the options of `add_pin_options` say; the caller wipes it."""
    if arguments.pin_fd is not None:
        pin = read_pin(arguments.pin_fd)
        os.close(arguments.pin_fd)
        return pin
    return read_pin_file(arguments.pin_file) if arguments.pin_file else ask_pin()


def ask_pin() -> bytearray:
    """The PIN as it is typed at the terminal, unseen; the caller wipes it."""
    try:
        return _checked(bytearray(getpass.getpass("PIN of the token: "), "utf-8"))
    except EOFError:
        raise PinUnavailable("Nobody is there to type the PIN: hand it over as --help says.") from None


def read_pin(fd: int) -> bytearray:
    """The first line behind a descriptor, without its newline; the caller wipes it. Nothing may follow the line."""
    buffer, used = bytearray(PIN_BYTES + 2), 0
    try:
        with memoryview(buffer) as view:
            while b"\n" not in buffer and used < len(buffer) and (count := os.readv(fd, [view[used:]])):
                used += count
        pin = buffer[:used].partition(b"\n")[0].removesuffix(b"\r")
    except OSError as error:
        raise PinUnavailable(f"The PIN cannot be read: {error.strerror}.") from error
    finally:
        wipe(buffer)
    return _checked(pin)


def _checked(pin: bytearray) -> bytearray:
    if not 0 < len(pin) <= PIN_BYTES:
        wipe(pin)
        raise PinUnavailable(f"The PIN is empty or longer than {PIN_BYTES} bytes.")
    return pin


def read_pin_file(path: Path) -> bytearray:
    """The PIN from a regular file of this user that nobody else may read, and that is on no disk.

    Or of root, who may let this user alone read it by an access control list, as systemd does with credentials: the
    group's permissions are then the list's mask (acl(5)), and root's group has nobody else in it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise PinUnavailable(f"The PIN file cannot be opened: {error.strerror}.") from error
    try:
        status = os.fstat(fd)
        own = status.st_uid == os.geteuid() and not status.st_mode & 0o077
        roots = status.st_uid == status.st_gid == 0 and not status.st_mode & 0o007
        if not stat.S_ISREG(status.st_mode) or not (own or roots):
            raise PinUnavailable("The PIN file must be a regular file, owned by this user, with mode 0400 or 0600.")
        if _file_system(status.st_dev) not in {"tmpfs", "ramfs"}:
            raise PinUnavailable("The PIN file must be on a tmpfs, such as /run, where it never reaches a disk.")
        return read_pin(fd)
    finally:
        os.close(fd)


def _file_system(device: int) -> str:
    """Type of the mounted file system with this device number; "" where it is not listed (proc(5), mountinfo)."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == number:
            return source.split()[0]
    return ""
