"""Reserve, attempt, record: what a request gets, and gets again."""

import asyncio
import sqlite3
import uuid
from dataclasses import replace

import pytest

from appliance.domain.issuance import COUNTER_LEAD, MAX_LOST_ATTEMPTS, RESERVATION_IDLE, Attempt, State
from appliance.domain.package import KeyType
from appliance.domain.request import IssueOrder
from appliance.errors import Reason
from appliance.ledger import Ledger, reservation
from appliance.ledger.schema import metadata
from tests.ledger.conftest import Sql
from tests.ledger.samples import DIGEST, ISSUER, Clock, answer, make_ready, order, package, refused


async def test_reservation_brings_the_first_attempt(ledger: Ledger, clock: Clock) -> None:
    wanted = order()
    reserved = await ledger.reserve(ISSUER, wanted, DIGEST)
    record, attempt = reserved.record, reserved.attempt
    assert attempt is not None
    assert reserved.answer is None
    assert (record.state, record.client, record.request_id) == (State.RESERVED, ISSUER, wanted.request_id)
    assert (record.iccid, record.kvn, record.not_after) == (wanted.iccid.digits, wanted.kvn, wanted.not_after)
    assert (record.created, record.updated, record.package, record.end_reason) == (clock.now, clock.now, None, "")
    assert (attempt.issuance, attempt.number) == (record.id, 1)
    assert await ledger.get(record.id) == record


async def test_serial_is_16_bytes_and_positive_without_leading_zeros(ledger: Ledger) -> None:
    serials = set()
    for number in range(40):
        attempt = (await ledger.reserve(ISSUER, order(f"person-{number}", sim=number), DIGEST)).attempt
        assert attempt is not None
        assert len(attempt.serial) == 16
        assert 0x40 <= attempt.serial[0] <= 0x7F
        serials.add(attempt.serial)
    assert len(serials) == 40


async def test_completed_issuance_keeps_package_certificate_and_answer(ledger: Ledger, clock: Clock) -> None:
    reserved = await ledger.reserve(ISSUER, order(), DIGEST)
    assert reserved.attempt is not None
    made = package(reserved.record, reserved.attempt)
    clock.forward(seconds=2)
    kept = await ledger.complete(reserved.attempt, made.encode(), answer)
    record = await ledger.get(reserved.record.id)
    assert kept == answer(record)
    assert (record.state, record.updated) == (State.READY, clock.now)
    assert record.package == made.encode()
    assert (record.certificate, record.header) == (made.certificate, made.header.encode())
    assert (record.counter, record.certificate_serial) == (reserved.attempt.counter, reserved.attempt.serial)


async def test_answer_that_is_kept_cannot_carry_the_package(ledger: Ledger) -> None:
    reserved = await ledger.reserve(ISSUER, order(), DIGEST)
    assert reserved.attempt is not None
    sealed = package(reserved.record, reserved.attempt).encode()
    kept = await ledger.complete(reserved.attempt, sealed, lambda record: repr(record.package).encode())
    assert kept == b"None"


async def test_same_request_gets_its_answer_byte_for_byte(ledger: Ledger, clock: Clock) -> None:
    wanted = order()
    first, _ = await make_ready(ledger, wanted)
    kept = await ledger.find(ISSUER, wanted.request_id, DIGEST)
    assert kept is not None
    await ledger.abandon(ISSUER, str(uuid.uuid4()), b"\x22" * 32, first.record.id, answer)
    clock.forward(days=400)
    again = await ledger.reserve(ISSUER, wanted, DIGEST)
    assert (again.answer, again.attempt) == (kept, None)
    assert again.record.id == first.record.id
    assert await ledger.find(ISSUER, wanted.request_id, DIGEST) == kept


async def test_same_request_id_with_other_content_is_refused(ledger: Ledger, sql: Sql) -> None:
    wanted = order()
    await ledger.reserve(ISSUER, wanted, DIGEST)
    before = sql("SELECT * FROM audit")
    for call in (
        ledger.reserve(ISSUER, replace(wanted, person_id="person-2"), b"\x99" * 32),
        ledger.find(ISSUER, wanted.request_id, b"\x99" * 32),
    ):
        refusal = await refused(call)
        assert (refusal.reason, refusal.field) == (Reason.REQUEST_ID_REUSED, "request_id")
    assert sql("SELECT * FROM audit") == before


