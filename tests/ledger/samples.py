"""Orders, packages and answers that fit together, and a clock that obeys."""

import secrets
import uuid
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from appliance.domain.issuance import Attempt, IssuanceRecord
from appliance.domain.package import Header, KeyType, PendingPackage, SimPackage
from appliance.domain.request import IssueOrder
from appliance.domain.sim import Iccid, luhn_check_digit
from appliance.errors import ApplianceError
from appliance.ledger import ForeignCertificate, Ledger, Reservation

ISSUER = "urn:appliance:role:issuer:test"
TSM = "urn:appliance:role:tsm:test"
DIGEST = b"\x11" * 32


@dataclass
class Clock:
    """A clock that stands until it is told to go on."""

    now: datetime = datetime(2026, 7, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **amount: float) -> None:
        self.now += timedelta(**amount)


def iccid(number: int) -> Iccid:
    digits = f"898130911417{number:06d}"
    return Iccid(digits + luhn_check_digit(digits))


def order(person: str = "person-1", *, sim: int = 1, request_id: str = "") -> IssueOrder:
    end = datetime(2029, 7, 1, tzinfo=UTC)
    return IssueOrder(
        request_id=request_id or str(uuid.uuid4()),
        person_id=person,
        subject_common_name="0000000001ABCDEFGHIJ000000000A1A",
        not_after=end,
        card_issuer="C=JP,O=JPKI",
        card_serial=b"\x12\x34",
        card_not_after=end + timedelta(days=100),
        sim_issuer="example-mno",
        iccid=iccid(sim),
        kvn=0x30,
        applet_aid=bytes.fromhex("D392F000260100000001"),
        key_type=KeyType.EC_P256,
        activation_code="ACTIVATE1234",
        profile="jpki-user-authentication",
    )


def package(record: IssuanceRecord, attempt: Attempt, wrapped_length: int = 160) -> SimPackage:
    """A well-formed package for this attempt; what is secret in it is random, so that it can be looked for."""
    header = Header(
        iccid=Iccid(record.iccid).ef_coding,
        applet_aid=record.applet_aid,
        kvn=record.kvn,
        counter=attempt.counter,
        key_type=record.key_type,
        spki_sha256=secrets.token_bytes(32),
        activation_check=secrets.token_bytes(8),
    )
    return SimPackage(header, secrets.token_bytes(wrapped_length), secrets.token_bytes(900), secrets.token_bytes(16))


def pending(record: IssuanceRecord, attempt: Attempt) -> PendingPackage:
    """What waits for a certificate after this attempt."""
    sealed = package(record, attempt)
    return PendingPackage(sealed.header, sealed.wrapped, secrets.token_bytes(300), secrets.token_bytes(16))


def foreign(serial: int = 1, ca: bytes = b"J-LIS") -> ForeignCertificate:
    """A certificate of an external CA, as far as the ledger looks into one."""
    return ForeignCertificate(secrets.token_bytes(900), ca, serial.to_bytes(8).lstrip(bytes(1)))


def completed(waiting: PendingPackage, certificate: ForeignCertificate) -> bytes:
    """The package that the vault makes of both."""
    return SimPackage(waiting.header, waiting.wrapped, certificate.der, secrets.token_bytes(16)).encode()


def answer(record: IssuanceRecord) -> bytes:
    return f"{record.id} {record.state} {record.counter}".encode()


async def make_ready(ledger: Ledger, wanted: IssueOrder) -> tuple[Reservation, SimPackage]:
    reservation = await ledger.reserve(ISSUER, wanted, DIGEST)
    assert reservation.attempt is not None
    made = package(reservation.record, reservation.attempt)
    await ledger.complete(reservation.attempt, made.encode(), answer)
    return reservation, made


async def make_awaiting(
    ledger: Ledger, wanted: IssueOrder, due: datetime = datetime(2026, 7, 15, tzinfo=UTC)
) -> tuple[Reservation, PendingPackage]:
    """An issuance that waits for its certificate."""
    reservation = await ledger.reserve(ISSUER, wanted, DIGEST)
    assert reservation.attempt is not None
    made = pending(reservation.record, reservation.attempt)
    await ledger.await_certificate(reservation.attempt, made, due, answer)
    return reservation, made


async def refused(call: Awaitable[object]) -> ApplianceError:
    """The error that the call ends in."""
    with pytest.raises(ApplianceError) as caught:
        await call
    return caught.value
