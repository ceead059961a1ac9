"""Waiting for an external CA's certificate: what is kept, what completes it, and when it is too late."""

import asyncio
import uuid
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.domain.issuance import RESERVATION_IDLE, IssuanceRecord, State
from appliance.domain.package import SimPackage
from appliance.errors import ApplianceError, Reason
from appliance.ledger import ForeignCertificate, Ledger
from tests.ledger.conftest import Sql
from tests.ledger.samples import (
    DIGEST,
    ISSUER,
    TSM,
    Clock,
    answer,
    completed,
    foreign,
    make_awaiting,
    make_ready,
    order,
    pending,
    refused,
)

OTHER = b"\x99" * 32


def new_id() -> str:
    return str(uuid.uuid4())


async def certify(
    ledger: Ledger, issuance: str, certificate: ForeignCertificate, package: bytes | None, request_id: str = ""
) -> bytes:
    return await ledger.certify(ISSUER, request_id or new_id(), OTHER, issuance, certificate, package, answer)


async def test_what_waits_is_kept_whole_and_has_no_package(ledger: Ledger, clock: Clock) -> None:
    wanted = order()
    reserved, waiting = await make_awaiting(ledger, wanted, clock.now + timedelta(days=14))
    record = await ledger.get(reserved.record.id)
    assert (record.state, record.package, record.pending) == (State.AWAITING_CERTIFICATE, None, waiting)
    assert record.certificate_request == waiting.certificate_request
    assert record.certificate_due == clock.now + timedelta(days=14)
    assert reserved.attempt
    assert (record.counter, record.header) == (reserved.attempt.counter, waiting.header.encode())
    assert (record.certificate, record.certificate_serial, record.package_sha256) == (None, None, None)
    again = await ledger.reserve(ISSUER, wanted, DIGEST)
    assert (again.attempt, again.answer) == (None, answer(record))


async def test_certificate_makes_it_ready(ledger: Ledger, clock: Clock, sql: Sql) -> None:
    reserved, waiting = await make_awaiting(ledger, order())
    certificate, name = foreign(0x8000), reserved.record.id
    clock.forward(days=2)
    package = completed(waiting, certificate)
    kept = await certify(ledger, name, certificate, package)
    record = await ledger.get(name)
    assert kept == answer(record)
    assert (record.state, record.updated, record.package) == (State.READY, clock.now, package)
    assert (record.certificate, record.certificate_serial) == (certificate.der, b"\x80\x00")
    assert (record.pending, record.certificate_request, record.certificate_due) == (None, None, None)
    assert sql("SELECT interim_mac FROM issuances") == [(None,)]
    await ledger.activate(TSM, new_id(), DIGEST, name, answer)
    assert (await ledger.get(name)).package is None


async def test_stored_answer_is_made_without_the_package(ledger: Ledger) -> None:
    reserved, waiting = await make_awaiting(ledger, order())
    certificate, given = foreign(), []

    def note(record: IssuanceRecord) -> bytes:
        given.append((record.package, record.pending))
        return b""

    package = completed(waiting, certificate)
    await ledger.certify(ISSUER, new_id(), OTHER, reserved.record.id, certificate, package, note)
    assert given == [(None, None)]


async def test_same_call_again_gets_the_same_bytes_and_same_certificate_changes_nothing(
    ledger: Ledger, clock: Clock, sql: Sql
) -> None:
    reserved, waiting = await make_awaiting(ledger, order())
    certificate, request_id = foreign(), new_id()
    package = completed(waiting, certificate)
    kept = await certify(ledger, reserved.record.id, certificate, package, request_id)
    record, entries = await ledger.get(reserved.record.id), sql("SELECT * FROM audit")
    clock.forward(days=30)
    assert await certify(ledger, reserved.record.id, certificate, None, request_id) == kept
    assert await certify(ledger, reserved.record.id, certificate, None) == kept
    await ledger.activate(TSM, new_id(), DIGEST, reserved.record.id, answer)
    assert await certify(ledger, reserved.record.id, certificate, None) != kept, "it is ACTIVE now"
    assert await certify(ledger, reserved.record.id, certificate, None, request_id) == kept
    assert len(sql("SELECT * FROM audit")) == len(entries) + 1
    assert (await ledger.get(reserved.record.id)).certificate == record.certificate


async def test_concurrent_certificates_complete_once(ledger: Ledger, sql: Sql) -> None:
    reserved, waiting = await make_awaiting(ledger, order())
    certificates = [foreign(serial) for serial in range(1, 9)]
    outcomes = await asyncio.gather(
        *(certify(ledger, reserved.record.id, one, completed(waiting, one)) for one in certificates),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, bytes) for outcome in outcomes) == 1
    refusals = [outcome for outcome in outcomes if isinstance(outcome, ApplianceError)]
    assert {refusal.reason for refusal in refusals} == {Reason.CERTIFICATE_NOT_AWAITED}
    assert sql("SELECT count(*) FROM audit WHERE instr(entry, '\"COMPLETED\"')") == [(1,)]


