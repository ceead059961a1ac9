"""No audit, no change; no gap; no personal data."""

import json
import uuid
from typing import Any

from appliance.domain.audit import salted_digest
from appliance.domain.issuance import RESERVATION_IDLE
from appliance.errors import Reason
from appliance.ledger import Ledger
from tests.ledger.conftest import Sql
from tests.ledger.samples import DIGEST, ISSUER, TSM, Clock, answer, make_ready, order, refused


def entries(sql: Sql) -> list[dict[str, Any]]:
    return [json.loads(entry) for (entry,) in sql("SELECT entry FROM audit ORDER BY number")]


def new_id() -> str:
    return str(uuid.uuid4())


async def test_whole_life_is_told_in_order_and_without_gaps(ledger: Ledger, clock: Clock, sql: Sql) -> None:
    reserved, made = await make_ready(ledger, order())
    name = reserved.record.id
    await ledger.prepare_script(TSM, new_id(), DIGEST, name, b"8 bytes.")
    clock.forward(seconds=3)
    await ledger.activate(TSM, new_id(), DIGEST, name, answer)
    idle = await ledger.reserve(ISSUER, order("person-2", sim=2), DIGEST)
    assert idle.attempt is not None
    await ledger.retry(idle.record.id, idle.attempt.number)
    clock.forward(seconds=RESERVATION_IDLE.total_seconds())
    next_one = await ledger.reserve(ISSUER, order("person-2", sim=2), DIGEST)
    assert next_one.attempt is not None
    await ledger.fail(next_one.attempt, Reason.CERTIFICATE_REFUSED, "detail")
    ready, _ = await make_ready(ledger, order("person-2", sim=2))
    await ledger.abandon(ISSUER, new_id(), DIGEST, ready.record.id, answer)

    told = entries(sql)
    assert [entry["number"] for entry in told] == list(range(1, len(told) + 1))
    assert [(entry["event"], entry["actor"]) for entry in told] == [
        ("RESERVED", ISSUER),
        ("ATTEMPTED", ISSUER),
        ("COMPLETED", "appliance"),
        ("SCRIPT_FETCHED", TSM),
        ("ACTIVATED", TSM),
        ("RESERVED", ISSUER),
        ("ATTEMPTED", ISSUER),
        ("ATTEMPTED", "appliance"),
        ("SUPERSEDED", "appliance"),
        ("RESERVED", ISSUER),
        ("ATTEMPTED", ISSUER),
        ("FAILED", "appliance"),
        ("RESERVED", ISSUER),
        ("ATTEMPTED", ISSUER),
        ("COMPLETED", "appliance"),
        ("ABANDONED", ISSUER),
    ]
    assert told[2]["facts"]["header_sha256"] == made.header.digest().hex()
    assert reserved.attempt is not None
    assert told[1]["facts"]["counter"] == str(reserved.attempt.counter)
    assert told[1]["facts"]["serial"] == told[2]["facts"]["serial"] == reserved.attempt.serial.hex()
    assert told[4]["time"] == "2026-07-01T00:00:03.000000Z"
    assert (await ledger.status()).audit_entries == len(told)


async def test_refused_change_leaves_no_entry(ledger: Ledger, sql: Sql) -> None:
    reserved, _ = await make_ready(ledger, order())
    before = entries(sql)
    await refused(ledger.reserve(ISSUER, order(sim=2), DIGEST))
    await refused(ledger.retry(reserved.record.id, 1))
    await refused(ledger.activate(TSM, new_id(), DIGEST, "0" * 32, answer))
    assert entries(sql) == before
    await ledger.activate(TSM, new_id(), DIGEST, reserved.record.id, answer)
    assert [entry["number"] for entry in entries(sql)] == list(range(1, len(before) + 2))


async def test_change_whose_entry_cannot_be_written_does_not_happen(ledger: Ledger, sql: Sql) -> None:
    sql("CREATE TRIGGER no_audit BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no'); END")
    wanted = order()
    await refused(ledger.reserve(ISSUER, wanted, DIGEST))
    for table in ("issuances", "attempts", "requests", "sims"):
        assert sql(f"SELECT count(*) FROM {table}") == [(0,)]  # noqa: S608 (names from the line above)
    sql("DROP TRIGGER no_audit")
    assert (await ledger.reserve(ISSUER, wanted, DIGEST)).attempt is not None


async def test_entries_hold_personal_data_only_as_salted_digests(ledger: Ledger, sql: Sql) -> None:
    wanted = order("person-1")
    reserved, made = await make_ready(ledger, wanted)
    await ledger.activate(TSM, new_id(), DIGEST, reserved.record.id, answer)
    log = b"".join(entry for (entry,) in sql("SELECT entry FROM audit"))
    for personal in (wanted.person_id, wanted.subject_common_name, wanted.iccid.digits, wanted.card_issuer):
        assert personal.encode() not in log
    assert wanted.iccid.ef_coding.hex().encode() not in log
    assert made.wrapped.hex().encode() not in log
    ((salt,),) = sql("SELECT salt FROM issuances")
    facts = entries(sql)[0]["facts"]
    assert facts["person_id_digest"] == salted_digest(salt, b"person-1")
    assert facts["iccid_digest"] == salted_digest(salt, wanted.iccid.digits.encode())
    assert facts["card_serial_digest"] == salted_digest(salt, wanted.card_serial)


async def test_salts_differ(ledger: Ledger, sql: Sql) -> None:
    for number in range(20):
        await ledger.reserve(ISSUER, order(f"person-{number}", sim=number), DIGEST)
    assert sql("SELECT count(DISTINCT salt), min(length(salt)) FROM issuances") == [(20, 32)]
