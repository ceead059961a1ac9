"""The ledger: what was reserved, attempted, completed and delivered, and its audit entries.

The only room that imports the database library. Every change is one durable commit together with its audit entry, and
nothing is answered before it; the database itself enforces what must never happen (`schema`).
"""

from appliance.ledger.database import migrate
from appliance.ledger.lifecycle import ForeignCertificate
from appliance.ledger.reservation import Reservation
from appliance.ledger.store import Ledger, LedgerStatus

__all__ = ["ForeignCertificate", "Ledger", "LedgerStatus", "Reservation", "migrate"]
