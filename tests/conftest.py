"""Settings of every test: hypothesis has no deadline, because the machine may be busy; and what is compiled once."""

from pathlib import Path

import pytest
from hypothesis import settings

from .ledger.disk import compile_disk
from .shim import compile_module

settings.register_profile("appliance", deadline=None)
settings.load_profile("appliance")


@pytest.fixture(scope="session")
def shim_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The PKCS#11 module of tests/shim, compiled once in each worker."""
    return compile_module(tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="session")
def disk_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands between a program and its ledger's disk (tests/ledger/disk.c), compiled once in each worker."""
    return compile_disk(tmp_path_factory.mktemp("disk"))
