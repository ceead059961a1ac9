"""From the package to its end: scripts fetched, receipts, abandonment; and the erasure of the wrapped key."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import bindparam, update

from appliance.domain.audit import Event
from appliance.domain.issuance import IssuanceRecord, Move, State, next_state, not_ready
from appliance.errors import Reason
from appliance.ledger.calls import Call, earlier
from appliance.ledger.change import Change
from appliance.ledger.queries import Row, record_of, row_of
from appliance.ledger.schema import issuances

_UPDATE = update(issuances).where(issuances.c.id == bindparam("issuance"))

Answer = Callable[[IssuanceRecord], bytes]


def prepare_script(change: Change, call: Call, issuance: str, host_challenge: bytes) -> tuple[IssuanceRecord, bytes]:
    """The record with its package, and the host challenge kept for this call."""
    request = earlier(change.connection, call.client, call.request_id, call.digest)
    row = row_of(change.connection, issuance)
    if row["state"] != State.READY:
        raise not_ready(State(row["state"]))
    if request is not None:
        return record_of(row), request["host_challenge"]
    call.keep(change, issuance, host_challenge=host_challenge)
    change.record(Event.SCRIPT_FETCHED, issuance, call.client, request_id=call.request_id)
    return record_of(row), host_challenge


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
    return amend(change, row, state=state, updated=change.now, wrapped_key=None, **columns)


def _answered(change: Change, call: Call, row: Row, answer: Answer) -> bytes:
    made = answer(record_of(row))
    call.keep(change, row["id"], answer=made)
    return made
