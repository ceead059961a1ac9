"""What a machine lacks to build the extension is told in one line."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITHOUT_PYTHON_H = "import sysconfig; sysconfig.get_path = lambda name: '/nonexistent'; "
READ_SETUP = "import runpy, sys; sys.argv = ['setup.py', '--quiet', '--name']; runpy.run_path('setup.py')"


def build(environment: Mapping[str, str] = {}, before: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", before + READ_SETUP],
        cwd=ROOT,
        env=dict(os.environ) | dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_machine_with_everything_builds() -> None:
    assert build().returncode == 0


@pytest.mark.parametrize(
    ("environment", "before", "what"),
    [
        ({"PKG_CONFIG_LIBDIR": "/nonexistent", "PKG_CONFIG_PATH": ""}, "", "the headers of libcrypto, version 3"),
        ({"PATH": "/nonexistent"}, "", "gcc"),
        ({}, WITHOUT_PYTHON_H, "Python.h"),
    ],
)
def test_what_is_missing_is_told_in_one_line(environment: Mapping[str, str], before: str, what: str) -> None:
    ended = build(environment, before)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"appliance: the APDU engine cannot be built without {what}")
    assert "apt install" in line
