"""Reserve, attempt, record: the changes from an accepted request to its sealed key (ARCHITECTURE.md)."""

import hashlib
import secrets
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import bindparam, func, insert, select, update

from appliance.domain.audit import SALT_LENGTH, Event, salted_digest
from appliance.domain.issuance import (
    KIND,
    LIVE,
    MAX_LOST_ATTEMPTS,
    RESERVATION_IDLE,
    Attempt,
    IssuanceRecord,
    Move,
    State,
    next_counter,
    next_state,
)
from appliance.domain.package import Header, PendingPackage, SimPackage
from appliance.domain.request import IssueOrder
from appliance.domain.sim import Iccid
from appliance.errors import ApplianceError, Reason
from appliance.ledger.calls import Call, earlier
from appliance.ledger.change import APPLIANCE, Change
from appliance.ledger.lifecycle import Answer, amend, end, expire
from appliance.ledger.queries import Row, record_of, row_of
from appliance.ledger.schema import attempts, issuances, requests, sims

SERIAL_LENGTH = 16

_LIVE = select(issuances).where(
    issuances.c.person_id == bindparam("person"), issuances.c.kind == KIND, issuances.c.state.in_(sorted(LIVE))
)
_LAST_COUNTER = select(sims.c.last_counter).where(sims.c.iccid == bindparam("sim"))
_MOVE_COUNTER = update(sims).where(sims.c.iccid == bindparam("sim"))
_OWN_REQUEST = (requests.c.client == bindparam("caller"), requests.c.request_id == bindparam("request"))
_ANSWER = select(requests.c.answer).where(*_OWN_REQUEST)
_KEEP_ANSWER = update(requests).where(*_OWN_REQUEST)


@dataclass(frozen=True)
class Reservation:
    """Either an attempt to make now, or the stored answer of a finished request."""

    record: IssuanceRecord
    attempt: Attempt | None
    answer: bytes | None


def reserve(change: Change, client: str, order: IssueOrder, digest: bytes) -> Reservation:
    """A new issuance with its first attempt, or the request's own one resumed."""
    request = earlier(change.connection, client, order.request_id, digest)
    if request is not None:
        return _resume(change, request)
    _make_room(change, order.person_id)
    row = _insert_issuance(change, client, order)
    Call(client, order.request_id, "Issue", digest).keep(change, row["id"])
    attempt = _open_attempt(change, row, client)
    return Reservation(record_of(row), attempt, None)


def retry(change: Change, issuance: str, lost_attempt: int) -> Attempt | ApplianceError:
    """A new attempt in place of a lost one. A loss is a change that stays, so an error that follows is an answer."""
    row = row_of(change.connection, issuance)
    next_state(State(row["state"]), Move.COMPLETE)
    if row["attempt"] != lost_attempt:
        raise _late(row)
    own = attempts.c.issuance == issuance
    change.connection.execute(update(attempts).where(own, attempts.c.number == lost_attempt).values(lost=True))
    lost = change.connection.execute(
        select(func.count()).select_from(attempts).where(own, attempts.c.lost)
    ).scalar_one()
    if lost < MAX_LOST_ATTEMPTS:
        try:
            return _open_attempt(change, row, APPLIANCE, lost=str(lost))
        except ApplianceError as refusal:
            return refusal
    detail = f"{lost} attempts to make it lost their vault."
    return _failed(end(change, row, Move.FAIL, Event.FAILED, APPLIANCE, Reason.TOKEN_FAULT, detail))


def complete(change: Change, attempt: Attempt, package: bytes, answer: Answer) -> bytes:
    """The newest attempt's package and answer are kept: READY."""
    row = row_of(change.connection, attempt.issuance)
    stored = _stored_answer(change, row)
    if stored is not None:
        return stored
    state = _state_after(row, attempt, Move.COMPLETE)
    parts = SimPackage.decode(package)
    _require_ordered(row, attempt, parts.header)
    ready = amend(
        change,
        row,
        state=state,
        updated=change.now,
        counter=attempt.counter,
        certificate_serial=attempt.serial,
        certificate=parts.certificate,
        header=parts.header.encode(),
        wrapped_key=parts.wrapped,
        package_mac=parts.mac,
        package_sha256=hashlib.sha256(package).digest(),
    )
    change.record(
        Event.COMPLETED,
        attempt.issuance,
        APPLIANCE,
        attempt=str(attempt.number),
        serial=attempt.serial.hex(),
        header_sha256=parts.header.digest().hex(),
        package_sha256=ready["package_sha256"].hex(),
        certificate_sha256=hashlib.sha256(parts.certificate).hexdigest(),
    )
    return _answered(change, ready, answer)


