"""Audit entries: their canonical bytes, and digests that tell nothing without their salt."""

import hashlib
from datetime import UTC, datetime, timedelta, timezone

import pytest

from appliance.domain.audit import AuditEntry, Event, salted_digest

ENTRY = AuditEntry(
    number=7,
    time=datetime(2026, 4, 1, 9, 30, 0, 5, tzinfo=timezone(timedelta(hours=9))),
    event=Event.RESERVED,
    issuance="0" * 32,
    actor="urn:appliance:role:issuer:j-lis",
    facts={"kvn": "48", "applicant": "電子"},
)


def test_canonical_bytes_are_sorted_json_in_utf8_and_utc() -> None:
    assert (
        ENTRY.canonical()
        == (
            '{"actor":"urn:appliance:role:issuer:j-lis","event":"RESERVED","facts":{"applicant":"電子","kvn":"48"},'
            '"issuance":"00000000000000000000000000000000","number":7,"time":"2026-04-01T00:30:00.000005Z"}'
        ).encode()
    )


def test_canonical_bytes_do_not_depend_on_the_order_of_facts_or_the_time_zone() -> None:
    same = AuditEntry(
        7,
        ENTRY.time.astimezone(UTC),
        Event.RESERVED,
        ENTRY.issuance,
        ENTRY.actor,
        dict(reversed(list(ENTRY.facts.items()))),
    )
    assert same.canonical() == ENTRY.canonical()


def test_salted_digest_is_sha256_of_salt_and_value() -> None:
    salt = bytes(range(32))
    assert salted_digest(salt, b"person-1") == hashlib.sha256(salt + b"person-1").hexdigest()


def test_a_salt_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        salted_digest(bytes(31), b"person-1")
