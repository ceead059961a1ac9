"""What is read, by readers and within changes: rows become records here."""

import base64
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, select, tuple_

from appliance.domain.issuance import IssuanceRecord, State, not_found
from appliance.domain.package import Header, KeyType, PendingPackage, SimPackage
from appliance.errors import ApplianceError, Reason
from appliance.ledger.calls import earlier
from appliance.ledger.schema import audit_head, issuances, requests

Row = Mapping[Any, Any]
"""A row of `issuances` by column."""

_BY_ID = select(issuances).where(issuances.c.id == bindparam("issuance"))
_SAME_NAMED = [f.name for f in fields(IssuanceRecord) if f.name not in {"state", "key_type", "package", "pending"}]


def record_of(row: Row, *, with_package: bool = True) -> IssuanceRecord:
    """The record of a row of `issuances`, its package, or what waits for a certificate, put together again."""
    package = pending = None
    if with_package and row["wrapped_key"] is not None:
        header = Header.decode(row["header"])
        if row["state"] == State.READY:
            package = SimPackage(header, row["wrapped_key"], row["certificate"], row["package_mac"]).encode()
        else:
            pending = PendingPackage(header, row["wrapped_key"], row["certificate_request"], row["interim_mac"])
    return IssuanceRecord(
        state=State(row["state"]),
        key_type=KeyType(row["key_type"]),
        package=package,
        pending=pending,
        **{name: row[name] for name in _SAME_NAMED},
    )


def row_of(connection: Connection, issuance: str) -> Row:
    """The row of `issuances`, or ISSUANCE_NOT_FOUND."""
    row = connection.execute(_BY_ID, {"issuance": issuance}).mappings().first()
    if row is None:
        raise not_found(issuance)
    return row


def issuance(connection: Connection, name: str) -> IssuanceRecord:
    """The record as it stands."""
    return record_of(row_of(connection, name))


def answer(connection: Connection, client: str, request_id: str, digest: bytes) -> bytes | None:
    """The stored answer, if the request is finished."""
    row = earlier(connection, client, request_id, digest)
    return None if row is None else row["answer"]


def host_challenge(connection: Connection, client: str, request_id: str, digest: bytes) -> bytes | None:
    """What was kept for a FetchScript call, if this call with this content was seen."""
    made = select(requests.c.host_challenge).where(
        requests.c.client == client, requests.c.request_id == request_id, requests.c.digest == digest
    )
    return connection.execute(made).scalar_one_or_none()


def page(
    connection: Connection, size: int, token: str, person_id: str, state: State | None
) -> tuple[Sequence[IssuanceRecord], str]:
    """A page in the order (created, id), without packages, and the token of the next one."""
    query = select(issuances).order_by(issuances.c.created, issuances.c.id).limit(size + 1)
    if person_id:
        query = query.where(issuances.c.person_id == person_id)
    if state is not None:
        query = query.where(issuances.c.state == state)
    filters = hashlib.sha256(f"{person_id}\n{state or ''}".encode()).hexdigest()[:16]
    if token:
        created, last = _read_token(token, filters)
        behind = tuple_(created, last, types=[issuances.c.created.type, issuances.c.id.type])
        query = query.where(tuple_(issuances.c.created, issuances.c.id) > behind)
    rows = connection.execute(query).mappings().all()
    records = [record_of(row, with_package=False) for row in rows[:size]]
    return records, _make_token(records[-1], filters) if len(rows) > size else ""


def counts(connection: Connection) -> tuple[dict[str, int], int]:
    """Issuances by state, and the number of the newest audit entry."""
    query = select(issuances.c.state, func.count()).group_by(issuances.c.state)
    found: dict[str, int] = dict(connection.execute(query).all())
    last: int = connection.execute(select(audit_head.c.last)).scalar_one()
    return {state.value: found.get(state, 0) for state in State}, last


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_TOKEN: Final = 256
"""Characters; more than twice what `_make_token` makes, and too few to nest deeper than the parser can follow."""


def _make_token(record: IssuanceRecord, filters: str) -> str:
    created = (record.created - _EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(json.dumps([created, record.id, filters]).encode()).decode()


def _read_token(token: str, filters: str) -> tuple[datetime, str]:
    try:
        if len(token) > _MAX_TOKEN:
            raise ValueError
        created, last, made_for = json.loads(base64.urlsafe_b64decode(token.encode()))
        position = _EPOCH + timedelta(microseconds=created), uuid.UUID(str(last)).hex
    except (ValueError, TypeError, OverflowError):
        made_for = None
    if made_for != filters:
        raise ApplianceError(
            Reason.PAGE_TOKEN_INVALID,
            "The page token was not made by this method with these filters.",
            hint="Send next_page_token as it came, with the same filters; or start again without one.",
            field="page_token",
        )
    return position
