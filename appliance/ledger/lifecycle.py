"""From the sealed key to its end: its certificate, scripts, receipts, abandonment; the erasure of the wrapped key."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select, update

from appliance.domain.audit import Event
from appliance.domain.issuance import IssuanceRecord, Move, State, next_state, not_awaited, not_ready, overdue
from appliance.domain.package import SimPackage
from appliance.errors import ApplianceError, Reason
from appliance.ledger.calls import Call, earlier
from appliance.ledger.change import APPLIANCE, Change
from appliance.ledger.queries import Row, record_of, row_of
from appliance.ledger.schema import issuances

_UPDATE = update(issuances).where(issuances.c.id == bindparam("issuance"))
_OVERDUE = (
    select(issuances)
    .where(issuances.c.certificate_due <= bindparam("now", type_=issuances.c.certificate_due.type))
    .order_by(issuances.c.certificate_due)
    .limit(bindparam("most"))
)
_OF_SERIAL = select(issuances.c.id).where(
    issuances.c.certificate_issuer == bindparam("ca"), issuances.c.certificate_serial == bindparam("serial")
)

Answer = Callable[[IssuanceRecord], bytes]


class ForeignCertificate(NamedTuple):
    """A certificate of an external CA: its DER, its issuer's name in DER, its serial number, big-endian, unsigned."""

    der: bytes
    issuer: bytes
    serial: bytes


def certify(
    change: Change,
    call: Call,
    issuance: str,
    certificate: ForeignCertificate,
    package: bytes | None,
    answer: Answer,
) -> bytes | ApplianceError:
    """READY, with the certificate that was awaited; where that is overdue the end stays, so its error is an answer."""
    request = earlier(change.connection, call.client, call.request_id, call.digest)
    if request is not None:
        return bytes(request["answer"])
    row = row_of(change.connection, issuance)
    if row["end_reason"] == Reason.CERTIFICATE_OVERDUE:
        raise overdue(issuance)
    state = next_state(State(row["state"]), Move.CERTIFY)
    if state == row["state"]:
        if row["certificate"] != certificate.der:
            raise not_awaited(state)
        return _answered(change, call, row, answer)
    if package is None or row["certificate_due"] <= change.now:
        expire(change, row)
        return overdue(issuance)
    _require_unused(change, certificate)
    parts = _completed(row, certificate, package)
    row = amend(
        change,
        row,
        state=state,
        updated=change.now,
        certificate_serial=certificate.serial,
        certificate_issuer=certificate.issuer,
        certificate=certificate.der,
        package_mac=parts.mac,
        package_sha256=hashlib.sha256(package).digest(),
        **_AWAITS_NOTHING,
    )
    change.record(
        Event.COMPLETED,
        issuance,
        call.client,
        request_id=call.request_id,
        serial=certificate.serial.hex(),
        header_sha256=parts.header.digest().hex(),
        package_sha256=row["package_sha256"].hex(),
        certificate_sha256=hashlib.sha256(certificate.der).hexdigest(),
    )
    return _answered(change, call, row, answer)


def expire_overdue(change: Change, most: int) -> list[str]:
    """Ends at most so many issuances whose certificates are overdue, the oldest first; their ids."""
    rows = change.connection.execute(_OVERDUE, {"now": change.now, "most": most}).mappings().all()
    for row in rows:
        expire(change, row)
    return [row["id"] for row in rows]


def expire(change: Change, row: Row) -> None:
    """ABANDONED, because its certificate is overdue."""
    detail = f"No certificate had come by {row['certificate_due']:%Y-%m-%dT%H:%M:%SZ}."
    end(change, row, Move.EXPIRE, Event.EXPIRED, APPLIANCE, Reason.CERTIFICATE_OVERDUE, detail)


