"""Throwaway tokens of three PKCS#11 modules; each is used by child processes alone, behind its own prefix."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from appliance.demo import published
from appliance.hsm.orders import ModuleParameters

ROOT: Final = Path(__file__).parents[3]
LABEL: Final = "JPKI TEST"
PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_LIBRARIES: Final = next(path for path in Path("/usr/lib").glob("*-linux-gnu") if (path / "libc.so.6").exists())
_ROOT_HERE: Final = os.geteuid() == 0

# openCryptoki's paths are built in, its tokens' locks are files and shared memory of the machine, and it wants a group.
_OPENCRYPTOKI_INSIDE = """
set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/lock/opencryptoki/swtok
mount --bind opencryptoki /var/lib/opencryptoki
mount --bind opencryptoki.conf /etc/opencryptoki/opencryptoki.conf
mount --bind group /etc/group
pkcsslotd -f >pkcsslotd.log 2>&1 &
until pkcsconf -i >/dev/null 2>&1; do kill -0 $!; sleep 0.02; done
echo ready
exec cat
"""


@dataclass(frozen=True)
class Token:
    """An initialised token with both PINs set and no objects, and how a process gets at it.

    Args:
        name: of the module: a key of `TOKENS`.
        module: as the appliance's settings name it.
        pin: the user's.
        so_pin: the security officer's; "" where the module has none once the user's PIN is set.
        environment: variables that the module wants, as in [module.environment] of the settings.
        prefix: what comes before any command that loads the module.
    """

    name: str
    module: ModuleParameters
    pin: str
    so_pin: str
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()

    def run(self, *command: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a program that may load the module, to its end; its exit code is the caller's to judge."""
        return subprocess.run(
            [*self.prefix, *command],
            cwd=ROOT,
            input=stdin,
            capture_output=True,
            text=True,
            env=self.variables,
            check=False,
        )

    @property
    def variables(self) -> dict[str, str]:
        """The whole environment for a process behind the prefix."""
        return {**os.environ, "PATH": PATH, **self.environment}

    def job(self, name: str, **arguments: Any) -> Any:
        """Run a function of `tests.hsm.modules.jobs` in a child process; answers what it answers, through JSON.

        A child that fails takes the test with it.
        """
        order = {"module": asdict(self.module), "pin": self.pin, "so_pin": self.so_pin, "arguments": arguments}
        done = self.run(sys.executable, "-m", "tests.hsm.modules.jobs", name, stdin=json.dumps(order))
        assert done.returncode == 0, f"{self.name}: job {name} ended with {done.returncode}:\n{done.stderr}"
        return json.loads(done.stdout)

    def _initialised(self, job: str) -> "Token":
        return replace(self, module=ModuleParameters(**self.job(job)))


class ProvisionError(Exception):
    """A module cannot be had here; the message says what is missing."""


@contextmanager
def softhsm(directory: Path) -> Iterator[Token]:
    """SoftHSM with a token directory of its own."""
    tokens = directory / "tokens"
    tokens.mkdir()
    settings = directory / "softhsm2.conf"
    settings.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
    path = library("softhsm/libsofthsm2.so", "softhsm2")
    token = Token("softhsm", _uninitialised(path), published.PIN, published.SO_PIN, {"SOFTHSM2_CONF": str(settings)})
    yield token._initialised("initialise")


@contextmanager
def nss(directory: Path) -> Iterator[Token]:
    """NSS softokn with a database of its own, which it is told of by C_Initialize's arguments."""
    arguments = (
        f"configdir='sql:{directory}' certPrefix='' keyPrefix='' secmod='secmod.db' flags= dbTokenDescription='{LABEL}'"
    )
    module = replace(_uninitialised(library("libsoftokn3.so", "libnss3")), arguments=arguments)
    # NSS's security officer has an empty PIN, and none any more once the user's is set.
    yield Token("nss", module, published.PIN, "")._initialised("initialise")


@contextmanager
def opencryptoki(directory: Path) -> Iterator[Token]:
    """openCryptoki's soft token with its daemon in namespaces of its own; all of it ends with this context."""
    (directory / "opencryptoki/swtok/TOK_OBJ").mkdir(parents=True)
    (directory / "opencryptoki.conf").write_text("version opencryptoki-3.1\nslot 0\n{\nstdll = libpkcs11_sw.so\n}\n")
    (directory / "group").write_text("root:x:0:\npkcs11:x:0:root\n")
    path = library("pkcs11/libopencryptoki.so", "opencryptoki")
    _program("pkcsslotd")
    flags = "-mip" if _ROOT_HERE else "-Urmip"
    with subprocess.Popen(
        [_program("unshare"), flags, "--fork", "--kill-child", "sh", "-c", _OPENCRYPTOKI_INSIDE],
        cwd=directory,
        env={**os.environ, "PATH": PATH},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        try:
            if process.stdout.readline() != "ready\n":
                log = directory / "pkcsslotd.log"
                said = log.read_text() if log.exists() else ""
                raise ProvisionError(f"no openCryptoki here: {process.stderr.read()}{said}")
            first = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().strip()
            into = ("-m", "-i", "-p") if _ROOT_HERE else ("-U", "-m", "-i", "-p", "--preserve-credentials")
            prefix = (_program("nsenter"), "-t", first, *into, f"--wd={ROOT}")
            # The token takes PINs of 4 to 8 characters.
            yield Token("opencryptoki", _uninitialised(path), "11112222", "33334444", prefix=prefix)._initialised(
                "initialise_opencryptoki"
            )
        finally:
            process.stdin.close()


TOKENS: Final[Mapping[str, Callable[[Path], AbstractContextManager[Token]]]] = MappingProxyType(
    {"softhsm": softhsm, "nss": nss, "opencryptoki": opencryptoki}
)
"""Each module's name, and what makes a token of it in a directory that is there and empty."""


def _uninitialised(path: Path) -> ModuleParameters:
    return ModuleParameters(str(path), LABEL, "")


def library(name: str, package: str) -> Path:
    """A shared library where Debian has it."""
    for directory in (Path("/usr/lib"), _LIBRARIES):
        if (directory / name).exists():
            return directory / name
    raise ProvisionError(f"{name} is not installed: apt install {package}")


def _program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        raise ProvisionError(f"{name} is not installed")
    return found
