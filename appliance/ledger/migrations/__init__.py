"""Alembic's steps between schema versions, run by `appliance ledger migrate`; never changed once released."""
