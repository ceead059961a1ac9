"""The ledger, on real SQLite files; `samples` makes orders and packages that fit together."""
