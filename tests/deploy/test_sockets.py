"""Who reaches a vault that runs: its own user, the front's group, and nobody else at any moment."""

import errno
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.demo import published
from tests.path.programs import Vaults
from tests.path.site import set_up

from .inotify import ATTRIBUTES_CHANGED, CREATED, Event, Watch
from .users import FRONT, PYTHON, STRANGER, give_to_group, run_as

SETTINGS_FRAME = 4
"""What a gRPC server says first: RFC 9113, 6.5."""
CONNECT = r"""
import socket, sys
with socket.socket(socket.AF_UNIX) as door:
    try:
        door.connect(sys.argv[1])
    except OSError as error:
        sys.exit(error.errno)
    door.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    print(door.recv(9)[3])
"""
BIND = """
import socket, sys
with socket.socket(socket.AF_UNIX) as door:
    try:
        door.bind(sys.argv[1])
    except OSError as error:
        sys.exit(error.errno)
"""
UNLINK = """
import os, sys
try:
    os.unlink(sys.argv[1])
except OSError as error:
    sys.exit(error.errno)
"""


@dataclass
class Node:
    """A vault that serves, and what happened in its socket directory until it did."""

    socket: Path
    events: list[Event]

    def run(self, user: int, group: int, code: str, path: Path | None = None) -> "subprocess.CompletedProcess[bytes]":
        """This code as another user."""
        return run_as(user, group, PYTHON, "-I", "-c", code, str(path or self.socket))


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    # Not in pytest's directory, which only its owner may enter: the socket directory itself must refuse.
    base = Path(tempfile.mkdtemp(prefix="deploy-", dir="/tmp"))
    try:
        base.chmod(0o755)
        set_up(base / "demo")
        sockets = base / "sockets"
        sockets.mkdir()
        give_to_group(sockets, FRONT, 0o2750)
        settings = base / "demo" / "appliance.toml"
        text = settings.read_text("utf-8").replace(f'"{base}/demo/sockets"', f'"{sockets}"')
        settings.write_text(text, "utf-8")
        with Watch(sockets) as watch:
            vaults = Vaults(base / "demo" / "log", settings, published.PIN)
            try:
                vaults.next("vault ready")
                [socket] = sockets.glob("*.sock")
                yield Node(socket, watch.events())
            finally:
                vaults.end()
    finally:
        shutil.rmtree(base)


def test_another_user_cannot_reach_a_vault(node: Node) -> None:
    assert node.run(STRANGER, STRANGER, CONNECT).returncode == errno.EACCES


def test_the_fronts_group_reaches_a_vault(node: Node) -> None:
    done = node.run(FRONT, FRONT, CONNECT)
    assert (done.returncode, int(done.stdout)) == (0, SETTINGS_FRAME), done.stderr


def test_a_socket_refuses_another_user_though_the_directory_were_open(node: Node) -> None:
    give_to_group(node.socket.parent, FRONT, 0o2755)
    try:
        assert node.run(STRANGER, STRANGER, CONNECT).returncode == errno.EACCES
    finally:
        give_to_group(node.socket.parent, FRONT, 0o2750)


def test_the_front_can_neither_take_a_vaults_place_nor_remove_it(node: Node) -> None:
    assert node.run(FRONT, FRONT, BIND, node.socket.with_name("v0-9999999999999.sock")).returncode == errno.EACCES
    assert node.run(FRONT, FRONT, UNLINK).returncode == errno.EACCES


def test_a_socket_is_never_more_open_than_in_the_end(node: Node) -> None:
    """Its mode was never changed, so it was made as it is."""
    assert [event.mask for event in node.events if event.name == node.socket.name] == [CREATED]
    assert not any(event.mask & ATTRIBUTES_CHANGED for event in node.events)
    status = node.socket.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, node.socket.parent.stat().st_gid)
