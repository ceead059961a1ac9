"""A copy of an SQLite ledger while the front goes on writing to it (SQLite's online backup).

The copy is one file, whole and checked before it gets its name. It holds every key that was in flight when it was made.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from appliance.errors import ApplianceError, Reason
from appliance.ledger.database import file_of, translated_errors


def backup(url: str, destination: Path) -> None:
    """Copies the ledger as of now into a new file of the owner's alone.

    Raises:
        ApplianceError: SETTINGS_INVALID for a ledger on a database server or a destination that is there already,
            LEDGER_UNAVAILABLE for a ledger that cannot be read or a disk that is full.
    """
    source = file_of(url)
    if source is None:
        raise ApplianceError(
            Reason.SETTINGS_INVALID,
            "The ledger is on a database server.",
            hint="Back it up with the server's own tools, such as pg_basebackup.",
            field="front.ledger",
        )
    if destination.exists():
        raise ApplianceError(
            Reason.SETTINGS_INVALID, f"{destination} is there already.", hint="Name a new file.", field="DEST"
        )
    partial = destination.with_name(destination.name + ".partial")
    with translated_errors():
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600)
        try:
            _copy(source, partial)
            partial.rename(destination)
        finally:
            partial.unlink(missing_ok=True)
        _sync(destination.parent)


def _copy(source: Path, target: Path) -> None:
    existing = f"{source.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(existing, uri=True)) as reading, closing(sqlite3.connect(target)) as writing:
        # All pages in one step: one moment of the ledger, and no writer makes it start again.
        reading.backup(writing)
        # Without a write-ahead log beside it, the file is all there is to keep.
        writing.execute("PRAGMA journal_mode=DELETE")
        (verdict,) = writing.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    _sync(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
