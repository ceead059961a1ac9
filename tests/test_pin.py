"""Where a PIN comes from, and what is refused as one."""

import contextlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import pin as pin_module
from appliance.pin import PinUnavailable, read_pin, read_pin_file

PIN = b"do-not-log-7319"
PROMPT = "PIN of the token: "


@pytest.fixture
def tmpfs_file() -> Iterator[Path]:
    path = Path(f"/dev/shm/pin-test-{os.getpid()}-{threading.get_ident()}")  # noqa: S108 (a tmpfs is the point)
    path.write_bytes(PIN + b"\n")
    path.chmod(0o400)
    yield path
    path.unlink()


def test_the_pin_is_read_from_an_owner_only_file_on_tmpfs(tmpfs_file: Path) -> None:
    assert read_pin_file(tmpfs_file) == PIN


@pytest.mark.parametrize(
    ("owner", "group", "mode", "refused"),
    [
        (os.geteuid(), 12345, 0o600, False),
        (os.geteuid(), 12345, 0o440, True),
        (os.geteuid(), 12345, 0o404, True),
        (0, 0, 0o440, False),  # as systemd leaves a credential where it has access control lists
        (0, 0, 0o444, True),
        (0, 12345, 0o440, True),
        (12345, 0, 0o440, True),
        (12345, 12345, 0o400, True),
    ],
)
def test_a_pin_file_that_others_may_read_is_refused(
    tmpfs_file: Path, monkeypatch: pytest.MonkeyPatch, owner: int, group: int, mode: int, refused: bool
) -> None:
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        _, ino, dev, nlink, _, _, *rest = real(fd)
        return os.stat_result((stat.S_IFREG | mode, ino, dev, nlink, owner, group, *rest))

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(PinUnavailable, match="0400") if refused else contextlib.nullcontext():
        assert read_pin_file(tmpfs_file) == PIN


def test_a_link_to_a_pin_file_is_refused(tmpfs_file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmpfs_file)
    with pytest.raises(PinUnavailable, match="cannot be opened"):
        read_pin_file(tmp_path / "link")


def test_a_pin_file_on_a_disk_is_refused(tmpfs_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pin_module, "_file_system", lambda _device: "ext4")  # this machine may have no disk to show
    with pytest.raises(PinUnavailable, match="tmpfs"):
        read_pin_file(tmpfs_file)


@pytest.mark.parametrize(
    ("given", "pin"),
    [(b"1234\n", b"1234"), (b"1234", b"1234"), (b"12 34\r\n", b"12 34"), (b"x" * 255 + b"\n", b"x" * 255)],
)
def test_a_pin_is_one_line(given: bytes, pin: bytes) -> None:
    assert from_pipe(given) == pin


@pytest.mark.parametrize("given", [b"", b"\n", b"x" * 256 + b"\n", b"x" * 1000])
def test_an_empty_or_endless_pin_is_refused(given: bytes) -> None:
    with pytest.raises(PinUnavailable, match="255"):
        from_pipe(given)


def test_a_descriptor_that_is_not_open_gives_no_pin() -> None:
    with pytest.raises(PinUnavailable, match="Bad file descriptor"):
        read_pin(-1)


@pytest.mark.parametrize(("typed", "told"), [(b"\n", "The PIN is empty"), (b"\x04", "Nobody is there")])
def test_a_terminal_at_which_no_pin_is_typed_gives_none(typed: bytes, told: str) -> None:
    ours, theirs = os.openpty()
    code = "from appliance.pin import ask_pin; ask_pin()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as asking:
        assert asking.stderr is not None
        assert asking.stderr.read(len(PROMPT)) == PROMPT  # what is typed before it is thrown away
        os.write(ours, typed)
        assert f"PinUnavailable: {told}" in asking.stderr.read()
    os.close(ours)
    os.close(theirs)


def from_pipe(given: bytes) -> bytes:
    reader, writer = os.pipe()
    try:
        os.write(writer, given)
        os.close(writer)
        return bytes(read_pin(reader))
    finally:
        os.close(reader)
