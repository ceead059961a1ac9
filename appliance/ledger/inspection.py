"""What must be true of a ledger at any time, as a table of named checks: for after a restore, and for when in doubt.

Findings name issuances by their id and never a person.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import zip_longest

from sqlalchemy import Connection, select, text

from appliance.domain.issuance import State
from appliance.ledger.change import take_head
from appliance.ledger.queries import record_of
from appliance.ledger.schema import audit, issuances

Check = Callable[[Connection], Iterator[str]]


def _file(connection: Connection) -> Iterator[str]:
    if connection.dialect.name != "sqlite":
        return
    for (finding,) in connection.exec_driver_sql("PRAGMA integrity_check"):
        if finding != "ok":
            yield finding
    for table, row, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        yield f"row {row} of {table} refers to nothing in {parent}"


def _audit_numbers(connection: Connection) -> Iterator[str]:
    expected = range(1, take_head(connection) + 1)
    found = connection.execute(select(audit.c.number, audit.c.entry).order_by(audit.c.number))
    for number, row in zip_longest(expected, found):
        if row is None or number != row.number:
            yield f"entry {number if row is None else row.number} is not the one that follows"
            return
        if json.loads(row.entry)["number"] != number:
            yield f"entry {number} says that it is another"


def _packages(connection: Connection) -> Iterator[str]:
    for row in connection.execute(select(issuances).where(issuances.c.state == State.READY)).mappings():
        package = record_of(row).package
        if package is None or hashlib.sha256(package).digest() != row["package_sha256"]:
            yield f"issuance {row['id']}: the package is not the one that was sealed"


def _none(query: str) -> Check:
    """A check that this query finds nothing."""

    def check(connection: Connection) -> Iterator[str]:
        for (issuance,) in connection.execute(text(query)):
            yield f"issuance {issuance}"

    return check


CHECKS: dict[str, Check] = {
    "the file is whole": _file,
    "audit entries are numbered without gaps": _audit_numbers,
    "every package is as it was sealed": _packages,
    "a person has one live issuance": _none(
        "SELECT min(id) FROM issuances WHERE state IN ('RESERVED', 'AWAITING_CERTIFICATE', 'READY', 'ACTIVE')"
        " GROUP BY person_id, kind HAVING count(*) > 1"
    ),
    "a wrapped key waits for its certificate or its delivery": _none(
        "SELECT id FROM issuances WHERE (state IN ('AWAITING_CERTIFICATE', 'READY')) <> (wrapped_key IS NOT NULL)"
    ),
    "what awaits a certificate has all that completes it": _none(
        "SELECT id FROM issuances WHERE state = 'AWAITING_CERTIFICATE' AND (header IS NULL OR interim_mac IS NULL"
        " OR certificate_request IS NULL OR certificate_due IS NULL)"
    ),
    "an external CA's serial number stands once": _none(
        "SELECT min(id) FROM issuances WHERE certificate_issuer IS NOT NULL"
        " GROUP BY certificate_issuer, certificate_serial HAVING count(*) > 1"
    ),
    "an issuance knows its newest attempt": _none(
        "SELECT id FROM issuances WHERE attempt <>"
        " (SELECT coalesce(max(number), 0) FROM attempts WHERE issuance = issuances.id)"
    ),
    "no attempt has a counter above its SIM's": _none(
        "SELECT issuance FROM attempts LEFT JOIN sims ON sims.iccid = attempts.iccid"
        " WHERE counter > coalesce(last_counter, 0)"
    ),
    "what was completed has its certificate and its answer": _none(
        "SELECT id FROM issuances JOIN requests ON requests.client = issuances.client"
        " AND requests.request_id = issuances.request_id"
        " WHERE state IN ('READY', 'ACTIVE') AND (certificate IS NULL OR header IS NULL OR answer IS NULL)"
    ),
}


def inspect(connection: Connection) -> Iterator[tuple[str, list[str]]]:
    """Each check by name, with its findings; none where it holds."""
    for name, check in CHECKS.items():
        yield name, list(check(connection))
