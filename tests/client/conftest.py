"""The fake vault and the throwaway ledger of tests/server serve here too."""

from tests.server.conftest import migrated, settings, sockets, tls

__all__ = ["migrated", "settings", "sockets", "tls"]
