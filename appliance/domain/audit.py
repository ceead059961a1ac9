"""An audit entry and its canonical bytes.

Personal data stands in an entry only as `salted_digest`. The salt lives in the issuance's row: with it an auditor can
check a value, and when the row is gone the entry tells nothing and the log stays whole.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

SALT_LENGTH = 32


class Event(StrEnum):
    """What an entry tells."""

    RESERVED = "RESERVED"
    ATTEMPTED = "ATTEMPTED"
    CERTIFICATE_REQUESTED = "CERTIFICATE_REQUESTED"
    COMPLETED = "COMPLETED"
    SCRIPT_FETCHED = "SCRIPT_FETCHED"
    ACTIVATED = "ACTIVATED"
    ABANDONED = "ABANDONED"
    SUPERSEDED = "SUPERSEDED"
    EXPIRED = "EXPIRED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change of the ledger, committed with it; numbers start at 1 and have no gaps."""

    number: int
    time: datetime
    event: Event
    issuance: str
    actor: str
    """The client's URI, or "appliance"."""
    facts: Mapping[str, str]

    def canonical(self) -> bytes:
        """JSON in UTF-8 with sorted keys and no white space; the time in UTC with six decimals."""
        content = {
            "number": self.number,
            "time": self.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "event": self.event,
            "issuance": self.issuance,
            "actor": self.actor,
            "facts": dict(self.facts),
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def salted_digest(salt: bytes, value: bytes) -> str:
    """SHA-256(salt || value) as 64 hexadecimal digits; `salt` is 32 random bytes."""
    if len(salt) != SALT_LENGTH:
        raise ValueError(f"The salt has {len(salt)} bytes, not {SALT_LENGTH}.")
    return hashlib.sha256(salt + value).hexdigest()
