"""What is in an export or a shard, for people; never a key, a package or a script's bytes.

A file's strings may be anybody's: whatever is no ASCII that prints is escaped, so no terminal ever acts on it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from appliance.api.v1 import bureau_pb2 as pb
from appliance.bureau.export import Export, opened
from appliance.bureau.records import Record, damaged, read
from appliance.errors import ApplianceError

_ISSUANCES = "issuances/"
"""With this every script begins, and no export: there is `export.FORMAT` in its place."""


def lines(path: Path) -> Iterator[str]:
    """An export's head, after all of it was checked; or a line for each script of a shard.

    Raises:
        ApplianceError: FILE_UNUSABLE, EXPORT_INVALID.
    """
    for line in _scripts(path) if _is_shard(path) else _export(path):
        yield line.encode("unicode_escape").decode()


def _export(path: Path) -> Iterator[str]:
    export = Export.open(path)
    head = export.head
    export.shards(max(1, head.packages))
    yield f"export of {head.create_time.ToJsonString()}, SHA-256 {export.digest.hex()}, whole"
    yield f"{head.packages} packages, {'with session keys' if head.session_keys else 'for static keys'}"
    for number, route in enumerate(head.routes):
        yield (
            f"route {number}: {route.sim_issuer}, key set {route.kvn:02X}, KM-CHAN {route.km_chan_kcv.hex().upper()}, "
            f"security domain {route.ssd_aid.hex().upper()}, channel key set {route.channel_kvn:02X}, "
            f"i {route.channel_i:02X}, AES-{route.channel_key_bits}, level {route.security_level:02X}"
        )


def _scripts(path: Path) -> Iterator[str]:
    for record in _records(path):
        rendered = _rendered(record)
        script = rendered.script
        written = f"{len(script.commands)} commands" if script.commands else f"{len(script.remote_scripts)} templates"
        yield f"{rendered.issuance}  {script.iccid}  {script.sequence_counter:8}  {written}"


def _is_shard(path: Path) -> bool:
    """Whether the first record is a script."""
    try:
        return any(_rendered(record) for record in _records(path))
    except ApplianceError:
        return False


def _records(path: Path) -> Iterator[Record]:
    with opened(path) as file:
        yield from read(file, 0, os.fstat(file.fileno()).st_size)


def _rendered(record: Record) -> pb.RenderedScript:
    try:
        rendered = pb.RenderedScript.FromString(record.content)
    except DecodeError:
        rendered = pb.RenderedScript()
    if not (rendered.issuance.startswith(_ISSUANCES) and rendered.HasField("script")):
        raise damaged(
            f"Record {record.number} at offset {record.offset} is no script.",
            record=record.number,
            offset=record.offset,
        )
    return rendered
