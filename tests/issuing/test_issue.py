"""Reserve, attempt, act, record: the use case with the real ledger and fake vaults."""

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from appliance.config import Settings
from appliance.domain.issuance import IssuanceRecord, State
from appliance.domain.request import RequestedIssue
from appliance.errors import ApplianceError, Reason
from appliance.issuing.issue import Issuing
from appliance.issuing.vaults import Vaults
from appliance.ledger import Ledger
from appliance.server.messages import requested_issue
from tests.server.fake_vault import FakeVault
from tests.server.site import ISSUER, WAIT, request


def answer(record: IssuanceRecord) -> bytes:
    return f"{record.id} {record.counter}".encode()


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Desk:
    """The use case, and its ledger to look into."""

    issuing: Issuing
    vaults: Vaults
    ledger: Ledger
    path: Path

    async def issue(self, fields: RequestedIssue) -> bytes:
        return await asyncio.wait_for(self.issuing.issue(ISSUER, fields, None), WAIT)

    async def refused(self, fields: RequestedIssue) -> Reason:
        with pytest.raises(ApplianceError) as caught:
            await self.issue(fields)
        return caught.value.reason

    async def records(self) -> list[IssuanceRecord]:
        records, _ = await self.ledger.list(page_size=100)
        return list(records)

    def attempts(self) -> list[tuple[int, bytes]]:
        """Counter and serial of every attempt, as they stand in the database."""
        with sqlite3.connect(self.path) as database:
            return database.execute("SELECT counter, serial FROM attempts ORDER BY number").fetchall()


@pytest.fixture
async def desk(settings: Settings, sockets: Path) -> AsyncIterator[Desk]:
    ledger = Ledger.open(settings.front.ledger)
    async with Vaults(sockets, patience=WAIT) as vaults:
        issuing = Issuing(
            ledger,
            vaults,
            issuers=settings.sim_issuers,
            profile=settings.profiles["test"],
            content_key=bytes(32),
            clock=utc_now,
            answer=answer,
        )
        yield Desk(issuing, vaults, ledger, Path(settings.front.ledger.removeprefix("sqlite:///")))
    ledger.close()


@pytest.fixture
async def vault(desk: Desk, sockets: Path) -> AsyncIterator[FakeVault]:
    async with FakeVault(sockets) as vault:
        await desk.vaults.wait_ready(WAIT)
        yield vault


def fields(person: str = "person-1") -> RequestedIssue:
    return requested_issue(request(person))


async def test_a_vault_that_dies_costs_an_attempt_and_the_next_one_has_a_counter_and_serial_of_its_own(
    desk: Desk, vault: FakeVault, sockets: Path
) -> None:
    vault.let_go.clear()
    issuing = asyncio.create_task(desk.issue(fields()))
    await asyncio.wait_for(vault.taken.acquire(), WAIT)
    await vault.die()
    async with FakeVault(sockets, "v0-2") as next_vault:
        answered = await issuing
    (lost,), (made,) = vault.items, next_vault.items
    assert made.package_counter > lost.package_counter
    assert made.certificate_serial != lost.certificate_serial
    assert desk.attempts() == [(i.package_counter, i.certificate_serial) for i in (lost, made)]
    (record,) = await desk.records()
    assert (record.state, answered) == (State.READY, answer(record))
    assert record.counter == made.package_counter


async def test_a_request_that_kills_three_vaults_is_failed(desk: Desk, sockets: Path) -> None:
    wanted = fields()
    issuing: asyncio.Task[Reason] | None = None
    for generation in range(3):
        async with FakeVault(sockets, f"v0-{generation}") as dying:
            dying.let_go.clear()
            await desk.vaults.wait_ready(WAIT)
            issuing = issuing or asyncio.create_task(desk.refused(wanted))
            await asyncio.wait_for(dying.taken.acquire(), WAIT)
    assert issuing
    assert await issuing is Reason.ISSUANCE_FAILED
    assert [record.state for record in await desk.records()] == [State.FAILED]
    async with FakeVault(sockets, "v0-9") as healthy:
        await desk.vaults.wait_ready(WAIT)
        assert await desk.refused(wanted) is Reason.ISSUANCE_FAILED
        assert healthy.items == []


async def test_a_request_that_kills_vaults_takes_no_other_with_it(desk: Desk, sockets: Path) -> None:
    poison = requested_issue(request("poison", subject_common_name="DEADLY000"))
    people = ("one", "two", "three")
    calls: list[asyncio.Task[Any]] = []
    for generation in (1, 2):  # the first retry waits for nobody: all come again at once
        async with FakeVault(sockets, f"v0-{generation}") as dying:
            dying.let_go.clear()
            await desk.vaults.wait_ready(WAIT)
            calls = calls or [
                asyncio.create_task(desk.refused(poison)),
                *(asyncio.create_task(desk.issue(fields(person))) for person in people),
            ]
            for _ in calls:
                await asyncio.wait_for(dying.taken.acquire(), WAIT)
    async with FakeVault(sockets, "v0-3") as third:
        third.deadly = poison.subject_common_name
        third.let_go.clear()
        await asyncio.wait_for(third.taken.acquire(), WAIT)
        await asyncio.sleep(0.05)  # time enough for others to come too, if they did
        assert third.taken.locked()
        third.let_go.set()
        await asyncio.wait_for(third.dead.wait(), WAIT)
    async with FakeVault(sockets, "v0-4"):
        fatal, *innocent = calls
        assert await fatal is Reason.ISSUANCE_FAILED
        await asyncio.gather(*innocent)
    states = {record.person_id: record.state for record in await desk.records()}
    assert states == {"poison": State.FAILED} | dict.fromkeys(people, State.READY)


