"""Rendering one shard: from its packages to the bytes of its file, in batches, with what failed told in its note."""

import hashlib
from collections.abc import Callable
from typing import Any, BinaryIO, Final

from appliance.apdu import engine
from appliance.bureau.export import Export, Shard, take
from appliance.bureau.forms import FORMS, Form
from appliance.bureau.keys import ChannelKeys
from appliance.bureau.orders import Plan, Planned, name_of
from appliance.bureau.records import Record, damaged, read
from appliance.bureau.shards import Directory
from appliance.errors import ApplianceError

BATCH: Final = 64
"""Scripts that the engine makes in one call: so many stay in a processor's cache with all that is done to them."""

_WAY_OUT: Final = "Then have it exported again, with what else failed alone, and render that into a new directory."
"""For people whose shard is made for ever."""


class Renderer:
    """Makes shards of one export.

    Args:
        export, directory: from where to where.
        keys: static keys, where the export brings no session keys.
        told: gets the number of packages dealt with, after each batch.
    """

    def __init__(
        self, export: Export, directory: Directory, keys: ChannelKeys | None, told: Callable[[int], None]
    ) -> None:
        self._export = export
        self._directory = directory
        self._keys = keys
        self._told = told

    def render(self, shard: Shard) -> None:
        """Make one shard. What is wrong with a package or a script stands in the note, and the others are made.

        Raises:
            ApplianceError: EXPORT_INVALID where the file is not what it was.
            OSError
        """
        plan = Plan(self._export.head, self._keys, self._directory.job.window)
        with self._export.path.open("rb") as file, self._directory.writing(shard.number) as (output, note):
            batch = _Batch(FORMS[self._directory.job.form], shard.number, output)
            digest = hashlib.sha256()
            told = packages = 0
            for record in read(file, shard.offset, shard.end, shard.first):
                packages += 1
                take(digest, record)
                try:
                    batch.planned += plan.of(record)
                except ApplianceError as error:
                    batch.failures.append(_failure(error, record))
                if len(batch.planned) >= BATCH:
                    batch.write()
                    self._told(packages - told)
                    told = packages
            batch.write()
            if digest.digest() != shard.digest:
                raise damaged("The export changed during the run: its packages are not those that were checked.")
            note |= {"packages": packages, **batch.end()}
            self._told(packages - told)


class _Batch:
    """Scripts on their way into a shard's file."""

    def __init__(self, form: Form, shard: int, output: BinaryIO) -> None:
        self.planned: list[Planned] = []
        self.failures: list[dict[str, Any]] = []
        self._form = form
        self._shard = shard
        self._output = output
        self._digest = hashlib.sha256()
        self._scripts = self._bytes = 0

    def write(self) -> None:
        """Render what is planned, so many at a time, and write it."""
        while self.planned:
            planned, self.planned = self.planned[:BATCH], self.planned[BATCH:]
            parts: list[bytes] = []
            for one, rendered in zip(
                planned, engine.render([one.order for one in planned], self._form.engine), strict=True
            ):
                if isinstance(rendered, ApplianceError):
                    self.failures.append(_failure(rendered, one.record, one))
                else:
                    parts += self._form.entry(one, rendered, self._shard)
                    self._scripts += 1
            self._append(b"".join(parts))

    def end(self) -> dict[str, Any]:
        """What the note tells."""
        self._append(self._form.end)
        return {
            "scripts": self._scripts,
            "failed": len(self.failures),
            "bytes": self._bytes,
            "sha256": self._digest.hexdigest(),
            "failures": self.failures,
        }

    def _append(self, data: bytes) -> None:
        self._digest.update(data)
        self._output.write(data)
        self._bytes += len(data)


def _failure(error: ApplianceError, record: Record, planned: Planned | None = None) -> dict[str, Any]:
    return {
        "record": record.number,
        "offset": record.offset,
        "issuance": name_of(record),
        "sequence_counter": planned.sequence_counter if planned else None,
        "reason": error.reason,
        "field": error.field,
        "detail": error.detail,
        "hint": f"{error.hint} {_WAY_OUT}",
    }
