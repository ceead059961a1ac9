"""Strict TLV reading: one-byte tags, minimal definite lengths, nothing missing."""

import pytest

from appliance.vsim import tlv


@pytest.mark.parametrize("size", [0, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF])
def test_element_of_any_length_is_read_and_what_follows_is_left(size: int) -> None:
    head = {1: b"", 2: b"\x81", 3: b"\x82"}[1 + (size > 0x7F) + (size > 0xFF)]
    encoded = b"\xc1" + head + size.to_bytes(1 + (size > 0xFF)) + bytes(size)
    assert tlv.first(encoded + b"\xc2") == tlv.Tlv(0xC1, bytes(size), encoded)
    assert list(tlv.elements(encoded * 2)) == [tlv.first(encoded)] * 2


TRUNCATED = ["", "c1", "c101", "c181", "c182", "c18101ff", "c18180", "c1820100", "c1817f" + "00" * 126]
NOT_MINIMAL = ["c18100", "c1817f" + "00" * 127, "c1820080" + "00" * 128, "c183000001ff", "c180ff0000"]
LONG_TAGS = ["1f0100", "df210100"]


@pytest.mark.parametrize("encoded", [*TRUNCATED, *NOT_MINIMAL, *LONG_TAGS])
def test_element_of_another_form_is_refused(encoded: str) -> None:
    with pytest.raises(ValueError, match=r"truncated|minimal|tag"):
        tlv.first(bytes.fromhex(encoded))
