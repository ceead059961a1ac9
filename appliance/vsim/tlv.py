"""Strict reading of TLVs with one-byte tags and minimal definite lengths: the SIM package's BER-TLV, and DER."""

from collections.abc import Iterator
from typing import NamedTuple


class Tlv(NamedTuple):
    """`encoded` is the whole element, tag and length included."""

    tag: int
    value: bytes
    encoded: bytes


def first(data: bytes) -> Tlv:
    """The element that `data` begins with; more may follow it.

    Raises:
        ValueError: truncated, over-long, not minimal, or a tag of more than one byte.
    """
    if len(data) < 2:
        raise ValueError("truncated")
    tag, length, start = data[0], data[1], 2
    if tag & 0x1F == 0x1F:
        raise ValueError("tag of more than one byte")
    if length >= 0x80:
        start += length - 0x80
        length = int.from_bytes(data[2:start])
        if start not in (3, 4) or length < (0x80 if start == 3 else 0x100):
            raise ValueError("length not minimal, indefinite, or of more than two bytes")
    end = start + length
    if end > len(data):
        raise ValueError("truncated")
    return Tlv(tag, data[start:end], data[:end])


def elements(data: bytes) -> Iterator[Tlv]:
    """The elements that `data` consists of, in order.

    Raises:
        ValueError: as `first`.
    """
    while data:
        element = first(data)
        yield element
        data = data[len(element.encoded) :]
