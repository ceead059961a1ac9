"""`appliance run`: vaults and front of one node as one user, for demo and tests. Production runs them as two services.

Each is a process group of its own, so that a terminal's interrupt reaches this process alone and the front drains
before its vaults stop.
"""

import argparse
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance.pin import PinUnavailable, ask_pin, read_pin, wipe
from appliance.supervisor import FINAL, harden


def main(argv: Sequence[str] | None = None) -> int:
    """Start vaults and front, and stop both on SIGTERM or SIGINT, the front first."""
    parser = argparse.ArgumentParser(prog="appliance run", description=main.__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the appliance's settings, appliance.toml")
    parser.add_argument("--pin-fd", type=int, metavar="N", help="read the PIN from this open file descriptor")
    arguments = parser.parse_args(argv)
    harden()
    try:
        pin = ask_pin() if arguments.pin_fd is None else read_pin(arguments.pin_fd)
    except PinUnavailable as error:
        sys.stderr.write(f"appliance run: {error}\n")
        return FINAL
    woken, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    vaults = _start_vaults(arguments.config, pin)
    front = _start(arguments.config, "serve")
    try:
        while vaults.poll() is None and front.poll() is None:
            select.select([woken], [], [])
            if set(os.read(woken, 64)) - {signal.SIGCHLD}:
                break
    finally:
        for process in (front, vaults):
            if process.poll() is None:
                process.terminate()
            process.wait()
    statuses: list[int] = [abs(process.returncode) for process in (vaults, front)]
    return max(statuses)


def _start_vaults(config: Path, pin: bytearray) -> "subprocess.Popen[bytes]":
    reader, writer = os.pipe()
    try:
        os.writev(writer, [pin, b"\n"])
    finally:
        os.close(writer)
        wipe(pin)
    try:
        return _start(config, "vaults", "--pin-fd", str(reader), pass_fds=(reader,))
    finally:
        os.close(reader)


def _start(config: Path, *command: str, pass_fds: tuple[int, ...] = ()) -> "subprocess.Popen[bytes]":
    name, *options = command
    return subprocess.Popen(  # noqa: S603 - this program itself
        [sys.executable, "-P", "-m", "appliance", name, "--config", str(config), *options],
        stdin=subprocess.DEVNULL,
        pass_fds=pass_fds,
        process_group=0,
    )
