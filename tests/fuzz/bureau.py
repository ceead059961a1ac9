"""Targets that a bureau reads: an export, with its digest right or not, and the document of its keys."""

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import proto

from appliance.apdu import engine
from appliance.api.v1 import bureau_pb2
from appliance.bureau import keys
from appliance.bureau.export import MAX_WINDOW, Export, opened
from appliance.bureau.forms import FORMS
from appliance.bureau.orders import Plan
from appliance.bureau.records import delimited, read
from appliance.errors import ApplianceError, Reason
from tests.bureau import samples
from tests.fuzz.target import Choices, Run, Target, refused_with, require_documented
from tests.vsim.packages import KM_CHAN

OF_A_PACKAGE = (Reason.EXPORT_INVALID, Reason.NAME_INVALID, Reason.AID_INVALID, Reason.FIELD_INVALID)
OF_A_SCRIPT = (*OF_A_PACKAGE, Reason.SCP03_INVALID, Reason.KVN_INVALID)
WHOLE = 1
"""Bit of the first byte: what follows is a file as it is; else its digest is put behind it."""


@contextmanager
def open_export() -> Iterator[Run]:
    """Every package of an input becomes scripts, or is refused."""
    given = keys.ChannelKeys({("example-mno", samples.KVN): bytearray(KM_CHAN)}, {})
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "export"
        path.touch(mode=0o600)

        def run(data: bytes) -> None:
            choices = Choices(data)
            whole, content = choices.number() & WHOLE, choices.rest()
            path.write_bytes(content if whole else content + end(content))
            with refused_with(Reason.EXPORT_INVALID):
                export = Export.open(path)
                shards = export.shards(2)
                assert sum(shard.packages for shard in shards) == export.head.packages
                render(export, given)

        yield run


def end(content: bytes) -> bytes:
    """The ExportEnd of a file that begins so."""
    return delimited(bureau_pb2.ExportEnd(sha256=hashlib.sha256(content).digest()).SerializeToString())


def render(export: Export, given: keys.ChannelKeys) -> None:
    """All the scripts."""
    plan = Plan(export.head, given, 0)
    form = FORMS["commands"]
    with opened(export.path) as file:
        for record in read(file, export.body, export.end, 1):
            with refused_with(*OF_A_PACKAGE):
                planned = plan.of(record)
                assert len(planned) <= MAX_WINDOW
                for one, script in zip(
                    planned, engine.render([one.order for one in planned], form.engine), strict=True
                ):
                    if isinstance(script, ApplianceError):
                        assert script.reason in OF_A_SCRIPT
                        require_documented(script.reason, script.detail, script.hint)
                    else:
                        made = proto.parse_length_prefixed(
                            bureau_pb2.RenderedScript, io.BytesIO(b"".join(form.entry(one, script, 0)))
                        )
                        assert made is not None
                        assert made.script.sequence_counter == one.sequence_counter


def exports() -> Iterator[bytes]:
    way = samples.route()
    plain = [samples.package(number, window=2) for number in range(2)]
    sessions = [samples.with_session(samples.package(number), way) for number in range(2)]
    for packages, session_keys in ((plain, False), (sessions, True), ([], False)):
        head = bureau_pb2.ExportHead(
            format="sim-packages-1", packages=len(packages), routes=[way], session_keys=session_keys
        )
        content = b"".join(delimited(message.SerializeToString()) for message in (head, *packages))
        yield b"\x00" + content
        yield b"\x01" + content + end(content)


@contextmanager
def open_keys() -> Iterator[Run]:
    def run(data: bytes) -> None:
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        with refused_with(Reason.FIELD_INVALID), keys.given(reader) as found:
            with refused_with(Reason.FIELD_INVALID, Reason.KCV_MISMATCH):
                found.check([samples.route()])
            with refused_with(Reason.FIELD_INVALID):
                assert list(map(len, found.of(("example-mno", samples.KVN), samples.iccid(1).ef_coding, 128))) == [
                    16,
                    16,
                ]

    yield run


def documents() -> Iterator[bytes]:
    yield samples.keys()
    yield b"# bureau\n" + f"{samples.iccid(1).digits} {bytes(16).hex()} {bytes(16).hex()} # one SIM\n".encode()


EXPORT = Target(open_export, exports, 8192)
KEYS = Target(open_keys, documents, 1024)
