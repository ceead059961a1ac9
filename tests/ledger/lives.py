"""A program that lives an issuance again and again, each life in a process of its own.

`python -m tests.ledger.lives URL` says "ready" when it is. A line on its standard input begins a life: its words are
the kind of life and, for one that is to be killed between two statements, the number of the statement, else 0. A line
on its standard output tells of its end, as JSON: what it said, and how it ended. Lives are forked, so that each costs
a few milliseconds.

A life says "RESERVED counter serial", "READY answer", "ACTIVE answer" and "CLOSED" after each was acknowledged,
"REFUSED reason detail" for a call that it has to repeat, and "AT statement" before it is killed there.
"""

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool

from appliance.errors import ApplianceError
from appliance.ledger import Ledger, database, migrate
from appliance.ledger.store import utc_now
from tests.ledger.samples import DIGEST, ISSUER, TSM, answer, order, package

TRIES = 4
"""More than any single fault spoils."""
REQUEST_ID, RECEIPT_ID = "5d3c8b0e-6f0b-4c57-9d1e-0a6a3f1c7b21", "b7f3a1d0-22c4-4f5e-8b8c-5b8d2e9f6a12"
ORDER = order("person-1", sim=1, request_id=REQUEST_ID)

Say = Callable[..., None]


async def issue(ledger: Ledger, say: Say = lambda *_: None) -> tuple[str, bytes]:
    """Id and answer of the issuance, made or finished as the use case does it."""
    reserved = await ledger.reserve(ISSUER, ORDER, DIGEST)
    if reserved.attempt is None:
        assert reserved.answer is not None
        made = reserved.answer
    else:
        say("RESERVED", reserved.attempt.counter, reserved.attempt.serial.hex())
        sealed = package(reserved.record, reserved.attempt).encode()
        made = await ledger.complete(reserved.attempt, sealed, answer)
    say("READY", made.hex())
    return reserved.record.id, made


async def activate(ledger: Ledger, issuance: str) -> bytes:
    """The answer to its receipt."""
    return await ledger.activate(TSM, RECEIPT_ID, DIGEST, issuance, answer)


async def _repeated(call: Callable[[], Awaitable[Any]], say: Say) -> Any:
    for _ in range(TRIES):
        try:
            return await call()
        except ApplianceError as error:
            say("REFUSED", error.reason, error.detail)
    raise AssertionError("refused too often")


async def _opened(engine: Engine) -> Ledger:
    with database.translated_errors():
        return Ledger(engine, utc_now)


async def _issue_and_activate(engine: Engine, say: Say) -> None:
    with closing(await _repeated(lambda: _opened(engine), say)) as ledger:
        issuance, _ = await _repeated(lambda: issue(ledger, say), say)
        say("ACTIVE", (await _repeated(lambda: activate(ledger, issuance), say)).hex())
    say("CLOSED")


async def _migrate_and_open(engine: Engine, say: Say) -> None:
    url = str(engine.url)
    await _repeated(lambda: asyncio.to_thread(migrate, url), say)
    (await _repeated(lambda: asyncio.to_thread(Ledger.open, url), say)).close()
    say("CLOSED")


_LIVES = {"issue": _issue_and_activate, "migrate": _migrate_and_open}


def _die_at(point: int, say: Say) -> None:
    """The process is killed before the point-th statement, or after a commit when its connection is given back."""
    left = point

    def come(what: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            say("AT", what)
            os.kill(os.getpid(), signal.SIGKILL)

    @event.listens_for(Engine, "before_cursor_execute")
    def _(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        come(" ".join(statement.split()[:3]))

    event.listen(Engine, "commit", lambda _: come("COMMIT"))
    event.listen(Pool, "checkin", lambda *_: come("the connection is given back"))


def _live(engine: Engine, kind: str, point: int, told: int) -> None:
    def say(*words: object) -> None:
        os.write(told, " ".join(map(str, words)).encode() + b"\n")

    if point:
        _die_at(point, say)
    asyncio.run(_LIVES[kind](engine, say))


def _fork(engine: Engine, kind: str, point: int) -> dict[str, object]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        os.close(reader)
        with suppress(BaseException):
            _live(engine, kind, point, writer)
            status = 0
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as told:
        said = told.read().splitlines()
    return {"said": said, "status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


def main(url: str) -> None:
    """Lives until the input ends."""
    # With the statements that a first life prepares, the others cost a fraction.
    engine = database.connect(url)
    for life in (_migrate_and_open, _issue_and_activate):
        asyncio.run(life(engine, lambda *_: None))
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        kind, point = line.split()
        print(json.dumps(_fork(engine, kind, int(point))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
