"""The whole path over real processes: supervisor, vaults, front, a SoftHSM token, a ledger file, SIMs.

What a test needs to happen is brought about, never hoped for: a call is held at a named place, and only then is
somebody killed. Every wait is for an event.
"""