def await_certificate(
    change: Change, attempt: Attempt, pending: PendingPackage, due: datetime, answer: Answer
) -> bytes:
    """The newest attempt's sealed key, its certificate request and the answer are kept: AWAITING_CERTIFICATE."""
    row = row_of(change.connection, attempt.issuance)
    stored = _stored_answer(change, row)
    if stored is not None:
        return stored
    state = _state_after(row, attempt, Move.REQUEST_CERTIFICATE)
    _require_ordered(row, attempt, pending.header)
    awaiting = amend(
        change,
        row,
        state=state,
        updated=change.now,
        counter=attempt.counter,
        header=pending.header.encode(),
        wrapped_key=pending.wrapped,
        certificate_request=pending.certificate_request,
        interim_mac=pending.interim_mac,
        certificate_due=due,
    )
    change.record(
        Event.CERTIFICATE_REQUESTED,
        attempt.issuance,
        APPLIANCE,
        attempt=str(attempt.number),
        header_sha256=pending.header.digest().hex(),
        request_sha256=hashlib.sha256(pending.certificate_request).hexdigest(),
        due=due.isoformat(),
    )
    return _answered(change, awaiting, answer)


def fail(change: Change, attempt: Attempt, reason: str, detail: str) -> None:
    """The newest attempt of a RESERVED issuance ends it; any other changes nothing."""
    row = row_of(change.connection, attempt.issuance)
    if row["state"] == State.RESERVED and row["attempt"] == attempt.number:
        end(change, row, Move.FAIL, Event.FAILED, APPLIANCE, Reason(reason), detail)


def _resume(change: Change, request: Row) -> Reservation:
    row = row_of(change.connection, request["issuance"])
    if request["answer"] is not None:
        return Reservation(record_of(row), None, request["answer"])
    if row["state"] == State.FAILED:
        raise _failed(row)
    next_state(State(row["state"]), Move.COMPLETE)
    attempt = _open_attempt(change, row, row["client"])
    return Reservation(record_of(row), attempt, None)


def _make_room(change: Change, person_id: str) -> None:
    """Ends what of this person idles or is overdue; refuses for any other live issuance, as the database would too."""
    row = change.connection.execute(_LIVE, {"person": person_id}).mappings().first()
    if row is None:
        return
    if row["state"] == State.AWAITING_CERTIFICATE and row["certificate_due"] <= change.now:
        expire(change, row)
        return
    if row["state"] != State.RESERVED or change.now - row["attempted"] < RESERVATION_IDLE:
        raise ApplianceError(
            Reason.PERSON_HAS_LIVE_ISSUANCE,
            "The person already has a live issuance.",
            hint="Deliver it, abandon it, or repeat the request that made it.",
            field="person_id",
            issuance=f"issuances/{row['id']}",
        )
    detail = "It idled in RESERVED and gave way to a new request for its person."
    end(change, row, Move.SUPERSEDE, Event.SUPERSEDED, APPLIANCE, Reason.PERSON_HAS_LIVE_ISSUANCE, detail)


