"""A session on a new, empty token."""

from collections.abc import Iterator
from pathlib import Path

import pkcs11
import pytest

from appliance.demo import published
from appliance.hsm.making import initialise_token
from appliance.hsm.module import TokenSession
from tests.hsm.site import MODULE, Calls, use


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenSession]:
    """Logged in."""
    use(tmp_path, monkeypatch.setenv)
    token = initialise_token(MODULE, "CEREMONY", published.SO_PIN, published.PIN)
    session = TokenSession(token, published.PIN, Calls())
    yield session
    session.close()
    pkcs11.lib(MODULE).finalize()
