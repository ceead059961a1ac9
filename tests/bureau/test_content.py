"""What is shown of files for bureaus: an export is never taken for a shard, and no terminal acts on what they say."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from appliance.api.v1 import bureau_pb2 as pb
from appliance.api.v1 import delivery_pb2
from appliance.bureau.content import lines
from appliance.bureau.records import delimited
from appliance.errors import ApplianceError, Reason
from tests.bureau.samples import export, iccid, package


def script(number: int, *, issuance: str = "") -> pb.RenderedScript:
    return pb.RenderedScript(
        issuance=issuance or f"issuances/{number:032x}",
        script=delivery_pb2.FetchScriptResponse(iccid=iccid(number).digits, sequence_counter=1),
    )


def shard(path: Path, contents: Iterable[bytes]) -> Path:
    path.write_bytes(b"".join(map(delimited, contents)))
    return path


def refusal(path: Path) -> ApplianceError:
    with pytest.raises(ApplianceError) as caught:
        list(lines(path))
    return caught.value


def test_a_damaged_export_is_shown_as_such_and_never_as_a_shard(tmp_path: Path) -> None:
    file = export(tmp_path / "export", [package(number, content=b"package") for number in range(2)])
    sound = file.read_bytes()
    assert "2 packages, for static keys" in list(lines(file))
    for at in range(len(sound)):
        for damaged in (sound[:at], sound[:at] + bytes([sound[at] ^ 0x10]) + sound[at + 1 :]):
            file.write_bytes(damaged)
            assert refusal(file).reason is Reason.EXPORT_INVALID, at


def test_a_record_of_a_shard_that_is_no_script_is_told_with_its_offset(tmp_path: Path) -> None:
    first = script(1).SerializeToString()
    empty = pb.RenderedScript(issuance=f"issuances/{2:032x}").SerializeToString()
    for wrong in (b"\xff" * 20, b"", empty, script(2, issuance="receipts/2").SerializeToString()):
        error = refusal(shard(tmp_path / "shard", (first, wrong, first)))
        assert error.reason is Reason.EXPORT_INVALID
        assert error.facts == {"record": 1, "offset": len(delimited(first))}
        assert "no export" in refusal(shard(tmp_path / "shard", (wrong, first))).detail


def test_no_string_of_a_file_does_anything_to_a_terminal(tmp_path: Path) -> None:
    evil = script(1, issuance="issuances/\x1b[2J\r\n\x07\x7f\x9b\u202e\N{LATIN SMALL LETTER E WITH ACUTE}")
    [line] = lines(shard(tmp_path / "shard", [evil.SerializeToString()]))
    assert line.isascii()
    assert line.isprintable()
    assert line.startswith(r"issuances/\x1b[2J\r\n\x07\x7f\x9b\u202e\xe9  ")
