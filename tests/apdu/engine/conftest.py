"""The engine in its two builds: the extension as it is installed, and core.c with sanitizers."""

from collections.abc import Iterator

import pytest

from appliance.apdu import engine
from tests.apdu.engine.core import Build, Core


@pytest.fixture(scope="session")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    with Core(tmp_path_factory.mktemp("core")) as core:
        yield core


@pytest.fixture(scope="session")
def builds(core: Core) -> tuple[Build, Build]:
    """Both, for random input: the specification is asked once."""
    return engine, core


@pytest.fixture(scope="session", params=["extension", "sanitized"])
def build(request: pytest.FixtureRequest) -> Build:
    if request.param == "extension":
        return engine
    core: Core = request.getfixturevalue("core")
    return core
