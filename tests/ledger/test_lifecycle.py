"""Scripts, receipts, abandonment: each call with its request_id, each state with what it permits."""

import asyncio
import uuid

import pytest

from appliance.domain.issuance import State
from appliance.errors import Reason
from appliance.ledger import Ledger
from tests.ledger.conftest import Sql
from tests.ledger.samples import DIGEST, ISSUER, TSM, Clock, answer, make_ready, order, refused

NOWHERE = "0" * 32
OTHER = b"\x99" * 32


def new_id() -> str:
    return str(uuid.uuid4())


async def test_script_gets_the_package_and_keeps_its_host_challenge(ledger: Ledger) -> None:
    reserved, made = await make_ready(ledger, order())
    call = TSM, new_id(), DIGEST, reserved.record.id
    record, challenge = await ledger.prepare_script(*call, b"first-8.")
    assert (record.package, challenge) == (made.encode(), b"first-8.")
    assert (await ledger.prepare_script(*call, b"second-8"))[1] == b"first-8."
    assert (await ledger.prepare_script(TSM, new_id(), DIGEST, reserved.record.id, b"second-8"))[1] == b"second-8"


async def test_host_challenge_is_found_again_by_the_same_call_alone_and_outlives_the_package(ledger: Ledger) -> None:
    reserved, _ = await make_ready(ledger, order())
    fetched, reported = new_id(), new_id()
    await ledger.prepare_script(TSM, fetched, DIGEST, reserved.record.id, b"8 bytes.")
    await ledger.activate(TSM, reported, DIGEST, reserved.record.id, answer)
    assert await ledger.host_challenge(TSM, fetched, DIGEST) == b"8 bytes."
    for other in ((ISSUER, fetched, DIGEST), (TSM, fetched, OTHER), (TSM, new_id(), DIGEST), (TSM, reported, DIGEST)):
        assert await ledger.host_challenge(*other) is None


async def test_script_needs_an_issuance_that_is_ready(ledger: Ledger) -> None:
    reserved = await ledger.reserve(ISSUER, order(), DIGEST)
    call = TSM, new_id(), DIGEST, reserved.record.id, b"8 bytes."
    assert (await refused(ledger.prepare_script(*call))).reason is Reason.ISSUANCE_NOT_READY
    ready, _ = await make_ready(ledger, order("person-2", sim=2))
    call = TSM, new_id(), DIGEST, ready.record.id, b"8 bytes."
    await ledger.prepare_script(*call)
    await ledger.activate(TSM, new_id(), DIGEST, ready.record.id, answer)
    assert (await refused(ledger.prepare_script(*call))).reason is Reason.ISSUANCE_NOT_READY


async def test_activated_issuance_keeps_everything_but_the_wrapped_key(ledger: Ledger, clock: Clock) -> None:
    reserved, made = await make_ready(ledger, order())
    clock.forward(minutes=5)
    kept = await ledger.activate(TSM, new_id(), DIGEST, reserved.record.id, answer)
    record = await ledger.get(reserved.record.id)
    assert kept == answer(record)
    assert (record.state, record.updated, record.package) == (State.ACTIVE, clock.now, None)
    assert (record.header, record.certificate) == (made.header.encode(), made.certificate)
    assert record.package_sha256 is not None


async def test_receipt_reported_twice_changes_nothing(ledger: Ledger, clock: Clock, sql: Sql) -> None:
    reserved, _ = await make_ready(ledger, order())
    call = TSM, new_id(), DIGEST, reserved.record.id
    kept = await ledger.activate(*call, answer)
    record, entries = await ledger.get(reserved.record.id), sql("SELECT * FROM audit")
    clock.forward(days=1)
    assert await ledger.activate(*call, lambda _: b"never asked") == kept
    assert await ledger.activate(TSM, new_id(), DIGEST, reserved.record.id, answer) == kept
    assert await ledger.get(reserved.record.id) == record
    assert sql("SELECT * FROM audit") == entries


async def test_concurrent_receipts_activate_once(ledger: Ledger, sql: Sql) -> None:
    reserved, _ = await make_ready(ledger, order())
    calls = [ledger.activate(TSM, new_id(), DIGEST, reserved.record.id, answer) for _ in range(20)]
    assert len(set(await asyncio.gather(*calls))) == 1
    assert sql("SELECT count(*) FROM audit WHERE instr(entry, '\"ACTIVATED\"')") == [(1,)]


async def test_receipt_before_there_is_a_package_is_refused(ledger: Ledger) -> None:
    reserved = await ledger.reserve(ISSUER, order(), DIGEST)
    refusal = await refused(ledger.activate(TSM, new_id(), DIGEST, reserved.record.id, answer))
    assert refusal.reason is Reason.ISSUANCE_NOT_READY


@pytest.mark.parametrize("ready", [False, True])
async def test_abandoned_issuance_makes_room_for_another(ledger: Ledger, ready: bool) -> None:
    if ready:
        reserved, _ = await make_ready(ledger, order())
    else:
        reserved = await ledger.reserve(ISSUER, order(), DIGEST)
    call = ISSUER, new_id(), OTHER, reserved.record.id
    kept = await ledger.abandon(*call, answer)
    assert await ledger.abandon(*call, lambda _: b"never asked") == kept
    record = await ledger.get(reserved.record.id)
    assert (record.state, record.package, record.end_reason) == (State.ABANDONED, None, Reason.ISSUANCE_ENDED)
    assert (await ledger.reserve(ISSUER, order(), DIGEST)).attempt is not None


async def test_what_has_ended_can_neither_be_activated_nor_abandoned(ledger: Ledger) -> None:
    reserved, _ = await make_ready(ledger, order())
    await ledger.abandon(ISSUER, new_id(), OTHER, reserved.record.id, answer)
    for move in (ledger.activate, ledger.abandon):
        refusal = await refused(move(TSM, new_id(), DIGEST, reserved.record.id, answer))
        assert (refusal.reason, refusal.facts["state"]) == (Reason.ISSUANCE_ENDED, State.ABANDONED)


async def test_active_issuance_cannot_be_abandoned(ledger: Ledger) -> None:
    reserved, _ = await make_ready(ledger, order())
    await ledger.activate(TSM, new_id(), DIGEST, reserved.record.id, answer)
    refusal = await refused(ledger.abandon(ISSUER, new_id(), OTHER, reserved.record.id, answer))
    assert refusal.reason is Reason.ISSUANCE_ENDED
    assert (await ledger.get(reserved.record.id)).state is State.ACTIVE


async def test_request_id_of_another_call_is_refused_everywhere(ledger: Ledger) -> None:
    wanted = order()
    reserved, _ = await make_ready(ledger, wanted)
    used, name = wanted.request_id, reserved.record.id
    for call in (
        ledger.prepare_script(ISSUER, used, OTHER, name, b"8 bytes."),
        ledger.activate(ISSUER, used, OTHER, name, answer),
        ledger.abandon(ISSUER, used, OTHER, name, answer),
    ):
        assert (await refused(call)).reason is Reason.REQUEST_ID_REUSED
    assert (await ledger.get(name)).state is State.READY


async def test_unknown_issuance_is_not_found(ledger: Ledger) -> None:
    for call in (
        ledger.get(NOWHERE),
        ledger.retry(NOWHERE, 1),
        ledger.prepare_script(TSM, new_id(), DIGEST, NOWHERE, b"8 bytes."),
        ledger.activate(TSM, new_id(), DIGEST, NOWHERE, answer),
        ledger.abandon(TSM, new_id(), DIGEST, NOWHERE, answer),
    ):
        assert (await refused(call)).reason is Reason.ISSUANCE_NOT_FOUND
