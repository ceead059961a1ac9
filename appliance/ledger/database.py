"""Connections to the database: how they are set up, which schema they must find, how their errors are told.

WAL, synchronous=FULL: nothing acknowledged is lost with the power. Transactions that write begin IMMEDIATE. What is
erased is overwritten: secure_delete in the file, `truncate_wal` behind it, and no temporary files.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    ProgrammingError,
    SQLAlchemyError,
)

from appliance.errors import ApplianceError, Reason
from appliance.ledger.schema import SCHEMA_VERSION

BUSY_SECONDS = 5
"""How long SQLite waits for another process, such as a backup or a migration."""

_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "secure_delete=ON",
    # Savepoints may not spill old pages, and with them wrapped keys, into files.
    "temp_store=MEMORY",
)
_REFUSALS = (IntegrityError, DataError, ProgrammingError, InterfaceError)
_DAMAGE = "Stop the front and run: appliance ledger check. Restore a backup if it fails."
_HINTS = {
    "SQLITE_FULL": "Make room on the ledger's disk; it goes on by itself.",
    "SQLITE_IOERR": "Make room on the ledger's disk, and check it; the ledger goes on by itself.",
    "SQLITE_READONLY": "Let the front's user write to the ledger's file and its directory.",
    "SQLITE_CANTOPEN": "Let the front's user write to the ledger's file and its directory.",
    "SQLITE_BUSY": "Another process holds the ledger; only one front may write to it.",
    "SQLITE_CORRUPT": _DAMAGE,
    "SQLITE_NOTADB": _DAMAGE,
}
"""By the first two words of the driver's name for the error: SQLITE_IOERR_FSYNC is told as SQLITE_IOERR."""
_DAMAGED = {name for name, hint in _HINTS.items() if hint == _DAMAGE}


def connect(url: str, *, read_only: bool = False) -> Engine:
    """An engine whose connections are set up; a connection with the option `writes` takes the write lock at once.

    Statements' parameters never stand in errors: they hold personal data. With `read_only` not a byte of the file
    changes, which is what one wants of a backup.
    """
    engine = create_engine(url, hide_parameters=True, pool_size=5)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_to_read if read_only else _set_up_to_write)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def file_of(url: str) -> Path | None:
    """The database file of an SQLite URL; None for a database server.

    Raises:
        ApplianceError: SETTINGS_INVALID for what is no URL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ApplianceError(
            Reason.SETTINGS_INVALID,
            "The ledger's URL cannot be read.",
            hint="Write it as sqlite:////var/lib/jpki/ledger.db.",
            field="front.ledger",
        ) from None
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def migrate(url: str) -> None:
    """Makes the ledger, its file for the owner alone, or brings its schema to this program's version.

    Raises:
        ApplianceError: LEDGER_SCHEMA_MISMATCH for a ledger of a newer program, LEDGER_UNAVAILABLE.
    """
    file = file_of(url)
    with translated_errors():
        if file is not None:
            file.touch(mode=0o600)
        found = _revision(url)
        if found is not None and found > SCHEMA_VERSION:
            raise _mismatch(found)
        config = Config()
        config.set_main_option("script_location", "appliance.ledger:migrations")
        engine = connect(url).execution_options(writes=True)
        try:
            with engine.connect() as connection:
                if file is not None:
                    # A step may put a table in another's place. In a transaction SQLite would not heed this.
                    connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
                config.attributes["connection"] = connection
                command.upgrade(config, SCHEMA_VERSION)
        finally:
            engine.dispose()


def require_schema(url: str) -> None:
    """Refuses a ledger that is not there or has another schema (LEDGER_SCHEMA_MISMATCH)."""
    file = file_of(url)
    with translated_errors():
        found = None if file is not None and not file.exists() else _revision(url)
    if found != SCHEMA_VERSION:
        raise _mismatch(found)


def require_writable(url: str) -> None:
    """Refuses a file that SQLite would open for reading alone, without a word (LEDGER_UNAVAILABLE)."""
    file = file_of(url)
    for path in (file, file.parent) if file is not None and file.exists() else ():
        if not os.access(path, os.W_OK):
            raise ApplianceError(
                Reason.LEDGER_UNAVAILABLE, f"The ledger's {path} cannot be written to.", hint=_HINTS["SQLITE_READONLY"]
            )


def truncate_wal(engine: Engine) -> bool:
    """Moves the write-ahead log into the file and cuts it to nothing; False while a reader or a backup is in the way.

    Until then the log holds earlier pages, with keys that the file has erased.
    """
    if engine.dialect.name != "sqlite":
        return True
    try:
        with closing(engine.raw_connection()) as connection:
            cursor = connection.cursor()
            # It would make every commit wait for a backup.
            cursor.execute("PRAGMA busy_timeout=0")
            try:
                busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
    except (sqlite3.Error, SQLAlchemyError):
        return False
    return not busy


@contextmanager
def translated_errors() -> Iterator[None]:
    """The door: what the database library raises goes out as an ApplianceError."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise translated(error)  # noqa: B904 it carries its cause
    except OSError as error:
        raise ApplianceError(
            Reason.LEDGER_UNAVAILABLE,
            f"The ledger's file cannot be used: {error.strerror}.",
            hint="Check that its directory is there and belongs to the front's user.",
        ) from error


