"""A migrated ledger in a file of its own."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from appliance.ledger import Ledger, migrate
from tests.ledger.samples import Clock

Sql = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def url(file: Path) -> str:
    migrate(f"sqlite:///{file}")
    return f"sqlite:///{file}"


@pytest.fixture
def ledger(url: str, clock: Clock) -> Iterator[Ledger]:
    opened = Ledger.open(url, clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def sql(file: Path) -> Sql:
    """Runs one statement on the file, past the ledger."""

    def run(statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()

    return run
