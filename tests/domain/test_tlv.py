"""BER-TLV: one encoding for each value, and a precise refusal of everything else."""

import pytest
from asn1crypto import parser
from hypothesis import given
from hypothesis import strategies as st

from appliance.domain import tlv
from appliance.errors import ApplianceError, Reason

FIELDS = (tlv.Field(0x80, "first", 1, 1), tlv.Field(0x81, "second", 2, 4), tlv.Field(0xC2, "third", 0, 0x1_0000))
GOOD = bytes.fromhex("80 01 AA 81 03 010203 C2 00")

one_byte_tags = st.integers(1, 0xFF).filter(lambda tag: tag & 0x1F != 0x1F)


@pytest.mark.parametrize(
    ("length", "head"),
    [
        (0, "C200"),
        (0x7F, "C27F"),
        (0x80, "C28180"),
        (0xFF, "C281FF"),
        (0x100, "C2820100"),
        (0xFFFF, "C282FFFF"),
    ],
)
def test_lengths_take_their_shortest_form(length: int, head: str) -> None:
    value = bytes(length)
    encoded = tlv.encode(0xC2, value)
    assert encoded == bytes.fromhex(head) + value
    assert tlv.split_tlv(encoded + b"more") == (0xC2, value, b"more")


@given(tag=one_byte_tags, value=st.binary(max_size=400))
def test_another_reader_of_ber_understands_what_is_encoded(tag: int, value: bytes) -> None:
    tag_class, method, number, _, contents, _ = parser.parse(tlv.encode(tag, value), strict=True)
    assert (tag_class << 6 | method << 5 | number, contents) == (tag, value)


@pytest.mark.parametrize("tag", [-1, 0, 0x1F, 0x7F, 0xFF, 0x100])
def test_tag_that_is_not_one_byte_is_not_encoded(tag: int) -> None:
    with pytest.raises(ValueError, match="not a one-byte tag"):
        tlv.encode(tag, b"")


def test_value_over_the_two_byte_length_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="65536 bytes"):
        tlv.encode(0x80, bytes(0x1_0000))


def test_sequence_gives_its_values_in_order() -> None:
    assert tlv.decode_sequence(GOOD, FIELDS) == (b"\xaa", b"\x01\x02\x03", b"")


@pytest.mark.parametrize(
    ("data", "problem", "tag", "offset"),
    [
        ("", "80 (first) is missing", "80", 0),
        ("80", "length is missing", "80", 0),
        ("80 01", "value is truncated: 1 bytes announced, 0 there", "80", 0),
        ("80 01 AA", "81 (second) is missing", "81", 3),
        ("80 01 AA 81", "length is missing", "81", 3),
        ("80 01 AA 81 81", "length is truncated", "81", 3),
        ("80 01 AA 81 82 01", "length is truncated", "81", 3),
        ("80 01 AA 81 03 0102", "value is truncated: 3 bytes announced, 2 there", "81", 3),
        ("80 01 AA 81 03 010203", "C2 (third) is missing", "C2", 8),
        ("80 01 AA 80 01 AA 81 03 010203 C2 00", "80 is doubled: 81 (second) is expected", "80", 3),
        ("80 01 AA 81 03 010203 81 03 010203 C2 00", "81 is doubled: C2 (third) is expected", "81", 8),
        ("80 01 AA 81 03 010203 C2 00 C2 00", "C2 is doubled: the end is expected", "C2", 10),
        ("81 03 010203 80 01 AA C2 00", "81 is out of order: 80 (first) is expected", "81", 0),
        ("80 01 AA C2 00 81 03 010203", "C2 is out of order: 81 (second) is expected", "C2", 3),
        ("80 01 AA 85 00 81 03 010203 C2 00", "85 does not belong here", "85", 3),
        ("80 01 AA 81 03 010203 C2 00 00", "00 does not belong here: the end is expected", "00", 10),
        ("80 81 01 AA 81 03 010203 C2 00", "length 1 is not encoded in its shortest form", "80", 0),
        ("80 01 AA 81 82 00 03 010203 C2 00", "length 3 is not encoded in its shortest form", "81", 3),
        (f"80 01 AA 81 82 00FF {255 * '00'} C2 00", "length 255 is not encoded in its shortest form", "81", 3),
        ("80 01 AA 81 80 010203 0000 C2 00", "length form 80 is not used", "81", 3),
        ("80 01 AA 81 83 000003 010203 C2 00", "length form 83 is not used", "81", 3),
        ("80 02 AAAA 81 03 010203 C2 00", "first has 2 bytes, not 1", "80", 0),
        ("80 00 81 03 010203 C2 00", "first has 0 bytes, not 1", "80", 0),
        ("80 01 AA 81 01 01 C2 00", "second has 1 bytes, not 2 to 4", "81", 3),
        ("80 01 AA 81 05 0102030405 C2 00", "second has 5 bytes, not 2 to 4", "81", 3),
    ],
)
def test_malformed_sequence_is_refused_with_tag_and_offset(data: str, problem: str, tag: str, offset: int) -> None:
    with pytest.raises(ApplianceError) as refused:
        tlv.decode_sequence(bytes.fromhex(data), FIELDS)
    assert refused.value.reason is Reason.TLV_INVALID
    assert problem in refused.value.detail
    assert f"tag {tag} at offset {offset}" in refused.value.detail
    assert refused.value.facts == {"tag": tag, "offset": offset}


@pytest.mark.parametrize("data", ["00 00", "1F 81 01 00", "DF 21 01 00"])
def test_tag_of_more_than_one_byte_is_refused(data: str) -> None:
    with pytest.raises(ApplianceError, match="is not a one-byte tag") as refused:
        tlv.split_tlv(bytes.fromhex(data))
    assert refused.value.reason is Reason.TLV_INVALID


def test_nothing_where_a_tlv_should_be_is_refused() -> None:
    with pytest.raises(ApplianceError, match="at offset 7") as refused:
        tlv.split_tlv(b"", at=7)
    assert refused.value.facts == {"offset": 7}


def test_offsets_count_from_where_the_whole_begins() -> None:
    with pytest.raises(ApplianceError) as refused:
        tlv.decode_sequence(GOOD + GOOD, FIELDS, at=100)
    assert refused.value.facts == {"tag": "80", "offset": 110}


@given(st.binary(max_size=12))
def test_whatever_is_read_encodes_to_the_same_bytes(data: bytes) -> None:
    try:
        tag, value, rest = tlv.split_tlv(data)
    except ApplianceError as refused:
        assert refused.reason is Reason.TLV_INVALID
    else:
        assert tlv.encode(tag, value) + rest == data
