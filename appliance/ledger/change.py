"""One change: its connection, its time, and the audit entries it writes in its own transaction: no audit, no change."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, insert, select, update

from appliance.domain.audit import AuditEntry, Event
from appliance.ledger.schema import audit, audit_head

APPLIANCE = "appliance"
"""The actor where no client asked."""


@dataclass
class Change:
    """What a change works with; `erases` is set by one that erased a wrapped key."""

    connection: Connection
    now: datetime
    erases: bool = False

    def record(self, event: Event, issuance: str, actor: str, **facts: str) -> None:
        """Appends the audit entry; no fact may hold personal data but as `salted_digest`."""
        number: int = self.connection.execute(
            update(audit_head).values(last=audit_head.c.last + 1).returning(audit_head.c.last)
        ).scalar_one()
        entry = AuditEntry(number, self.now, event, issuance, actor, facts).canonical()
        self.connection.execute(insert(audit).values(number=number, issuance=issuance, entry=entry))


class Head(NamedTuple):
    """The newest audit entry; every change that matters leaves one, so it tells whether a commit has happened."""

    number: int
    entry: bytes


def take_head(connection: Connection) -> Head:
    """The newest entry. On a database server it also takes the right to append, so that two nodes cannot deadlock."""
    number: int = connection.execute(select(audit_head.c.last).with_for_update()).scalar_one()
    entry = connection.execute(select(audit.c.entry).where(audit.c.number == number)).scalar_one_or_none()
    return Head(number, entry or b"")


def holds(connection: Connection, head: Head) -> bool:
    """Whether this entry, byte for byte, is in the log."""
    entry = connection.execute(select(audit.c.entry).where(audit.c.number == head.number)).scalar_one_or_none()
    return entry == head.entry