async def test_same_request_id_of_another_client_is_another_request(ledger: Ledger) -> None:
    wanted = order()
    await ledger.reserve(ISSUER, wanted, DIGEST)
    other = await ledger.reserve("urn:other", replace(wanted, person_id="person-2"), b"\x99" * 32)
    assert other.attempt is not None


async def test_unfinished_request_has_no_answer_yet(ledger: Ledger) -> None:
    wanted = order()
    assert await ledger.find(ISSUER, wanted.request_id, DIGEST) is None
    await ledger.reserve(ISSUER, wanted, DIGEST)
    assert await ledger.find(ISSUER, wanted.request_id, DIGEST) is None


async def test_repeated_request_opens_a_new_attempt_and_the_late_one_is_dropped(ledger: Ledger) -> None:
    wanted = order()
    first = await ledger.reserve(ISSUER, wanted, DIGEST)
    second = await ledger.reserve(ISSUER, wanted, DIGEST)
    assert first.attempt is not None
    assert second.attempt is not None
    assert second.record.id == first.record.id
    assert second.attempt.number == 2
    assert second.attempt.counter > first.attempt.counter
    assert second.attempt.serial != first.attempt.serial

    late = package(first.record, first.attempt).encode()
    assert (await refused(ledger.complete(first.attempt, late, answer))).reason is Reason.ISSUANCE_ENDED
    await ledger.fail(first.attempt, Reason.CERTIFICATE_REFUSED, "too late to matter")
    assert (await ledger.get(first.record.id)).state is State.RESERVED

    right = package(second.record, second.attempt).encode()
    kept = await ledger.complete(second.attempt, right, answer)
    assert await ledger.complete(first.attempt, late, lambda _: b"never asked") == kept
    assert (await ledger.get(first.record.id)).package == right


async def test_package_of_another_order_is_not_stored(ledger: Ledger) -> None:
    mine = await ledger.reserve(ISSUER, order(), DIGEST)
    other = await ledger.reserve(ISSUER, order("person-2", sim=2), DIGEST)
    assert mine.attempt is not None
    assert other.attempt is not None
    for record, attempt in (
        (other.record, other.attempt),
        (mine.record, replace(mine.attempt, counter=mine.attempt.counter + 1)),
        (replace(mine.record, kvn=0x31), mine.attempt),
        (replace(mine.record, applet_aid=b"\xa0" * 5), mine.attempt),
        (replace(mine.record, key_type=KeyType.RSA_2048), mine.attempt),
    ):
        refusal = await refused(ledger.complete(mine.attempt, package(record, attempt).encode(), answer))
        assert refusal.reason is Reason.INTERNAL
    assert (await ledger.get(mine.record.id)).state is State.RESERVED


async def test_second_live_issuance_for_a_person_is_refused_and_named(ledger: Ledger, clock: Clock) -> None:
    first, _ = await make_ready(ledger, order())
    clock.forward(days=30)
    refusal = await refused(ledger.reserve(ISSUER, order(sim=2), DIGEST))
    assert (refusal.reason, refusal.field) == (Reason.PERSON_HAS_LIVE_ISSUANCE, "person_id")
    assert refusal.facts["issuance"] == f"issuances/{first.record.id}"


