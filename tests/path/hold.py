"""Holding a vault inside a PKCS#11 call: the test's side of holding_module.c."""

import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .programs import WAIT

SOURCE: Final = Path(__file__).with_name("holding_module.c")
WRAP, RSA_KEY_PAIR = "wrap", "keypair_rsa"
"""Calls that can be held. Every vault wraps a throwaway key while it starts; RSA keys it makes for requests alone."""


def compile_module(directory: Path) -> Path:
    """The module, compiled into this directory."""
    include = subprocess.run(["pkg-config", "--cflags", "p11-kit-1"], capture_output=True, text=True, check=True).stdout
    module = directory / "holding_module.so"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", "-shared", "-fPIC", *warnings, *include.split(), "-o", module, SOURCE, "-ldl"], check=True)
    return module


class Hold:
    """The directory that a site's module looks into; one hold at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("held", "released"):
            os.mkfifo(directory / name)

    @contextmanager
    def armed(self, call: str) -> Iterator["Hold"]:
        """The next such call of any vault is held, until `release` or the end of this context."""
        # Open at both ends, so that no vault ever waits for this test to open one.
        self._held = os.open(self.directory / "held", os.O_RDWR | os.O_CLOEXEC)
        self._released = os.open(self.directory / "released", os.O_RDWR | os.O_CLOEXEC)
        self.arm(call)
        try:
            yield self
        finally:
            (self.directory / call).unlink(missing_ok=True)
            os.close(self._held)
            os.close(self._released)

    def arm(self, call: str) -> None:
        """Holds the next such call too."""
        (self.directory / call).touch()

    def wait(self) -> int:
        """The process that stands inside the call."""
        readable, _, _ = select.select([self._held], [], [], WAIT)
        assert readable, "no vault came to the call"
        return int(os.read(self._held, 16))

    def release(self) -> None:
        """Lets the held call go on."""
        os.write(self._released, b"\n")

    @property
    def logins(self) -> int:
        """How often any vault called C_Login."""
        log = self.directory / "logins"
        return len(log.read_bytes()) if log.exists() else 0
