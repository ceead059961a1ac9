"""Build entry for setuptools: the C extension; everything else stands in pyproject.toml.

What this machine lacks is told in one line.
"""

import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ENGINE = "appliance/apdu/engine"
DEBIAN = "gcc libc6-dev libssl-dev pkg-config python3-dev"


def libcrypto(option: str) -> list[str]:
    """What pkg-config says of libcrypto 3 or later: directories or libraries."""
    told = subprocess.run(["pkg-config", option, "libcrypto >= 3"], capture_output=True, text=True, check=False)  # noqa: S603, S607 (a constant command)
    if told.returncode:
        raise missing("the headers of libcrypto, version 3 or later")
    return [flag[2:] for flag in told.stdout.split()]


def missing(what: str) -> SystemExit:
    """Ends the build."""
    return SystemExit(f"appliance: the APDU engine cannot be built without {what}; on Debian: apt install {DEBIAN}")


for program in ("gcc", "pkg-config"):
    if not shutil.which(program):
        raise missing(program)
if not Path(sysconfig.get_path("include"), "Python.h").exists():
    raise missing("Python.h")

setup(
    ext_modules=[
        Extension(
            f"{ENGINE}/_native".replace("/", "."),
            sources=[f"{ENGINE}/core.c", f"{ENGINE}/module.c"],
            depends=[f"{ENGINE}/core.h"],
            include_dirs=libcrypto("--cflags-only-I"),
            library_dirs=libcrypto("--libs-only-L"),
            libraries=libcrypto("--libs-only-l"),
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            extra_compile_args=["-std=c11", "-O3", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"],
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
