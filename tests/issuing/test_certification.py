"""Certificates of an external CA: the use case with the real ledger and fake vaults."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.config import Settings
from appliance.domain.issuance import IssuanceRecord, State
from appliance.errors import ApplianceError, Reason
from appliance.issuing.certification import SWEEP_BATCH, Certification
from appliance.issuing.issue import CERTIFICATE_WAIT, Issuing
from appliance.issuing.vaults import Vaults
from appliance.ledger import Ledger
from appliance.server.messages import requested_issue
from tests.foreign_ca import ForeignCa
from tests.server.fake_vault import FakeVault
from tests.server.site import ISSUER, WAIT, request

CERTIFICATE, OTHER = ForeignCa().der, ForeignCa().der
"""The fake takes them unseen."""


@dataclass
class Clock:
    ahead: timedelta = field(default_factory=timedelta)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class Desk:
    """The use cases, and their ledger to look into."""

    issuing: Issuing
    certification: Certification
    ledger: Ledger
    vaults: Vaults
    clock: Clock

    async def issued(self, person: str = "person-1") -> str:
        """The name of an issuance that waits, or is RESERVED where the vault refuses."""
        with contextlib.suppress(ApplianceError):
            await asyncio.wait_for(self.issuing.issue(ISSUER, requested_issue(request(person)), None), WAIT)
        records, _ = await self.ledger.list(page_size=10, person_id=person)
        return f"issuances/{records[-1].id}"

    async def record(self, name: str) -> IssuanceRecord:
        return await self.ledger.get(name.removeprefix("issuances/"))

    async def submit(self, name: str, certificate: bytes = CERTIFICATE, request_id: str = "") -> bytes:
        call = self.certification.submit(ISSUER, request_id or str(uuid.uuid4()), name, certificate)
        return await asyncio.wait_for(call, WAIT)

    async def refused(self, name: str, certificate: bytes = CERTIFICATE) -> ApplianceError:
        with pytest.raises(ApplianceError) as caught:
            await self.submit(name, certificate)
        return caught.value


@pytest.fixture
async def desk(settings: Settings, sockets: Path) -> AsyncIterator[Desk]:
    clock = Clock()
    ledger = Ledger.open(settings.front.ledger, clock=clock)
    async with Vaults(sockets, patience=WAIT) as vaults:
        common = {"content_key": bytes(32), "clock": clock, "answer": lambda record: f"{record.state}".encode()}
        issuing = Issuing(
            ledger,
            vaults,
            issuers=settings.sim_issuers,
            profile=settings.profiles["test"],
            **common,  # type: ignore[arg-type]  # mypy takes the values for one type
        )
        certification = Certification(ledger, vaults, **common)  # type: ignore[arg-type]  # likewise
        yield Desk(issuing, certification, ledger, vaults, clock)
    ledger.close()


@pytest.fixture
async def vault(desk: Desk, sockets: Path) -> AsyncIterator[FakeVault]:
    async with FakeVault(sockets) as vault:
        vault.external = True
        await desk.vaults.wait_ready(WAIT)
        yield vault


async def test_what_was_sealed_goes_to_the_vault_with_its_certificate_and_nothing_else_does(
    desk: Desk, vault: FakeVault
) -> None:
    name = await desk.issued()
    waiting = await desk.record(name)
    assert waiting.state is State.AWAITING_CERTIFICATE
    assert waiting.certificate_due is not None
    assert abs(waiting.certificate_due - desk.clock() - CERTIFICATE_WAIT) < timedelta(seconds=WAIT)
    assert waiting.pending is not None
    assert await desk.submit(name) == b"READY"
    (item,) = vault.completions
    assert (item.header, item.wrapped_key) == (waiting.header, waiting.pending.wrapped)
    assert (item.interim_mac, item.certificate) == (waiting.pending.interim_mac, CERTIFICATE)
    assert (item.profile, item.subject_common_name) == ("test", waiting.subject_common_name)
    assert item.latest_end_seconds == int(waiting.card_not_after.timestamp())
    assert (await desk.record(name)).package is not None


async def test_repeated_call_is_answered_without_a_vault(desk: Desk, vault: FakeVault) -> None:
    name, request_id = await desk.issued(), str(uuid.uuid4())
    first = await desk.submit(name, request_id=request_id)
    await vault.die()
    assert await desk.submit(name, request_id=request_id) == first
    assert await desk.submit(name) == first, "the same certificate under another request_id"
    assert (await desk.refused(name, OTHER)).reason is Reason.CERTIFICATE_NOT_AWAITED
    with pytest.raises(ApplianceError) as caught:
        await desk.submit(name, OTHER, request_id)
    assert caught.value.reason is Reason.REQUEST_ID_REUSED
    assert len(vault.completions) == 1


@pytest.mark.parametrize(
    ("certificate", "way"),
    [(CERTIFICATE + b"\x00", "behind it"), (bytes(2049), "2048 bytes"), (b"", "one certificate")],
    ids=["trailing byte", "oversize", "nothing"],
)
async def test_what_is_no_certificate_is_refused_before_anything_is_looked_up(
    desk: Desk, vault: FakeVault, certificate: bytes, way: str
) -> None:
    error = await desk.refused(f"issuances/{'0' * 32}", certificate)
    assert (error.reason, error.field, error.facts["lints"]) == (Reason.CERTIFICATE_REFUSED, "certificate", "form")
    assert way in error.detail
    assert vault.completions == []


async def test_refusal_of_the_vault_changes_nothing_and_another_certificate_completes(
    desk: Desk, vault: FakeVault
) -> None:
    name = await desk.issued()
    before = await desk.record(name)
    vault.refusal = ApplianceError(Reason.CERTIFICATE_REFUSED, "Another key's.", hint="-")
    assert (await desk.refused(name)).reason is Reason.CERTIFICATE_REFUSED
    assert await desk.record(name) == before
    vault.refusal = None
    assert await desk.submit(name, OTHER) == b"READY"


async def test_lost_vaults_are_replaced_and_cost_nothing(desk: Desk, vault: FakeVault, sockets: Path) -> None:
    name = await desk.issued()
    while not vault.taken.locked():
        await vault.taken.acquire()
    vault.let_go.clear()
    submitting = asyncio.create_task(desk.submit(name))
    await asyncio.wait_for(vault.taken.acquire(), WAIT)
    await vault.die()
    async with FakeVault(sockets, "v0-2") as next_vault:
        assert await submitting == b"READY"
    assert len(next_vault.completions) == 1


async def test_certificate_that_kills_every_vault_leaves_the_issuance_waiting(desk: Desk, sockets: Path) -> None:
    name = ""
    submitting: asyncio.Task[ApplianceError] | None = None
    for generation in range(3):
        async with FakeVault(sockets, f"v0-{generation}") as dying:
            dying.external = True
            await desk.vaults.wait_ready(WAIT)
            name = name or await desk.issued()
            while not dying.taken.locked():
                await dying.taken.acquire()
            dying.let_go.clear()
            submitting = submitting or asyncio.create_task(desk.refused(name))
            await asyncio.wait_for(dying.taken.acquire(), WAIT)
    assert submitting
    assert (await submitting).reason is Reason.VAULTS_UNAVAILABLE
    assert (await desk.record(name)).state is State.AWAITING_CERTIFICATE


async def test_what_does_not_wait_never_reaches_the_vault(desk: Desk, vault: FakeVault) -> None:
    vault.refusal = ApplianceError(Reason.TOKEN_FAULT, "Once.", hint="-")
    reserved = await desk.issued("reserved")
    vault.refusal = None
    abandoned = await desk.issued("abandoned")
    await desk.ledger.abandon(ISSUER, str(uuid.uuid4()), bytes(32), abandoned.removeprefix("issuances/"), lambda _: b"")
    for name, reason in (
        (reserved, Reason.CERTIFICATE_NOT_AWAITED),
        (abandoned, Reason.ISSUANCE_ENDED),
        (f"issuances/{'0' * 32}", Reason.ISSUANCE_NOT_FOUND),
        ("issuances/1", Reason.NAME_INVALID),
    ):
        assert (await desk.refused(name)).reason is reason
    assert vault.completions == []


async def test_overdue_certificate_never_reaches_the_vault_and_ends_its_issuance(desk: Desk, vault: FakeVault) -> None:
    name = await desk.issued()
    desk.clock.ahead = CERTIFICATE_WAIT + timedelta(seconds=WAIT)
    for _ in range(2):
        assert (await desk.refused(name)).reason is Reason.CERTIFICATE_OVERDUE
    record = await desk.record(name)
    assert (record.state, record.end_reason) == (State.ABANDONED, Reason.CERTIFICATE_OVERDUE)
    assert vault.completions == []


async def test_certificate_that_comes_too_late_while_the_vault_works_is_not_taken(desk: Desk, vault: FakeVault) -> None:
    name = await desk.issued()
    while not vault.taken.locked():
        await vault.taken.acquire()
    vault.let_go.clear()
    submitting = asyncio.create_task(desk.refused(name))
    await asyncio.wait_for(vault.taken.acquire(), WAIT)
    desk.clock.ahead = CERTIFICATE_WAIT + timedelta(seconds=WAIT)
    vault.let_go.set()
    assert (await submitting).reason is Reason.CERTIFICATE_OVERDUE
    assert (await desk.record(name)).state is State.ABANDONED


async def test_sweep_ends_what_is_overdue_and_survives_a_ledger_that_fails(
    desk: Desk, vault: FakeVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    overdue = await desk.issued("overdue")
    desk.clock.ahead = timedelta(days=1)
    waiting = await desk.issued("waiting")
    desk.clock.ahead = CERTIFICATE_WAIT + timedelta(seconds=WAIT)
    asked: list[int] = []
    real = desk.ledger.expire_overdue

    async def expire(most: int) -> object:
        asked.append(most)
        if len(asked) == 1:
            raise ApplianceError(Reason.LEDGER_UNAVAILABLE, "The disk is full.", hint="-")
        return await real(most)

    monkeypatch.setattr(desk.ledger, "expire_overdue", expire)
    monkeypatch.setattr("appliance.issuing.certification.SWEEP_SECONDS", 0.01)
    following = asyncio.create_task(desk.certification.follow())
    async with asyncio.timeout(WAIT):
        while (await desk.record(overdue)).state is not State.ABANDONED:
            await asyncio.sleep(0.01)
    following.cancel()
    assert (await desk.record(waiting)).state is State.AWAITING_CERTIFICATE
    assert set(asked) == {SWEEP_BATCH}
    assert vault.completions == []
