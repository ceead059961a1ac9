"""Version 1: issuances, attempts, SIMs, requests, audit."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes every table, and the head of the empty audit log."""
    live = sa.text("state IN ('RESERVED', 'READY', 'ACTIVE')")
    op.create_table(
        "audit",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("issuance", sa.String(length=32), nullable=False),
        sa.Column("entry", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), sa.CheckConstraint("id = 1", name="one_row"), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "issuances",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("client", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("person_id", sa.String(), nullable=False),
        sa.Column("sim_issuer", sa.String(), nullable=False),
        sa.Column("iccid", sa.String(), nullable=False),
        sa.Column("kvn", sa.Integer(), nullable=False),
        sa.Column("applet_aid", sa.LargeBinary(), nullable=False),
        sa.Column("key_type", sa.Integer(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("subject_common_name", sa.String(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("card_issuer", sa.String(), nullable=False),
        sa.Column("card_serial", sa.LargeBinary(), nullable=False),
        sa.Column("card_not_after", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("attempted", sa.BigInteger(), nullable=False),
        sa.Column("counter", sa.BigInteger()),
        sa.Column("certificate_serial", sa.LargeBinary()),
        sa.Column("certificate", sa.LargeBinary()),
        sa.Column("header", sa.LargeBinary()),
        sa.Column("wrapped_key", sa.LargeBinary()),
        sa.Column("package_mac", sa.LargeBinary()),
        sa.Column("package_sha256", sa.LargeBinary()),
        sa.Column("end_reason", sa.String(), nullable=False),
        sa.Column("end_detail", sa.String(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("(state = 'READY') = (wrapped_key IS NOT NULL)", name="wrapped_key_only_while_ready"),
        sa.CheckConstraint("state IN ('RESERVED', 'READY', 'ACTIVE', 'ABANDONED', 'FAILED')", name="known_state"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("issuances_by_age", "issuances", ["created", "id"])
    op.create_index("issuances_by_person", "issuances", ["person_id", "created", "id"])
    op.create_index("issuances_by_state", "issuances", ["state", "created", "id"])
    op.create_index(
        "one_live_issuance", "issuances", ["person_id", "kind"], unique=True, sqlite_where=live, postgresql_where=live
    )
    op.create_table(
        "sims",
        sa.Column("iccid", sa.String(), nullable=False),
        sa.Column("last_counter", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("iccid"),
    )
    op.create_table(
        "attempts",
        sa.Column("issuance", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("iccid", sa.String(), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("serial", sa.LargeBinary(), nullable=False),
        sa.Column("opened", sa.BigInteger(), nullable=False),
        sa.Column("lost", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["issuance"], ["issuances.id"]),
        sa.PrimaryKeyConstraint("issuance", "number"),
        sa.UniqueConstraint("iccid", "counter"),
        sa.UniqueConstraint("serial"),
    )
    op.create_table(
        "requests",
        sa.Column("client", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(length=36), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("issuance", sa.String(length=32), nullable=False),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("answer", sa.LargeBinary()),
        sa.Column("host_challenge", sa.LargeBinary()),
        sa.ForeignKeyConstraint(["issuance"], ["issuances.id"]),
        sa.PrimaryKeyConstraint("client", "request_id"),
    )
    op.execute("INSERT INTO audit_head (id, last) VALUES (1, 0)")