async def test_what_the_vault_refuses_in_the_request_fails_the_issuance(desk: Desk, vault: FakeVault) -> None:
    wanted = fields()
    vault.refusal = ApplianceError(Reason.CERTIFICATE_REFUSED, "A lint is broken.", hint="-")
    assert await desk.refused(wanted) is Reason.CERTIFICATE_REFUSED
    (record,) = await desk.records()
    assert (record.state, record.end_reason) == (State.FAILED, "CERTIFICATE_REFUSED")
    vault.refusal = None
    assert await desk.refused(wanted) is Reason.ISSUANCE_FAILED
    assert await desk.issue(fields())


@pytest.mark.parametrize(
    "reason", [Reason.TOKEN_FAULT, Reason.NODE_INCONSISTENT, Reason.KEY_SET_NOT_USABLE, Reason.INTERNAL]
)
async def test_after_a_fault_the_same_request_completes_what_it_reserved(
    desk: Desk, vault: FakeVault, reason: Reason
) -> None:
    wanted = fields()
    vault.refusal = ApplianceError(reason, "Something is wrong.", hint="-")
    assert await desk.refused(wanted) is reason
    (reserved,) = await desk.records()
    assert reserved.state is State.RESERVED
    assert await desk.refused(fields()) is Reason.PERSON_HAS_LIVE_ISSUANCE
    vault.refusal = None
    await desk.issue(wanted)
    (completed,) = await desk.records()
    assert (completed.id, completed.state) == (reserved.id, State.READY)
    first, second = vault.items
    assert second.package_counter > first.package_counter
    assert second.certificate_serial != first.certificate_serial


async def test_what_was_reserved_is_made_though_settings_have_changed_since(
    desk: Desk, vault: FakeVault, settings: Settings
) -> None:
    wanted = fields()
    vault.refusal = ApplianceError(Reason.TOKEN_FAULT, "Something is wrong.", hint="-")
    await desk.refused(wanted)
    vault.refusal = None
    issuer = settings.sim_issuers["mno-a"]
    other = replace(issuer, applet_aid="A0000000010203")
    changed = Issuing(
        desk.ledger,
        desk.vaults,
        issuers={"mno-a": other},
        profile=settings.profiles["test"],
        content_key=bytes(32),
        clock=utc_now,
        answer=answer,
    )
    await changed.issue(ISSUER, wanted, None)
    assert vault.items[-1].applet_aid == issuer.applet_aid_bytes


async def test_the_same_request_id_of_another_client_is_another_request(desk: Desk, vault: FakeVault) -> None:
    one = fields("one")
    first = await desk.issue(one)
    second = await desk.issuing.issue("urn:other", replace(one, person_id="other"), None)
    assert first != second
    assert len(vault.items) == 2


async def test_drain_waits_for_what_is_under_way(desk: Desk, vault: FakeVault) -> None:
    await desk.issuing.drain(0)
    vault.let_go.clear()
    call = asyncio.create_task(desk.issue(fields()))
    await asyncio.wait_for(vault.taken.acquire(), WAIT)
    call.cancel()
    drained = asyncio.create_task(desk.issuing.drain(WAIT))
    vault.let_go.set()
    await drained
    assert [record.state for record in await desk.records()] == [State.READY]


async def test_drain_cuts_off_what_takes_too_long_and_a_repeat_completes_it(desk: Desk, vault: FakeVault) -> None:
    wanted = fields()
    vault.let_go.clear()
    call = asyncio.create_task(desk.issue(wanted))
    await asyncio.wait_for(vault.taken.acquire(), WAIT)
    await desk.issuing.drain(0.01)
    with pytest.raises(asyncio.CancelledError):
        await call
    assert [record.state for record in await desk.records()] == [State.RESERVED]
    vault.let_go.set()
    assert await desk.issue(wanted)


async def test_a_late_answer_is_dropped(desk: Desk, vault: FakeVault) -> None:
    vault.let_go.clear()
    issuing = asyncio.create_task(desk.refused(fields()))
    await asyncio.wait_for(vault.taken.acquire(), WAIT)
    (reserved,) = await desk.records()
    await desk.ledger.abandon(ISSUER, str(uuid.uuid4()), bytes(32), reserved.id, answer)
    vault.let_go.set()
    assert await issuing is Reason.ISSUANCE_ENDED
    (record,) = await desk.records()
    assert (record.state, record.certificate) == (State.ABANDONED, None)
