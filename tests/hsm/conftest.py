"""A token per worker, made once by ceremonies; every test has a copy of its own."""

from collections.abc import Iterator
from pathlib import Path

import pkcs11
import pytest

from tests.hsm.site import MODULE, Calls, Site, build, use


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The worker's token."""
    directory = tmp_path_factory.mktemp("hsm")
    with pytest.MonkeyPatch.context() as patch:
        use(directory, patch.setenv)
        return build(directory)


@pytest.fixture
def site(prepared: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A test's own copy of the token, served by this process's module while the test runs."""
    copy = prepared.copied(tmp_path)
    use(tmp_path, monkeypatch.setenv)
    yield copy
    pkcs11.lib(MODULE).finalize()


@pytest.fixture
def calls() -> Calls:
    """Records the module calls of what is started with it."""
    return Calls()
