"""Delimited records: what protobuf's own reader makes of them, and where a damaged file is said to be damaged."""

import io

import pytest
from google.protobuf import proto
from google.protobuf.wrappers_pb2 import BytesValue

from appliance.bureau.records import MAX_RECORD, delimited, read, varint
from appliance.errors import ApplianceError, Reason

SIZES = (0, 1, 126, 127, 128, 16_383, 16_384, 1 << 16, (1 << 16) + 1, MAX_RECORD - 4)
"""Bytes of a message's field: around every length of a varint, and of the blocks in which files are read."""


def test_protobuf_reads_what_is_delimited() -> None:
    for size in SIZES:
        message = BytesValue(value=bytes(size))
        assert proto.parse_length_prefixed(BytesValue, io.BytesIO(delimited(message.SerializeToString()))) == message


def test_records_are_read_with_their_numbers_and_offsets_from_anywhere() -> None:
    contents = [bytes([number]) * size for number, size in enumerate((*SIZES, 3, *SIZES))]
    file = b"".join(map(delimited, contents))
    found = list(read(io.BytesIO(file), 0, len(file), 7))
    assert [record.content for record in found] == contents
    assert [record.number for record in found] == list(range(7, 7 + len(contents)))
    for index in (1, 9, 12):
        again = list(read(io.BytesIO(file), found[index].offset, found[-1].offset, found[index].number))
        assert again == found[index:-1]


@pytest.mark.parametrize("left", [1, 2, 3, 199])
def test_a_record_that_is_cut_off_is_named(left: int) -> None:
    file = delimited(bytes(50)) + delimited(bytes(200))[:left]
    with pytest.raises(ApplianceError) as caught:
        list(read(io.BytesIO(file), 0, len(file)))
    assert caught.value.reason is Reason.EXPORT_INVALID
    assert caught.value.facts == {"record": 1, "offset": 51}
    assert f"{left} bytes are left" in caught.value.detail


@pytest.mark.parametrize("length", [varint(MAX_RECORD + 1), b"\x80\x80\x80\x01", b"\xff" * 10])
def test_an_impossible_length_is_refused_before_anything_is_reserved_for_it(length: bytes) -> None:
    file = delimited(b"first") + length + bytes(100)
    with pytest.raises(ApplianceError) as caught:
        list(read(io.BytesIO(file), 0, len(file)))
    assert caught.value.facts == {"record": 1, "offset": 6}
    assert "no possible length" in caught.value.detail
