"""One change: its connection, its time, and the audit entries it writes in its own transaction: no audit, no change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, delete, insert, select, update

from appliance.domain.audit import AuditEntry, Event
from appliance.ledger.schema import audit, audit_head

APPLIANCE = "appliance"
"""The actor where no client asked."""
REHEARSED = 64 * 1024
"""Bytes; as much as an issuance's larger commit writes."""

_TAKE_HEAD = select(audit_head.c.last).with_for_update()


class Told(NamedTuple):
    """An audit entry to be; its number is given when its group is committed."""

    time: datetime
    event: Event
    issuance: str
    actor: str
    facts: Mapping[str, str]


@dataclass
class Change:
    """What a change works with; `erases` is set by one that erased a wrapped key."""

    connection: Connection
    now: datetime
    erases: bool = False
    told: list[Told] = field(default_factory=list)

    def record(self, event: Event, issuance: str, actor: str, **facts: str) -> None:
        """Tells of this change in the audit log; no fact may hold personal data but as `salted_digest`."""
        self.told.append(Told(self.now, event, issuance, actor, facts))


def take_head(connection: Connection) -> int:
    """The newest entry's number. On a database server also the right to append: two nodes cannot deadlock."""
    last: int = connection.execute(_TAKE_HEAD).scalar_one()
    return last


def append(connection: Connection, head: int, told: Sequence[Told]) -> list[AuditEntry]:
    """Writes the entries behind `head` and moves it."""
    entries = [AuditEntry(number, *each) for number, each in enumerate(told, start=head + 1)]
    if entries:
        rows = [{"number": e.number, "issuance": e.issuance, "entry": e.canonical()} for e in entries]
        connection.execute(insert(audit), rows)
        connection.execute(update(audit_head), {"last": entries[-1].number})
    return entries


def holds(connection: Connection, entry: AuditEntry) -> bool:
    """Whether the log has this entry, byte for byte."""
    found = connection.execute(select(audit.c.entry).where(audit.c.number == entry.number)).scalar_one_or_none()
    return found == entry.canonical()


def rehearse(change: Change) -> None:
    """Writes what a commit of an issuance would need room for, and takes it back: the ledger is as it was."""
    none = 0  # entries are numbered from 1
    change.connection.execute(insert(audit), {"number": none, "issuance": "", "entry": bytes(REHEARSED)})
    change.connection.execute(delete(audit).where(audit.c.number == none))
