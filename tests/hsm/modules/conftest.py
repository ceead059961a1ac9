"""`token`: each module's token in turn, as new."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hsm.modules.provision import TOKENS, Token


@pytest.fixture(params=TOKENS)
def token(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Token]:
    with TOKENS[request.param](tmp_path) as made:
        yield made
