"""What is asked often does not wait behind what takes long."""

import asyncio
import threading
from typing import Any

import pytest

from appliance.ledger import Ledger, queries
from tests.ledger.samples import DIGEST, ISSUER, make_ready, order

WAIT = 10
"""Seconds; much more than anything here takes."""


async def test_find_answers_while_the_ledger_is_counted(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = order()
    await make_ready(ledger, wanted)
    counting, go_on, count = threading.Semaphore(0), threading.Event(), queries.counts

    def slow(*arguments: Any) -> Any:
        counting.release()
        assert go_on.wait(WAIT)
        return count(*arguments)

    monkeypatch.setattr(queries, "counts", slow)
    asked = [asyncio.create_task(ledger.status()) for _ in range(10)]
    try:
        assert await asyncio.to_thread(counting.acquire, timeout=WAIT)
        async with asyncio.timeout(WAIT / 2):
            assert await ledger.find(ISSUER, wanted.request_id, DIGEST) is not None
        assert not counting.acquire(timeout=0.05), "one count at a time"
    finally:
        go_on.set()
        statuses = await asyncio.gather(*asked)
    assert [status.issuances["READY"] for status in statuses] == [1] * 10