async def test_of_concurrent_requests_for_a_person_one_wins(url: str, clock: Clock) -> None:
    """Two ledgers on one file, as two nodes would be; every request of its own."""
    nodes = [Ledger.open(url, clock=clock), Ledger.open(url, clock=clock)]
    try:
        calls = [nodes[number % 2].reserve(ISSUER, order(sim=number), DIGEST) for number in range(60)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        won = [result for result in results if not isinstance(result, BaseException)]
        lost = [getattr(result, "reason", result) for result in results if isinstance(result, BaseException)]
        assert len(won) == 1
        assert lost == [Reason.PERSON_HAS_LIVE_ISSUANCE] * 59
    finally:
        for node in nodes:
            node.close()


async def test_database_itself_refuses_a_second_live_issuance(
    ledger: Ledger, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await ledger.reserve(ISSUER, order(), DIGEST)
    await ledger.reserve(ISSUER, order("person-2", sim=2), DIGEST)
    with pytest.raises(sqlite3.IntegrityError, match=r"issuances\.person_id"):
        sql("UPDATE issuances SET person_id = 'person-1'")
    # Also where the program forgets to look.
    monkeypatch.setattr(reservation, "_make_room", lambda *_: None)
    assert (await refused(ledger.reserve(ISSUER, order(sim=3), DIGEST))).reason is Reason.INTERNAL
    assert sql("SELECT id FROM issuances WHERE person_id = 'person-1'") == [(first.record.id,)]


async def test_database_itself_refuses_a_repeated_counter_or_serial(ledger: Ledger, sql: Sql) -> None:
    wanted = order()
    await ledger.reserve(ISSUER, wanted, DIGEST)
    await ledger.reserve(ISSUER, wanted, DIGEST)
    with pytest.raises(sqlite3.IntegrityError, match=r"attempts\.counter"):
        sql("UPDATE attempts SET counter = 1")
    with pytest.raises(sqlite3.IntegrityError, match=r"attempts\.serial"):
        sql("UPDATE attempts SET serial = x'01'")


async def test_idle_reservation_gives_way(ledger: Ledger, clock: Clock) -> None:
    abandoned = order()
    first = await ledger.reserve(ISSUER, abandoned, DIGEST)
    clock.forward(seconds=RESERVATION_IDLE.total_seconds() - 1)
    await ledger.reserve(ISSUER, abandoned, DIGEST)  # a new attempt: not idle
    clock.forward(seconds=RESERVATION_IDLE.total_seconds() - 1)
    refusal = await refused(ledger.reserve(ISSUER, order(), DIGEST))
    assert refusal.reason is Reason.PERSON_HAS_LIVE_ISSUANCE
    clock.forward(seconds=1)
    second = await ledger.reserve(ISSUER, order(), DIGEST)
    assert second.attempt is not None

    ended = await ledger.get(first.record.id)
    assert (ended.state, ended.end_reason) == (State.ABANDONED, Reason.PERSON_HAS_LIVE_ISSUANCE)
    assert (await refused(ledger.reserve(ISSUER, abandoned, DIGEST))).reason is Reason.ISSUANCE_ENDED
    assert first.attempt is not None
    late = package(first.record, first.attempt).encode()
    assert (await refused(ledger.complete(first.attempt, late, answer))).reason is Reason.ISSUANCE_ENDED


async def test_counters_of_a_sim_rise_over_issuances_and_persons(ledger: Ledger, clock: Clock) -> None:
    counters = []
    for person in range(5):
        reserved, _ = await make_ready(ledger, order(f"person-{person}"))
        assert reserved.attempt is not None
        counters.append(reserved.attempt.counter)
    clock.forward(seconds=-30)
    reserved, _ = await make_ready(ledger, order("person-9"))
    assert reserved.attempt is not None
    counters.append(reserved.attempt.counter)
    assert counters == list(range(counters[0], counters[0] + 6))


async def spend(ledger: Ledger, wanted: IssueOrder) -> Attempt:
    """The last attempt that this request's SIM may have now."""
    newest: Attempt | None = None
    for _ in range(COUNTER_LEAD):
        newest = (await ledger.reserve(ISSUER, wanted, DIGEST)).attempt
    assert newest is not None
    return newest


async def test_sim_with_too_many_attempts_is_refused_until_the_clock_has_gone_on(
    ledger: Ledger, clock: Clock, sql: Sql
) -> None:
    def everything() -> object:
        return [sql(f"SELECT * FROM {table}") for table in metadata.tables]  # noqa: S608 (names of our tables)

    wanted = order()
    newest = await spend(ledger, wanted)
    before = everything()
    for too_early in (wanted, order("person-2")):
        refusal = await refused(ledger.reserve(ISSUER, too_early, DIGEST))
        assert (refusal.reason, refusal.facts) == (Reason.SIM_BUSY, {"wait_seconds": 1})
    assert everything() == before
    assert (await ledger.reserve(ISSUER, order("person-2", sim=2), DIGEST)).attempt is not None

    clock.forward(seconds=1)
    again = (await ledger.reserve(ISSUER, wanted, DIGEST)).attempt
    assert again is not None
    assert (again.number, again.counter) == (newest.number + 1, newest.counter + 1)


async def test_issuance_that_loses_its_vault_while_its_sim_is_busy_goes_on_later(ledger: Ledger, clock: Clock) -> None:
    wanted = order()
    newest = await spend(ledger, wanted)
    for _ in range(2):  # as for an answer that was lost on its way
        assert (await refused(ledger.retry(newest.issuance, newest.number))).reason is Reason.SIM_BUSY
    assert (await ledger.get(newest.issuance)).state is State.RESERVED
    clock.forward(seconds=1)
    resumed = await ledger.reserve(ISSUER, wanted, DIGEST)
    assert resumed.attempt is not None
    await ledger.complete(resumed.attempt, package(resumed.record, resumed.attempt).encode(), answer)
    assert (await ledger.get(newest.issuance)).state is State.READY


async def test_busy_sim_does_not_forgive_lost_attempts(ledger: Ledger, clock: Clock) -> None:
    wanted = order()
    attempt = await spend(ledger, wanted)
    for _ in range(MAX_LOST_ATTEMPTS - 1):
        assert (await refused(ledger.retry(attempt.issuance, attempt.number))).reason is Reason.SIM_BUSY
        clock.forward(seconds=1)
        resumed = (await ledger.reserve(ISSUER, wanted, DIGEST)).attempt
        assert resumed is not None
        attempt = resumed
    assert (await refused(ledger.retry(attempt.issuance, attempt.number))).reason is Reason.ISSUANCE_FAILED


async def test_lost_attempts_are_retried_and_the_third_loss_is_final(ledger: Ledger) -> None:
    wanted = order()
    reserved = await ledger.reserve(ISSUER, wanted, DIGEST)
    attempt = reserved.attempt
    assert attempt is not None
    counters = [attempt.counter]
    for number in range(2, MAX_LOST_ATTEMPTS + 1):
        attempt = await ledger.retry(attempt.issuance, attempt.number)
        assert attempt.number == number
        counters.append(attempt.counter)
    assert counters == sorted(set(counters))

    refusal = await refused(ledger.retry(attempt.issuance, attempt.number))
    assert (refusal.reason, refusal.facts["end_reason"]) == (Reason.ISSUANCE_FAILED, Reason.TOKEN_FAULT)
    record = await ledger.get(attempt.issuance)
    assert (record.state, record.end_reason) == (State.FAILED, Reason.TOKEN_FAULT)
    assert (await refused(ledger.reserve(ISSUER, wanted, DIGEST))).reason is Reason.ISSUANCE_FAILED
    late = package(reserved.record, attempt).encode()
    assert (await refused(ledger.complete(attempt, late, answer))).reason is Reason.ISSUANCE_ENDED
    assert (await ledger.reserve(ISSUER, order(), DIGEST)).attempt is not None, "the person may be issued anew"


async def test_repeating_a_request_does_not_forgive_lost_attempts(ledger: Ledger) -> None:
    wanted = order()
    for _ in range(MAX_LOST_ATTEMPTS - 1):
        attempt = (await ledger.reserve(ISSUER, wanted, DIGEST)).attempt
        assert attempt is not None
        await ledger.retry(attempt.issuance, attempt.number)
    attempt = (await ledger.reserve(ISSUER, wanted, DIGEST)).attempt
    assert attempt is not None
    assert (await refused(ledger.retry(attempt.issuance, attempt.number))).reason is Reason.ISSUANCE_FAILED


async def test_loss_of_an_attempt_that_is_not_the_newest_changes_nothing(ledger: Ledger) -> None:
    wanted = order()
    first = (await ledger.reserve(ISSUER, wanted, DIGEST)).attempt
    second = (await ledger.reserve(ISSUER, wanted, DIGEST)).attempt
    assert first is not None
    assert second is not None
    assert (await refused(ledger.retry(first.issuance, first.number))).reason is Reason.ISSUANCE_ENDED
    assert (await ledger.retry(second.issuance, second.number)).number == 3


async def test_failed_issuance_tells_why(ledger: Ledger) -> None:
    wanted = order()
    reserved = await ledger.reserve(ISSUER, wanted, DIGEST)
    assert reserved.attempt is not None
    await ledger.fail(reserved.attempt, Reason.CERTIFICATE_REFUSED, "The subject is not what the profile wants.")
    record = await ledger.get(reserved.record.id)
    assert (record.state, record.end_reason) == (State.FAILED, Reason.CERTIFICATE_REFUSED)
    refusal = await refused(ledger.reserve(ISSUER, wanted, DIGEST))
    assert refusal.reason is Reason.ISSUANCE_FAILED
    assert "The subject is not what the profile wants." in refusal.detail
