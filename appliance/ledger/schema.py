"""The tables, and the rules that the database itself enforces.

- `one_live_issuance`: one live issuance of a kind for a person.
- `attempts`: no package counter twice for a SIM, no certificate serial of ours twice at all.
- `one_certificate_of_a_serial`: no serial of an external CA twice.
- `requests`: a client's request_id names one request for ever.
- `wrapped_key_only_while_needed`: the sealed private key is there while it waits for its certificate or its delivery,
  and at no other time; `interim_mac_only_while_awaiting`: what authenticates it until it has a certificate, likewise.

Migrations make the tables (`migrations`); a test holds them and this module together.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator

SCHEMA_VERSION = "0002"
"""Alembic revision that this program reads and writes; any other is refused."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Instant(TypeDecorator[datetime]):
    """An aware time as microseconds since 1970: sorts and compares alike in every database."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002 SQLAlchemy's
        return None if value is None else (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 SQLAlchemy's
        return None if value is None else _EPOCH + timedelta(microseconds=value)


metadata = MetaData()

_IS_LIVE = text("state IN ('RESERVED', 'AWAITING_CERTIFICATE', 'READY', 'ACTIVE')")
_IS_DUE = text("certificate_due IS NOT NULL")
# SQLite makes only an INTEGER primary key the row's own number.
_NUMBER = BigInteger().with_variant(Integer, "sqlite")

issuances = Table(
    "issuances",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("client", String, nullable=False),
    Column("request_id", String(36), nullable=False),
    Column("kind", String, nullable=False),
    Column("state", String, nullable=False),
    Column("person_id", String, nullable=False),
    Column("sim_issuer", String, nullable=False),
    Column("iccid", String, nullable=False),
    Column("kvn", Integer, nullable=False),
    Column("applet_aid", LargeBinary, nullable=False),
    Column("key_type", Integer, nullable=False),
    Column("profile", String, nullable=False),
    Column("subject_common_name", String, nullable=False),
    Column("not_after", Instant, nullable=False),
    Column("card_issuer", String, nullable=False),
    Column("card_serial", LargeBinary, nullable=False),
    Column("card_not_after", Instant, nullable=False),
    Column("created", Instant, nullable=False),
    Column("updated", Instant, nullable=False),
    # Of the newest attempt.
    Column("attempt", Integer, nullable=False),
    Column("attempted", Instant, nullable=False),
    # From READY on: the parts of the package, the certificate (C2) among them; counter and header also before that
    # while a certificate is awaited.
    Column("counter", BigInteger),
    Column("certificate_serial", LargeBinary),
    # Name of the external CA, DER; none for our own, whose serials `attempts` keeps apart.
    Column("certificate_issuer", LargeBinary),
    Column("certificate", LargeBinary),
    Column("header", LargeBinary),
    Column("wrapped_key", LargeBinary),
    Column("package_mac", LargeBinary),
    Column("package_sha256", LargeBinary),
    # Only while a certificate is awaited.
    Column("certificate_request", LargeBinary),
    Column("interim_mac", LargeBinary),
    Column("certificate_due", Instant),
    Column("end_reason", String, nullable=False),
    Column("end_detail", String, nullable=False),
    # Of the audit entries' digests of personal data.
    Column("salt", LargeBinary, nullable=False),
    CheckConstraint(
        "state IN ('RESERVED', 'AWAITING_CERTIFICATE', 'READY', 'ACTIVE', 'ABANDONED', 'FAILED')", name="known_state"
    ),
    CheckConstraint(
        "(state IN ('AWAITING_CERTIFICATE', 'READY')) = (wrapped_key IS NOT NULL)",
        name="wrapped_key_only_while_needed",
    ),
    CheckConstraint(
        "(state = 'AWAITING_CERTIFICATE') = (interim_mac IS NOT NULL)", name="interim_mac_only_while_awaiting"
    ),
    Index("one_live_issuance", "person_id", "kind", unique=True, sqlite_where=_IS_LIVE, postgresql_where=_IS_LIVE),
    Index("one_certificate_of_a_serial", "certificate_issuer", "certificate_serial", unique=True),
    Index("issuances_by_due", "certificate_due", sqlite_where=_IS_DUE, postgresql_where=_IS_DUE),
    Index("issuances_by_age", "created", "id"),
    Index("issuances_by_person", "person_id", "created", "id"),
    Index("issuances_by_state", "state", "created", "id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("issuance", ForeignKey("issuances.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("iccid", String, nullable=False),
    Column("counter", BigInteger, nullable=False),
    Column("serial", LargeBinary, nullable=False, unique=True),
    Column("opened", Instant, nullable=False),
    # Its vault died.
    Column("lost", Boolean, nullable=False),
    UniqueConstraint("iccid", "counter"),
)

sims = Table(
    "sims",
    metadata,
    Column("iccid", String, primary_key=True),
    Column("last_counter", BigInteger, nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("client", String, primary_key=True),
    Column("request_id", String(36), primary_key=True),
    Column("method", String, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("issuance", ForeignKey("issuances.id"), nullable=False),
    Column("received", Instant, nullable=False),
    # Bytes of the answer; none until the request is finished, and none where it is made anew each time.
    Column("answer", LargeBinary),
    Column("host_challenge", LargeBinary),
)

audit = Table(
    "audit",
    metadata,
    Column("number", _NUMBER, primary_key=True),
    # No foreign key: entries outlive what they tell of.
    Column("issuance", String(32), nullable=False),
    # AuditEntry.canonical().
    Column("entry", LargeBinary, nullable=False),
)

audit_head = Table(
    "audit_head",
    metadata,
    # One row; whoever holds it appends.
    Column("id", Integer, CheckConstraint("id = 1", name="one_row"), primary_key=True),
    Column("last", BigInteger, nullable=False),
)
