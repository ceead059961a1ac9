"""Groups: one commit for all, a refusal for one; nobody is answered before it; what happened is read back."""

import asyncio
import threading
import uuid
from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import Connection, Engine, event, insert
from sqlalchemy.exc import OperationalError

from appliance.domain.audit import Event
from appliance.errors import ApplianceError, Reason
from appliance.ledger import Ledger, database
from appliance.ledger.change import Change
from appliance.ledger.committer import Committer
from appliance.ledger.schema import sims
from tests.ledger.conftest import Sql
from tests.ledger.samples import DIGEST, ISSUER, Clock, make_ready, order, refused


def write(change: Change, iccid: str) -> str:
    change.connection.execute(insert(sims), {"iccid": iccid, "last_counter": 1})
    change.record(Event.RESERVED, uuid.uuid4().hex, "test", iccid=iccid)
    return iccid


def refuse(change: Change, iccid: str) -> str:
    write(change, iccid)
    raise ApplianceError(Reason.TIME_INVALID, "No.", hint="")


def stumble(change: Change, iccid: str) -> str:
    write(change, iccid)
    raise ZeroDivisionError


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = database.connect(url)
    yield made
    made.dispose()


@pytest.fixture
def committer(engine: Engine, clock: Clock) -> Iterator[Committer]:
    made = Committer(engine, clock)
    yield made
    made.close()


class Gate:
    """Holds the committer inside a change, so that what is submitted meanwhile becomes one group."""

    def __init__(self, committer: Committer) -> None:
        self.inside, self.opened = threading.Event(), threading.Event()
        self.future = committer.submit(self._wait)
        assert self.inside.wait(10)

    def _wait(self, _change: Change) -> None:
        self.inside.set()
        assert self.opened.wait(10)


async def test_refused_change_does_not_fail_its_group(committer: Committer, engine: Engine, sql: Sql) -> None:
    commits = []
    event.listen(engine, "commit", lambda _: commits.append(1))
    gate = Gate(committer)
    works = {"a": write, "b": refuse, "c": write, "d": stumble, "e": write}
    futures = {name: committer.submit(partial(work, iccid=name)) for name, work in works.items()}
    doubled = committer.submit(partial(write, iccid="c"))
    gate.opened.set()
    assert [futures[name].result(10) for name in "ace"] == ["a", "c", "e"]
    refusal = futures["b"].exception(10)
    assert isinstance(refusal, ApplianceError)
    assert refusal.reason is Reason.TIME_INVALID
    assert isinstance(futures["d"].exception(10), ZeroDivisionError)
    broken_rule = doubled.exception(10)
    assert isinstance(broken_rule, ApplianceError)
    assert broken_rule.reason is Reason.INTERNAL
    assert len(commits) == 2, "one for the gate, one for the group"
    assert sql("SELECT iccid FROM sims ORDER BY iccid") == [("a",), ("c",), ("e",)]
    assert sql("SELECT number FROM audit") == [(1,), (2,), (3,)]


async def test_nobody_is_answered_before_the_commit(committer: Committer, engine: Engine) -> None:
    seen = []
    gate = Gate(committer)
    done, said_no = (committer.submit(lambda change: write(change, "a")), committer.submit(lambda c: refuse(c, "b")))
    event.listen(engine, "commit", lambda _: seen.append((done.done(), said_no.done())))
    gate.opened.set()
    assert done.result(10) == "a"
    assert isinstance(said_no.exception(10), ApplianceError)
    assert seen[-1] == (False, False)


def break_next_commit(engine: Engine, *, after_it_happened: bool) -> None:
    """The connection is lost: the commit ends in an error, and whether it happened is not known."""

    def lose(connection: Connection) -> None:
        event.remove(engine, "commit", lose)
        if after_it_happened:
            connection.connection.commit()
        raise OperationalError("COMMIT", {}, OSError("connection lost"))

    event.listen(engine, "commit", lose)


async def test_commit_that_happened_in_spite_of_its_error_is_answered(
    committer: Committer, engine: Engine, sql: Sql
) -> None:
    break_next_commit(engine, after_it_happened=True)
    assert committer.submit(lambda change: write(change, "a")).result(10) == "a"
    assert committer.submit(lambda change: write(change, "b")).result(10) == "b"
    assert sql("SELECT iccid FROM sims") == [("a",), ("b",)]


async def test_commit_that_did_not_happen_is_an_outage(committer: Committer, engine: Engine, sql: Sql) -> None:
    assert committer.submit(lambda change: write(change, "a")).result(10) == "a"
    break_next_commit(engine, after_it_happened=False)
    error = committer.submit(lambda change: write(change, "b")).exception(10)
    assert isinstance(error, ApplianceError)
    assert error.reason is Reason.LEDGER_UNAVAILABLE
    assert sql("SELECT iccid FROM sims") == [("a",)]
    assert committer.submit(lambda change: write(change, "b")).result(10) == "b"


async def test_group_that_left_no_entry_is_not_taken_for_committed(committer: Committer, engine: Engine) -> None:
    break_next_commit(engine, after_it_happened=False)
    error = committer.submit(lambda _: "an answer").exception(10)
    assert isinstance(error, ApplianceError)
    assert error.reason is Reason.LEDGER_UNAVAILABLE


async def test_error_that_takes_the_group_with_it_is_told_to_all(committer: Committer, sql: Sql) -> None:
    def outage(_: Change) -> None:
        raise OperationalError("INSERT", {}, OSError("disk full"))

    gate = Gate(committer)
    with_it, itself = committer.submit(lambda change: write(change, "a")), committer.submit(outage)
    gate.opened.set()
    for error in (with_it.exception(10), itself.exception(10)):
        assert isinstance(error, ApplianceError)
        assert error.reason is Reason.LEDGER_UNAVAILABLE
    assert sql("SELECT count(*) FROM sims") == [(0,)]
    assert committer.submit(lambda change: write(change, "a")).result(10) == "a"


async def test_change_that_was_cancelled_while_it_waited_is_not_begun(ledger: Ledger, sql: Sql) -> None:
    gate = Gate(ledger._committer)
    cancelled = asyncio.create_task(ledger.reserve(ISSUER, order("person-1"), DIGEST))
    other = asyncio.create_task(ledger.reserve(ISSUER, order("person-2", sim=2), DIGEST))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    gate.opened.set()
    await other
    assert sql("SELECT person_id FROM issuances") == [("person-2",)]


async def test_closing_finishes_what_was_queued(url: str, clock: Clock, sql: Sql) -> None:
    ledger = Ledger.open(url, clock=clock)
    calls = [asyncio.create_task(make_ready(ledger, order(f"person-{n}", sim=n))) for n in range(5)]
    await asyncio.gather(*calls)
    gate = Gate(ledger._committer)
    queued = [asyncio.create_task(ledger.reserve(ISSUER, order(f"late-{n}", sim=n), DIGEST)) for n in range(5)]
    await asyncio.sleep(0)
    threading.Timer(0.05, gate.opened.set).start()
    await asyncio.to_thread(ledger.close)
    assert all(reservation.attempt for reservation in await asyncio.gather(*queued))
    assert sql("SELECT count(*) FROM issuances") == [(10,)]
    ledger.close()
    for call in (ledger.reserve(ISSUER, order("after"), DIGEST), ledger.status()):
        assert (await refused(call)).reason is Reason.LEDGER_UNAVAILABLE
