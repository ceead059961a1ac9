"""What Alembic runs: the steps, all of them in one transaction on the connection that `database.migrate` hands over."""

from alembic import context

from appliance.errors import ApplianceError, Reason

connection = context.config.attributes["connection"]
context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
    # SQLite has not watched them meanwhile.
    if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        raise ApplianceError(
            Reason.LEDGER_UNAVAILABLE,
            "Rows of the ledger refer to rows that are not there; it was not migrated.",
            hint="Look with: appliance ledger check. Restore a backup.",
        )
