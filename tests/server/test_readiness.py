"""Readiness and a ledger that does not work: it falls with a commit that fails or hangs, and comes back by itself."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from appliance.config import Settings
from appliance.errors import ApplianceError
from appliance.issuing.vaults import Vaults
from appliance.ledger import Ledger, committer, database
from appliance.server import readiness as module
from appliance.server.calls import Calls
from appliance.server.readiness import Readiness

from .fake_vault import FakeVault
from .site import WAIT


@asynccontextmanager
async def following(ledger: Ledger, sockets: Path) -> AsyncIterator[Readiness]:
    """Readiness over this ledger and a vault that serves, once it is ready."""
    async with FakeVault(sockets), Vaults(sockets) as vaults:
        await vaults.wait_ready(WAIT)
        readiness = Readiness(vaults, ledger, Calls({}, max_concurrent=1))
        task = asyncio.create_task(readiness.follow())
        await until(lambda: readiness.ready)
        yield readiness
        task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():
            await asyncio.sleep(0.01)


async def test_it_falls_with_the_first_failed_commit_and_comes_back_by_a_rehearsal(
    settings: Settings, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    file = database.file_of(settings.front.ledger)
    assert file
    with closing(Ledger.open(settings.front.ledger)) as ledger, capture_logs() as logs:
        async with following(ledger, sockets) as readiness:
            with closing(sqlite3.connect(file, isolation_level=None)) as other:
                other.execute("BEGIN EXCLUSIVE")
                with pytest.raises(ApplianceError):
                    await ledger._write(lambda _: None)
                assert not readiness.ready
                await until(lambda: told(logs, "ledger does not work") != [])
                other.execute("ROLLBACK")
            await until(lambda: readiness.ready)
    [wrong] = told(logs, "ledger does not work")
    assert "SQLITE_BUSY" in wrong["detail"] and "Another process holds the ledger" in wrong["detail"]
    assert {"ledger"} in [set(event["missing"]) for event in told(logs, "not ready")]


async def test_it_falls_while_a_commit_hangs_and_says_so(
    settings: Settings, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    with closing(Ledger.open(settings.front.ledger)) as ledger, capture_logs() as logs:
        async with following(ledger, sockets) as readiness:
            monkeypatch.setattr(committer, "HANG_SECONDS", 0.05)
            monkeypatch.setattr(module, "PROBE_TIMEOUT", 0.05)
            hanging = asyncio.create_task(ledger._write(lambda _: go_on.wait(WAIT)))
            await until(lambda: not readiness.ready)
            await until(lambda: told(logs, "ledger does not work") != [])
            go_on.set()
            assert await hanging
            await until(lambda: readiness.ready)
    assert told(logs, "ledger does not work")[0]["detail"] == "no answer within 0.05 s"


def told(logs: list[Any], event: str) -> list[Any]:
    """The lines of this event."""
    return [line for line in logs if line["event"] == event]