def prepare_script(change: Change, call: Call, issuance: str, host_challenge: bytes) -> tuple[IssuanceRecord, bytes]:
    """The record with its package, and the host challenge kept for this call."""
    request = earlier(change.connection, call.client, call.request_id, call.digest)
    row = row_of(change.connection, issuance)
    if row["state"] != State.READY:
        raise not_ready(State(row["state"]))
    record = record_of(row)
    if hashlib.sha256(record.package or b"").digest() != row["package_sha256"]:
        raise ApplianceError(
            Reason.INTERNAL,
            "The stored package is not the one that was sealed; the SIM would refuse it.",
            hint="Tell the operator, who runs: appliance ledger check.",
            issuance=f"issuances/{issuance}",
        )
    if request is not None:
        return record, request["host_challenge"]
    call.keep(change, issuance, host_challenge=host_challenge)
    change.record(Event.SCRIPT_FETCHED, issuance, call.client, request_id=call.request_id)
    return record, host_challenge


def activate(change: Change, call: Call, issuance: str, answer: Answer) -> bytes:
    """ACTIVE, after the receipt was verified."""
    request = earlier(change.connection, call.client, call.request_id, call.digest)
    if request is not None:
        return bytes(request["answer"])
    row = row_of(change.connection, issuance)
    if next_state(State(row["state"]), Move.ACTIVATE) != row["state"]:
        row = _leave(change, row, Move.ACTIVATE)
        change.record(Event.ACTIVATED, issuance, call.client, request_id=call.request_id)
    return _answered(change, call, row, answer)


def abandon(change: Change, call: Call, issuance: str, answer: Answer) -> bytes:
    """ABANDONED at the client's wish."""
    request = earlier(change.connection, call.client, call.request_id, call.digest)
    if request is not None:
        return bytes(request["answer"])
    row = row_of(change.connection, issuance)
    detail = "It was abandoned at the issuer's request."
    row = end(change, row, Move.ABANDON, Event.ABANDONED, call.client, Reason.ISSUANCE_ENDED, detail)
    return _answered(change, call, row, answer)


def end(change: Change, row: Row, move: Move, event: Event, actor: str, reason: Reason, detail: str) -> Row:
    """Moves an issuance to one of its ends, with the reason that answers will give; its row afterwards."""
    change.record(event, row["id"], actor, end_reason=reason)
    return _leave(change, row, move, end_reason=reason, end_detail=detail)


def amend(change: Change, row: Row, **columns: Any) -> Row:
    """The row with other values in these columns."""
    change.connection.execute(_UPDATE, {"issuance": row["id"], **columns})
    return {**row, **columns}


def _leave(change: Change, row: Row, move: Move, **columns: str) -> Row:
    """Moves on from a state that may hold a wrapped key to one that must not."""
    change.erases = change.erases or row["wrapped_key"] is not None
    state = next_state(State(row["state"]), move)
    return amend(change, row, state=state, updated=change.now, wrapped_key=None, **_AWAITS_NOTHING, **columns)


_AWAITS_NOTHING = dict.fromkeys(("certificate_request", "interim_mac", "certificate_due"))


def _require_unused(change: Change, certificate: ForeignCertificate) -> None:
    of_serial = {"ca": certificate.issuer, "serial": certificate.serial}
    if change.connection.execute(_OF_SERIAL, of_serial).first() is not None:
        raise ApplianceError(
            Reason.CERTIFICATE_REFUSED,
            "The certificate cannot be taken. Another issuance has one of this CA with this serial number.",
            hint="Have the CA issue one with a serial number of its own. Nothing has changed.",
            field="certificate",
            lints="serial_number_unused",
        )


def _completed(row: Row, certificate: ForeignCertificate, package: bytes) -> SimPackage:
    parts = SimPackage.decode(package)
    if (parts.header.encode(), parts.wrapped, parts.certificate) != (
        row["header"],
        row["wrapped_key"],
        certificate.der,
    ):
        raise ApplianceError(
            Reason.INTERNAL, "The package is not what was to be completed.", hint="Nothing was stored; see the log."
        )
    return parts


def _answered(change: Change, call: Call, row: Row, answer: Answer) -> bytes:
    made = answer(record_of(row, with_package=False))
    call.keep(change, row["id"], answer=made)
    return made