def is_outage(error: SQLAlchemyError | sqlite3.Error) -> bool:
    """Whether the database cannot work now (disk full, locked, gone), rather than having refused a statement."""
    return isinstance(error, (DBAPIError, sqlite3.Error)) and not isinstance(error, _REFUSALS)


def is_damage(error: SQLAlchemyError | sqlite3.Error) -> bool:
    """Whether the file's content is not a ledger's: whoever writes on makes it worse."""
    return _kind(_name(error)) in _DAMAGED


def translated(error: SQLAlchemyError | sqlite3.Error) -> ApplianceError:
    """LEDGER_UNAVAILABLE for an outage, with the driver's name for it; INTERNAL for a refused statement, a defect."""
    name = _name(error)
    if is_outage(error):
        hint = _HINTS.get(_kind(name), "Repeat the call; it is safe.")
        told = ApplianceError(Reason.LEDGER_UNAVAILABLE, f"The ledger could not commit or read ({name}).", hint=hint)
    else:
        told = ApplianceError(Reason.INTERNAL, f"The database refused a statement ({name}).", hint="See the log.")
    told.__cause__ = error
    return told


def closed() -> ApplianceError:
    """The refusal of a ledger that was closed."""
    return ApplianceError(Reason.LEDGER_UNAVAILABLE, "The ledger is closed.", hint="Call another node, or later.")


def _name(error: SQLAlchemyError | sqlite3.Error) -> str:
    origin = getattr(error, "orig", None) or error
    return origin.sqlite_errorname if isinstance(origin, sqlite3.Error) else type(origin).__name__


def _kind(name: str) -> str:
    return "_".join(name.split("_")[:2])


def _mismatch(found: str | None) -> ApplianceError:
    if found is None:
        detail, hint = "There is no ledger yet", "Run: appliance ledger migrate."
    elif found < SCHEMA_VERSION:
        detail, hint = f"The ledger has schema version {found}", "Back it up and run: appliance ledger migrate."
    else:
        detail, hint = f"The ledger has schema version {found}", "Run the program that made it, or a newer one."
    return ApplianceError(
        Reason.LEDGER_SCHEMA_MISMATCH,
        f"{detail}; this program needs {SCHEMA_VERSION}.",
        hint=hint,
        found=found or "",
        needed=SCHEMA_VERSION,
    )


def _revision(url: str) -> str | None:
    engine = connect(url, read_only=True)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def _set_up_to_write(connection: sqlite3.Connection, _record: Any) -> None:
    _set_up(connection, _PRAGMAS)


def _set_up_to_read(connection: sqlite3.Connection, _record: Any) -> None:
    _set_up(connection, ("query_only=ON",))


def _set_up(connection: sqlite3.Connection, pragmas: Sequence[str]) -> None:
    # The driver's own transaction control is off: it would begin late and deferred.
    connection.isolation_level = None
    for pragma in (f"busy_timeout={BUSY_SECONDS * 1000}", *pragmas):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
