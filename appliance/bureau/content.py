"""What is in an export or a shard, for people; never a key, a package or a script's bytes."""

import os
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from appliance.api.v1 import bureau_pb2 as pb
from appliance.bureau.export import Export, opened
from appliance.bureau.records import read
from appliance.errors import ApplianceError, Reason


def lines(path: Path) -> Iterator[str]:
    """An export's head, after all of it was checked; or a line for each script of a shard.

    Raises:
        ApplianceError: FILE_UNUSABLE, EXPORT_INVALID.
    """
    try:
        export = Export.open(path)
    except ApplianceError as error:
        if error.reason is not Reason.EXPORT_INVALID or not _is_shard(path):
            raise
        yield from _scripts(path)
        return
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
    with opened(path) as file:
        for record in read(file, 0, os.fstat(file.fileno()).st_size):
            rendered = pb.RenderedScript.FromString(record.content)
            script = rendered.script
            written = (
                f"{len(script.commands)} commands" if script.commands else f"{len(script.remote_scripts)} templates"
            )
            yield f"{rendered.issuance}  {script.iccid}  {script.sequence_counter:8}  {written}"


def _is_shard(path: Path) -> bool:
    """Whether the first record is a script."""
    with opened(path) as file:
        try:
            record = next(read(file, 0, os.fstat(file.fileno()).st_size))
            return bool(pb.RenderedScript.FromString(record.content).issuance)
        except (ApplianceError, DecodeError, StopIteration):
            return False