async def test_another_certificate_is_refused_once_there_is_one(ledger: Ledger) -> None:
    reserved, waiting = await make_awaiting(ledger, order())
    first, second = foreign(1), foreign(2)
    await certify(ledger, reserved.record.id, first, completed(waiting, first))
    refusal = await refused(certify(ledger, reserved.record.id, second, completed(waiting, second)))
    assert (refusal.reason, refusal.facts["state"]) == (Reason.CERTIFICATE_NOT_AWAITED, State.READY)
    assert (await ledger.get(reserved.record.id)).certificate == first.der


async def test_certificate_for_what_does_not_wait_is_refused(ledger: Ledger) -> None:
    reserved = await ledger.reserve(ISSUER, order("reserved", sim=1), DIGEST)
    ready, _ = await make_ready(ledger, order("ready", sim=2))
    abandoned, _ = await make_awaiting(ledger, order("abandoned", sim=3))
    await ledger.abandon(ISSUER, new_id(), DIGEST, abandoned.record.id, answer)
    for reservation, reason in (
        (reserved, Reason.CERTIFICATE_NOT_AWAITED),
        (ready, Reason.CERTIFICATE_NOT_AWAITED),
        (abandoned, Reason.ISSUANCE_ENDED),
    ):
        before = await ledger.get(reservation.record.id)
        assert (await refused(certify(ledger, reservation.record.id, foreign(), None))).reason is reason
        assert await ledger.get(reservation.record.id) == before
    assert (await refused(certify(ledger, "0" * 32, foreign(), None))).reason is Reason.ISSUANCE_NOT_FOUND


async def test_request_id_of_another_call_is_refused(ledger: Ledger) -> None:
    wanted = order()
    reserved, waiting = await make_awaiting(ledger, wanted)
    certificate = foreign()
    package = completed(waiting, certificate)
    refusal = await refused(certify(ledger, reserved.record.id, certificate, package, wanted.request_id))
    assert refusal.reason is Reason.REQUEST_ID_REUSED
    assert (await ledger.get(reserved.record.id)).state is State.AWAITING_CERTIFICATE


async def test_package_of_another_issuance_is_a_defect_and_changes_nothing(ledger: Ledger) -> None:
    one, waiting = await make_awaiting(ledger, order("one", sim=1))
    _, others = await make_awaiting(ledger, order("other", sim=2))
    certificate = foreign()
    swapped = SimPackage(waiting.header, others.wrapped, certificate.der, bytes(16)).encode()
    for package in (completed(others, certificate), completed(waiting, foreign()), swapped):
        assert (await refused(certify(ledger, one.record.id, certificate, package))).reason is Reason.INTERNAL
    assert (await ledger.get(one.record.id)).pending == waiting


async def test_serial_number_of_one_ca_completes_one_issuance(ledger: Ledger) -> None:
    first, first_waits = await make_awaiting(ledger, order("first", sim=1))
    second, second_waits = await make_awaiting(ledger, order("second", sim=2))
    taken, same, others = foreign(7), foreign(7), foreign(7, ca=b"another CA")
    await certify(ledger, first.record.id, taken, completed(first_waits, taken))
    refusal = await refused(certify(ledger, second.record.id, same, completed(second_waits, same)))
    assert (refusal.reason, refusal.facts["lints"]) == (Reason.CERTIFICATE_REFUSED, "serial_number_unused")
    assert (await ledger.get(second.record.id)).pending == second_waits
    await certify(ledger, second.record.id, others, completed(second_waits, others))


async def test_abandoned_while_it_waits_it_leaves_no_key(ledger: Ledger) -> None:
    reserved, _ = await make_awaiting(ledger, order())
    await ledger.abandon(ISSUER, new_id(), OTHER, reserved.record.id, answer)
    record = await ledger.get(reserved.record.id)
    assert (record.state, record.pending, record.end_reason) == (State.ABANDONED, None, Reason.ISSUANCE_ENDED)
    assert (await ledger.reserve(ISSUER, order(), DIGEST)).attempt is not None


async def test_what_waits_is_its_persons_only_live_issuance_however_long(ledger: Ledger, clock: Clock) -> None:
    reserved, _ = await make_awaiting(ledger, order(), clock.now + timedelta(days=14))
    clock.forward(seconds=RESERVATION_IDLE.total_seconds() * 2)
    refusal = await refused(ledger.reserve(ISSUER, order(), DIGEST))
    assert refusal.reason is Reason.PERSON_HAS_LIVE_ISSUANCE
    assert refusal.facts["issuance"] == f"issuances/{reserved.record.id}"


async def test_script_and_receipt_wait_for_the_certificate_too(ledger: Ledger) -> None:
    reserved, _ = await make_awaiting(ledger, order())
    for call in (
        ledger.prepare_script(TSM, new_id(), DIGEST, reserved.record.id, b"8 bytes."),
        ledger.activate(TSM, new_id(), DIGEST, reserved.record.id, answer),
    ):
        refusal = await refused(call)
        assert refusal.reason is Reason.ISSUANCE_NOT_READY
        assert "SubmitCertificate" in refusal.hint


