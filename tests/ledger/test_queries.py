"""Pages and counts."""

import base64
import hashlib
import json
from datetime import timedelta

import pytest

from appliance.domain.issuance import IssuanceRecord, State
from appliance.errors import Reason
from appliance.ledger import Ledger
from tests.ledger.samples import DIGEST, ISSUER, Clock, make_ready, order, refused


async def pages(ledger: Ledger, size: int, **filters: object) -> list[list[IssuanceRecord]]:
    found, token = [], ""
    while True:
        records, token = await ledger.list(page_size=size, page_token=token, **filters)  # type: ignore[arg-type] # the filters of `list`
        found.append(list(records))
        if not token:
            return found


@pytest.fixture
async def seven(ledger: Ledger, clock: Clock) -> list[str]:
    """Ids of seven issuances by age; four share one moment, the second and the fourth are READY."""
    made = []
    for number in range(7):
        if number not in (2, 3, 4):
            clock.forward(seconds=1)
        if number in (1, 3):
            reserved, _ = await make_ready(ledger, order(f"person-{number}", sim=number))
        else:
            reserved = await ledger.reserve(ISSUER, order(f"person-{number}", sim=number), DIGEST)
        made.append(reserved.record)
    return [record.id for record in sorted(made, key=lambda record: (record.created, record.id))]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
async def test_pages_hold_every_issuance_once_oldest_first(ledger: Ledger, seven: list[str], size: int) -> None:
    found = await pages(ledger, size)
    assert [record.id for page in found for record in page] == seven
    assert [len(page) for page in found] == [size] * (7 // size) + ([7 % size] if 7 % size else [])


@pytest.mark.usefixtures("seven")
async def test_pages_hold_no_packages(ledger: Ledger) -> None:
    ready = [record for page in await pages(ledger, 7) for record in page if record.state is State.READY]
    assert [record.package for record in ready] == [None, None]


@pytest.mark.usefixtures("seven")
async def test_pages_by_person_and_by_state(ledger: Ledger) -> None:
    assert [[r.person_id for r in page] for page in await pages(ledger, 5, person_id="person-5")] == [["person-5"]]
    ready = await pages(ledger, 1, state=State.READY)
    assert {record.person_id for page in ready for record in page} == {"person-1", "person-3"}
    assert await pages(ledger, 5, person_id="person-5", state=State.ACTIVE) == [[]]


@pytest.mark.usefixtures("seven")
async def test_token_of_other_filters_or_of_nobody_is_refused(ledger: Ledger) -> None:
    _, token = await ledger.list(page_size=1, state=State.RESERVED)
    for wrong in (
        ledger.list(page_size=1, page_token=token),
        ledger.list(page_size=1, page_token=token, state=State.READY),
        ledger.list(page_size=1, page_token=token, state=State.RESERVED, person_id="person-1"),
        ledger.list(page_size=1, page_token="not base64 \u3042"),
        ledger.list(page_size=1, page_token="e30="),
        ledger.list(page_size=1, page_token="WzFlOTksIDAsIDBd"),
    ):
        refusal = await refused(wrong)
        assert (refusal.reason, refusal.field) == (Reason.PAGE_TOKEN_INVALID, "page_token")


@pytest.mark.parametrize("last", ["\ud800", "person-1", 7, ["0" * 32]])
async def test_token_with_the_right_filters_and_no_id_is_refused(ledger: Ledger, last: object) -> None:
    filters = hashlib.sha256(b"\n").hexdigest()[:16]
    token = base64.urlsafe_b64encode(json.dumps([0, last, filters]).encode()).decode()
    assert (await refused(ledger.list(page_size=1, page_token=token))).reason is Reason.PAGE_TOKEN_INVALID


async def test_token_of_nested_arrays_is_refused(ledger: Ledger) -> None:
    nested = base64.urlsafe_b64encode(b"[" * 40_000).decode()
    assert (await refused(ledger.list(page_size=1, page_token=nested))).reason is Reason.PAGE_TOKEN_INVALID


@pytest.mark.usefixtures("seven")
async def test_status_counts_every_state(ledger: Ledger) -> None:
    status = await ledger.status()
    assert status.issuances == {
        "RESERVED": 5,
        "AWAITING_CERTIFICATE": 0,
        "READY": 2,
        "ACTIVE": 0,
        "ABANDONED": 0,
        "FAILED": 0,
    }
    assert status.audit_entries == 7 * 2 + 2


async def test_times_come_back_to_the_microsecond(ledger: Ledger, clock: Clock) -> None:
    clock.now += timedelta(microseconds=123_457)
    reserved = await ledger.reserve(ISSUER, order(), DIGEST)
    assert (await ledger.get(reserved.record.id)).created == clock.now
