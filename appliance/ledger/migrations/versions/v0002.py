"""Version 2: issuances that wait for an external CA's certificate.

SQLite changes no constraint of a table that is there: the table is made anew, its rows are copied, and the old one goes
(https://www.sqlite.org/lang_altertable.html, 7). `database.migrate` keeps foreign keys off meanwhile and checks them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_LIVE = sa.text("state IN ('RESERVED', 'AWAITING_CERTIFICATE', 'READY', 'ACTIVE')")
_DUE = sa.text("certificate_due IS NOT NULL")
_CHECKS = {
    "known_state": "state IN ('RESERVED', 'AWAITING_CERTIFICATE', 'READY', 'ACTIVE', 'ABANDONED', 'FAILED')",
    "wrapped_key_only_while_needed": "(state IN ('AWAITING_CERTIFICATE', 'READY')) = (wrapped_key IS NOT NULL)",
    "interim_mac_only_while_awaiting": "(state = 'AWAITING_CERTIFICATE') = (interim_mac IS NOT NULL)",
}


def upgrade() -> None:
    """Adds what such an issuance keeps, and lets it hold the wrapped key."""
    op.drop_index("one_live_issuance", "issuances")
    with op.batch_alter_table("issuances") as issuances:
        issuances.drop_constraint("known_state", type_="check")
        issuances.drop_constraint("wrapped_key_only_while_ready", type_="check")
        issuances.add_column(sa.Column("certificate_issuer", sa.LargeBinary()))
        issuances.add_column(sa.Column("certificate_request", sa.LargeBinary()))
        issuances.add_column(sa.Column("interim_mac", sa.LargeBinary()))
        issuances.add_column(sa.Column("certificate_due", sa.BigInteger()))
        for name, rule in _CHECKS.items():
            issuances.create_check_constraint(name, sa.text(rule))
    op.create_index(
        "one_live_issuance", "issuances", ["person_id", "kind"], unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE
    )
    op.create_index(
        "one_certificate_of_a_serial", "issuances", ["certificate_issuer", "certificate_serial"], unique=True
    )
    op.create_index("issuances_by_due", "issuances", ["certificate_due"], sqlite_where=_DUE, postgresql_where=_DUE)