async def test_overdue_certificate_is_refused_and_ends_its_issuance(ledger: Ledger, clock: Clock, sql: Sql) -> None:
    reserved, waiting = await make_awaiting(ledger, order(), clock.now + timedelta(days=14))
    name, certificate = reserved.record.id, foreign()
    clock.forward(days=14)
    for _ in range(2):
        refusal = await refused(certify(ledger, name, certificate, completed(waiting, certificate)))
        assert (refusal.reason, refusal.facts["issuance"]) == (Reason.CERTIFICATE_OVERDUE, f"issuances/{name}")
    record = await ledger.get(name)
    assert (record.state, record.end_reason) == (State.ABANDONED, Reason.CERTIFICATE_OVERDUE)
    assert record.end_detail == "No certificate had come by 2026-07-15T00:00:00Z."
    assert (record.pending, record.certificate) == (None, None)
    assert sql("SELECT count(*) FROM audit WHERE instr(entry, '\"EXPIRED\"')") == [(1,)]


async def test_new_request_of_the_person_ends_what_is_overdue(ledger: Ledger, clock: Clock) -> None:
    reserved, _ = await make_awaiting(ledger, order(), clock.now + timedelta(days=14))
    clock.forward(days=14)
    assert (await ledger.reserve(ISSUER, order(), DIGEST)).attempt is not None
    assert (await ledger.get(reserved.record.id)).end_reason == Reason.CERTIFICATE_OVERDUE


async def test_overdue_issuances_are_ended_by_batches_the_oldest_first(ledger: Ledger, clock: Clock, sql: Sql) -> None:
    waiting = [
        (await make_awaiting(ledger, order(f"person-{day}", sim=day), clock.now + timedelta(days=day)))[0].record.id
        for day in (5, 1, 3, 9)
    ]
    ready, _ = await make_ready(ledger, order("ready", sim=10))
    assert await ledger.expire_overdue(10) == []
    clock.forward(days=5)
    assert await ledger.expire_overdue(2) == [waiting[1], waiting[2]]
    assert await ledger.expire_overdue(2) == [waiting[0]]
    assert await ledger.expire_overdue(2) == []
    states = {name: (await ledger.get(name)).state for name in waiting}
    assert [name for name, state in states.items() if state is State.AWAITING_CERTIFICATE] == [waiting[3]]
    assert (await ledger.get(ready.record.id)).state is State.READY
    assert sql('SELECT count(*) FROM audit WHERE instr(entry, \'"actor":"appliance","event":"EXPIRED"\')') == [(3,)]


async def test_keys_that_expired_are_gone_from_the_files(ledger: Ledger, clock: Clock) -> None:
    _, waiting = await make_awaiting(ledger, order(), clock.now + timedelta(days=1))
    clock.forward(days=1)
    await ledger.expire_overdue(1)
    database = ledger._engine.url.database
    ledger.close()
    assert database
    found = [path.name for path in Path(database).parent.iterdir() if waiting.wrapped in path.read_bytes()]
    assert found == []


async def test_late_attempt_is_dropped_and_a_second_answer_is_the_first(ledger: Ledger, clock: Clock) -> None:
    reserved, waiting = await make_awaiting(ledger, order())
    assert reserved.attempt
    due = clock.now + timedelta(days=1)
    record = await ledger.get(reserved.record.id)
    other = pending(record, reserved.attempt)
    assert await ledger.await_certificate(reserved.attempt, other, due, lambda _: b"never asked") == answer(record)
    assert (await ledger.get(record.id)).pending == waiting

    lost = await ledger.reserve(ISSUER, order("lost", sim=2), DIGEST)
    assert lost.attempt
    newer = await ledger.retry(lost.record.id, lost.attempt.number)
    late = ledger.await_certificate(lost.attempt, pending(lost.record, lost.attempt), due, answer)
    assert (await refused(late)).reason is Reason.ISSUANCE_ENDED
    misfit = ledger.await_certificate(newer, pending(lost.record, lost.attempt), due, answer)
    assert (await refused(misfit)).reason is Reason.INTERNAL
    await ledger.await_certificate(newer, pending(lost.record, newer), due, answer)


@pytest.mark.parametrize("event", ["CERTIFICATE_REQUESTED", "COMPLETED"])
async def test_audit_tells_digests_and_no_name(ledger: Ledger, sql: Sql, event: str) -> None:
    wanted = order()
    reserved, waiting = await make_awaiting(ledger, wanted)
    certificate = foreign()
    await certify(ledger, reserved.record.id, certificate, completed(waiting, certificate))
    ((entry,),) = sql(f"SELECT entry FROM audit WHERE instr(entry, '\"{event}\"')")  # noqa: S608 (this test's own)
    assert waiting.header.digest().hex() in entry.decode()
    assert wanted.subject_common_name not in entry.decode()
