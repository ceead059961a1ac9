"""A ledger on a file system that is made read-only and writable again: `python -m tests.ledger.read_only DIRECTORY`.

It mounts, so it wants a mount namespace of its own. Root may write to any file but one on such a mount.
"""

import asyncio
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, Reason
from appliance.ledger import Ledger, migrate
from tests.ledger.samples import DIGEST, ISSUER, make_ready, order

POOL = 5
REQUEST_ID = str(uuid.uuid4())


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """Whatever opens it from now on may not write to it, as after a disk's error; what was open stays as it was."""
    subprocess.run(["mount", "--bind", place, place], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,bind,rw", place], check=True)


def assert_not_opened(url: str) -> None:
    with pytest.raises(ApplianceError) as caught:
        Ledger.open(url)
    assert caught.value.reason is Reason.LEDGER_UNAVAILABLE
    assert "cannot be written to" in caught.value.detail
    assert caught.value.hint == "Let the front's user write to the ledger's file and its directory."


async def main(directory: Path) -> None:
    file = directory / "ledger.db"
    url = f"sqlite:///{file}"
    migrate(url)
    for place in (directory, file):
        with read_only(place):
            assert_not_opened(url)

    with closing(Ledger.open(url)) as ledger:
        await make_ready(ledger, order("before", sim=1))
        with read_only(file), ExitStack() as readers:
            for _ in range(POOL):  # all that there are, and new ones, which SQLite opens for reading alone
                readers.enter_context(ledger._engine.connect())
        told = Counter[Reason]()
        for _ in range(2 * POOL):
            try:
                await ledger.reserve(ISSUER, order("after", sim=4, request_id=REQUEST_ID), DIGEST)
            except ApplianceError as error:
                assert "SQLITE_READONLY" in error.detail
                assert not ledger.commits
                told[error.reason] += 1
        assert ledger.commits
        assert 0 < told.pop(Reason.LEDGER_UNAVAILABLE) < POOL, "each connection is given up when it has failed once"
        assert not told


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
