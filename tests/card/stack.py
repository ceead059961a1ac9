"""A PC/SC stack of its own for one test: pcscd, vpcd's reader, and a virtual SIM in it.

Everything lives in private mount, network and process namespaces, so stacks run side by side on vpcd's fixed port.
The first process in there waits on a pipe from here: when this side ends, in whatever way, the kernel ends all of it.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]
# Where Debian keeps what each comes from: program, package.
PROGRAMS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "mount": "mount",
    "pcscd": "pcscd",
    "scriptor": "pcsc-tools",
    "opensc-tool": "opensc",
    "pkcs11-tool": "opensc",
    "openssl": "openssl",
}
LIBRARIES = {"*/opensc-pkcs11.so": "opensc-pkcs11", "pcsc/drivers/serial/libifdvpcd.so": "vsmartcard-vpcd"}
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
READY_SECONDS = 20.0

_INSIDE = """
set -e
ip link set lo up
mount -t tmpfs tmpfs /run
mkdir /run/pcscd
pcscd -f >{log}/pcscd.log 2>&1 &
{python} -m appliance.vsim.command serve --state {state} --wait 10 >{log}/vsim.log 2>&1 &
cat
"""


class StackError(Exception):
    """The stack cannot be had; the message says what is missing or what the programs in it said."""


class CardStack:
    """A reader with the SIM of a state file in it.

    >>> with CardStack(tmp_path / "sim.json", tmp_path) as card:
    ...     card.run("scriptor", "script.txt").stdout

    Args:
        state: state file of a virtual SIM; the stack changes it, so read it after the stack has ended.
        folder: where logs go, and where programs run.
    """

    def __init__(self, state: Path, folder: Path) -> None:
        self._state = state.absolute()
        self._folder = folder.absolute()
        self._process: subprocess.Popen[bytes] | None = None
        self._enter: list[str] = []

    def __enter__(self) -> Self:
        for program, package in PROGRAMS.items():
            if shutil.which(program, path=PATH) is None:
                raise StackError(f"{program} is not installed: apt install {package}")
        for library, package in LIBRARIES.items():
            if _library(library) is None:
                raise StackError(f"/usr/lib/{library} is not installed: apt install {package}")
        root = os.geteuid() == 0
        inside = _INSIDE.format(
            log=shlex.quote(str(self._folder)),
            python=shlex.quote(sys.executable),
            state=shlex.quote(str(self._state)),
        )
        with (self._folder / "stack.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "-mnp" if root else "-Urmnp", "--fork", "--kill-child", "sh", "-c", inside],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PATH": PATH},
                start_new_session=True,
            )
        try:
            self._wait_until_ready(root)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything in the stack and wait for it."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(10)
            self._process = None

    def run(self, *command: str, stdin: bytes = b"", timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a program inside and wait for it; its exit code is the caller's to judge."""
        done = subprocess.run(
            [*self._enter, *command],
            input=stdin,
            capture_output=True,
            env={**os.environ, "PATH": PATH},
            timeout=timeout,
        )
        return subprocess.CompletedProcess(command, done.returncode, _text(done.stdout), _text(done.stderr))

    def pkcs11(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `pkcs11-tool` with OpenSC's module."""
        return self.run("pkcs11-tool", "--module", str(_library("*/opensc-pkcs11.so")), *arguments)

    def _wait_until_ready(self, root: bool) -> None:
        """Until the reader has powered the card."""
        assert self._process is not None
        give_up = time.monotonic() + READY_SECONDS
        said = ""
        while time.monotonic() < give_up and self._process.poll() is None:
            if first := _only_child(self._process.pid):
                flags = ["-m", "-n", "-p"] if root else ["-U", "-m", "-n", "-p", "--preserve-credentials"]
                self._enter = ["nsenter", "-t", first, f"--wd={self._folder}", *flags]
                answer = self.run("opensc-tool", "--atr")
                if answer.returncode == 0:
                    return
                said = answer.stderr
            time.sleep(0.05)
        logs = "".join(f"\n{log.name}: {log.read_text()}" for log in sorted(self._folder.glob("*.log")))
        raise StackError(f"no card in the reader: {said}{logs}")


def _only_child(pid: int) -> str:
    """The process id of what `unshare` forked, "" until it has."""
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()
    except OSError:
        return ""


def _library(pattern: str) -> Path | None:
    return next(Path("/usr/lib").glob(pattern), None)


def _text(output: bytes) -> str:
    return output.decode("utf-8", "replace")
