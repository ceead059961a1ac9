"""Compiles and drives the C programs that the engine is measured against."""

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

BARE_LOOP = Path(__file__).with_name("bare_loop.c")
APDU_LIMIT = Path(__file__).parents[3] / "shared/bench/apdu_limit.c"
"""Another bare loop, beside the project where it is there at all; ours must keep up with it."""
MULTIBUFFER = Path(__file__).with_name("multibuffer.c")
"""The engine's scripts with many SIMs side by side, by a library that need not be there."""
MULTIBUFFER_HEADER = Path("/usr/include/intel-ipsec-mb.h")
CORE = Path(__file__).parents[2] / "appliance/apdu/engine"
_FLAGS = ("-std=gnu11", "-O3", "-Wall", "-Wextra")


class Run(NamedTuple):
    """What one run did."""

    scripts: int
    seconds: float
    cpu_seconds: float
    best: float
    """CPU seconds for a script in the fastest batch."""


class BareLoop:
    """A process of bare_loop.c. Several can run at once: `begin` each, then `end` each."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        assert process.stdin is not None and process.stdout is not None
        self._ask: IO[str] = process.stdin
        self._told: IO[str] = process.stdout

    @property
    def pid(self) -> int:
        """Of the process, to say which core it has."""
        return self._process.pid

    def begin(self, seconds: float) -> None:
        """Render scripts for so long."""
        self._send(f"run {seconds}")

    def end(self) -> Run:
        """Waits for what `begin` began."""
        scripts, seconds, cpu_seconds, best = self._told.readline().split()
        return Run(int(scripts), float(seconds), float(cpu_seconds), float(best))

    def run(self, seconds: float) -> Run:
        """Both."""
        self.begin(seconds)
        return self.end()

    def script(
        self, k_enc: bytes, k_mac: bytes, host_challenge: bytes, counter: int, aid: bytes, payload: bytes
    ) -> bytes:
        """EXTERNAL AUTHENTICATE and every STORE DATA, joined."""
        inputs = (k_enc, k_mac, host_challenge, counter.to_bytes(3, "big"), aid, payload)
        self._send(" ".join(("script", *(value.hex() for value in inputs))))
        return bytes.fromhex(self._told.readline())

    def _send(self, line: str) -> None:
        self._ask.write(line + "\n")
        self._ask.flush()


@contextlib.contextmanager
def running(program: Path) -> Iterator[BareLoop]:
    """A process of the compiled program, ended afterwards."""
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="ascii") as process:
        yield BareLoop(process)


def told(program: Path, *arguments: object) -> list[float]:
    """The numbers that a program prints, in their order."""
    asked = [str(word) for word in (program, *arguments)]
    answer = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", answer)]


def compiled(source: Path, directory: Path, *flags: str) -> Path:
    """The program of a source, in this directory."""
    program = directory / source.stem
    directory.mkdir(parents=True, exist_ok=True)
    asked = ["pkg-config", "--cflags", "--libs", "libcrypto"]
    libcrypto = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["cc", *_FLAGS, str(source), "-o", str(program), *flags, *libcrypto], check=True)
    return program
