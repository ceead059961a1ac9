"""What the tests of the front share; tests/issuing and tests/client take it from here."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from appliance.config import Settings, Tls
from appliance.ledger import migrate

from . import site
from .fake_vault import FakeVault


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    site.make_identities(directory)
    return directory


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "ledger.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sockets() -> Iterator[Path]:
    # Not tmp_path: the path of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="vaults-") as directory:
        yield Path(directory)


@pytest.fixture
def settings(tmp_path: Path, tls: Path, sockets: Path, migrated: Path) -> Settings:
    shutil.copy(migrated, tmp_path / "ledger.db")
    return site.settings(tmp_path, tls, sockets)


@pytest.fixture
def own_tls(settings: Settings, tls: Path, tmp_path: Path) -> Settings:
    """Settings whose TLS files are this test's own, to be spoilt."""
    shutil.copytree(tls, tmp_path / "tls")
    files = Tls(*(tmp_path / "tls" / name for name in ("server.pem", "server.key", "ca.pem")))
    return site.with_front(settings, tls=files)


@pytest.fixture
async def vault(sockets: Path) -> AsyncIterator[FakeVault]:
    async with FakeVault(sockets) as vault:
        yield vault


@pytest.fixture
async def front(settings: Settings, vault: FakeVault) -> AsyncIterator[site.Front]:  # noqa: ARG001 (must serve)
    """A front with one vault, ready."""
    async with site.serving(settings) as front:
        await site.until_ready(front)
        yield front