def _insert_issuance(change: Change, client: str, order: IssueOrder) -> Row:
    issuance = uuid.uuid4().hex
    salt = secrets.token_bytes(SALT_LENGTH)
    row = dict.fromkeys(issuances.c.keys()) | {
        "id": issuance,
        "client": client,
        "request_id": order.request_id,
        "kind": KIND,
        "state": State.RESERVED,
        "person_id": order.person_id,
        "sim_issuer": order.sim_issuer,
        "iccid": order.iccid.digits,
        "kvn": order.kvn,
        "applet_aid": order.applet_aid,
        "key_type": order.key_type,
        "profile": order.profile,
        "subject_common_name": order.subject_common_name,
        "not_after": order.not_after,
        "card_issuer": order.card_issuer,
        "card_serial": order.card_serial,
        "card_not_after": order.card_not_after,
        "created": change.now,
        "updated": change.now,
        "attempt": 0,
        "attempted": change.now,
        "end_reason": "",
        "end_detail": "",
        "salt": salt,
    }
    change.connection.execute(insert(issuances), row)
    personal = {
        "person_id": order.person_id.encode(),
        "subject_common_name": order.subject_common_name.encode(),
        "iccid": order.iccid.digits.encode(),
        "card_issuer": order.card_issuer.encode(),
        "card_serial": order.card_serial,
    }
    change.record(
        Event.RESERVED,
        issuance,
        client,
        request_id=order.request_id,
        sim_issuer=order.sim_issuer,
        kvn=str(order.kvn),
        key_type=order.key_type.name,
        profile=order.profile,
        not_after=order.not_after.isoformat(),
        **{f"{name}_digest": salted_digest(salt, value) for name, value in personal.items()},
    )
    return row


def _open_attempt(change: Change, row: Row, actor: str, **facts: str) -> Attempt:
    """The issuance's new newest attempt; one that gets no counter (SIM_BUSY) is refused before anything is written."""
    sim = {"sim": row["iccid"]}
    last: int | None = change.connection.execute(_LAST_COUNTER, sim).scalar_one_or_none()
    counter = next_counter(last or 0, change.now)
    if last is None:
        change.connection.execute(insert(sims), {"iccid": row["iccid"], "last_counter": counter})
    else:
        change.connection.execute(_MOVE_COUNTER, {**sim, "last_counter": counter})
    attempt = Attempt(row["id"], row["attempt"] + 1, counter, _random_serial())
    change.connection.execute(
        insert(attempts), {**asdict(attempt), "iccid": row["iccid"], "opened": change.now, "lost": False}
    )
    amend(change, row, attempt=attempt.number, attempted=change.now)
    change.record(
        Event.ATTEMPTED,
        row["id"],
        actor,
        attempt=str(attempt.number),
        counter=str(counter),
        serial=attempt.serial.hex(),
        **facts,
    )
    return attempt


def _random_serial() -> bytes:
    """Positive, and always 16 bytes as a DER INTEGER: the top bit is 0 and the next one 1."""
    first, *rest = secrets.token_bytes(SERIAL_LENGTH)
    return bytes((first & 0x3F | 0x40, *rest))


def _stored_answer(change: Change, row: Row) -> bytes | None:
    own_request = {"caller": row["client"], "request": row["request_id"]}
    stored: bytes | None = change.connection.execute(_ANSWER, own_request).scalar_one()
    return stored


def _answered(change: Change, row: Row, answer: Answer) -> bytes:
    made = answer(record_of(row, with_package=False))
    own_request = {"caller": row["client"], "request": row["request_id"]}
    change.connection.execute(_KEEP_ANSWER, {**own_request, "answer": made})
    return made


def _state_after(row: Row, attempt: Attempt, move: Move) -> State:
    """Where an attempt's outcome leads; any but the newest is late."""
    state = next_state(State(row["state"]), move)
    if row["attempt"] != attempt.number:
        raise _late(row)
    return state


def _require_ordered(row: Row, attempt: Attempt, header: Header) -> None:
    made = (header.iccid, header.applet_aid, header.kvn, header.counter, header.key_type)
    ordered = (Iccid(row["iccid"]).ef_coding, row["applet_aid"], row["kvn"], attempt.counter, row["key_type"])
    if made != ordered:
        raise ApplianceError(
            Reason.INTERNAL, "The package's header is not what was ordered.", hint="Nothing was stored; see the log."
        )


def _late(row: Row) -> ApplianceError:
    return ApplianceError(
        Reason.ISSUANCE_ENDED,
        "A newer attempt has taken this one's place.",
        hint="Repeat the request; it gets the newer attempt's answer.",
        issuance=f"issuances/{row['id']}",
        state=row["state"],
    )


def _failed(row: Row) -> ApplianceError:
    return ApplianceError(
        Reason.ISSUANCE_FAILED,
        f"The issuance failed: {row['end_reason']}. {row['end_detail']}",
        hint="Mend the cause and issue anew with another request_id.",
        issuance=f"issuances/{row['id']}",
        end_reason=row["end_reason"],
    )
