"""An open ledger's files are the same ones from its first commit to its last.

SQLite does not notice that a file has lost its name: what is committed to it then is gone when the front ends. So the
names are looked at around each commit.
"""

from pathlib import Path

from sqlalchemy import Engine

from appliance.errors import ApplianceError, Reason

_SUFFIXES = ("", "-wal", "-shm")

Place = tuple[int, int]


class Files:
    """The files of an SQLite ledger, held open; a database server looks after its own."""

    def __init__(self, engine: Engine) -> None:
        self._places: dict[Path, Place | None] = {}
        # While one connection is there that has read, SQLite keeps log and index. A restored backup gets its log by
        # it, now, while nobody else is connected.
        self._anchor = engine.connect()
        if engine.dialect.name == "sqlite":
            self._anchor.exec_driver_sql("SELECT count(*) FROM sqlite_schema")
            self._anchor.rollback()
            paths = [Path(f"{engine.url.database}{suffix}") for suffix in _SUFFIXES]
            self._places = {path: _place(path) for path in paths}

    def require(self) -> None:
        """Returns only if they are where they were.

        Raises:
            ApplianceError: LEDGER_UNAVAILABLE.
        """
        for path, place in self._places.items():
            if _place(path) != place:
                raise ApplianceError(
                    Reason.LEDGER_UNAVAILABLE,
                    f"The ledger's file {path.name} was removed or replaced while the front was using it.",
                    hint="Stop the front, put the ledger's own files back in place or restore a backup, and start it.",
                )

    def close(self) -> None:
        """Lets them go."""
        self._anchor.close()


def _place(path: Path) -> Place | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
