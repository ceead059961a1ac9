"""Files of records: protobuf messages, each behind its length as a varint. They are read in blocks, never whole.

A record has a number, from 0, and an offset, where its length begins; what is wrong with it is told by both.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, Final, NamedTuple

from appliance.errors import ApplianceError, Reason

MAX_RECORD: Final = 1 << 20
"""Bytes. A package with the largest window of session keys has a tenth of it; more is damage, not to be reserved."""

_BLOCK: Final = 1 << 16
_MORE: Final = 0x80
_LENGTH_BYTES: Final = 3
"""Of a varint up to MAX_RECORD."""


class Record(NamedTuple):
    """One message, still coded."""

    number: int
    offset: int
    content: bytes


@lru_cache(1 << 14)
def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first (protobuf's encoding, Base 128 Varints). Lengths recur: they are kept."""
    coded = bytearray()
    while value >= _MORE:
        coded.append(value & 0x7F | _MORE)
        value >>= 7
    coded.append(value)
    return bytes(coded)


def delimited(message: bytes) -> bytes:
    """A message behind its length."""
    return varint(len(message)) + message


def read(file: BinaryIO, offset: int, end: int, number: int = 0) -> Iterator[Record]:
    """The records from `offset` to `end`; the first one has this number.

    Raises:
        ApplianceError: EXPORT_INVALID for a record that is cut off or longer than `MAX_RECORD`.
        OSError
    """
    file.seek(offset)
    buffer, at, left = b"", 0, end - offset
    while chunk := file.read(min(_BLOCK, left)):
        buffer, at, left = buffer[at:] + chunk, 0, left - len(chunk)
        while True:
            begin, length = _length(buffer, at, number, offset)
            if begin == at or len(buffer) < begin + length:
                break
            yield Record(number, offset, buffer[begin : begin + length])
            number, offset, at = number + 1, offset + begin - at + length, begin + length
    if at < len(buffer):
        raise damaged(
            f"Record {number} at offset {offset} is cut off: {len(buffer) - at} bytes are left of it.",
            record=number,
            offset=offset,
        )


def damaged(problem: str, **facts: str | int) -> ApplianceError:
    """The refusal of an export that is not as it was written."""
    return ApplianceError(
        Reason.EXPORT_INVALID, problem, hint="Copy the file again from where it was made.", field="EXPORT", **facts
    )


def _length(buffer: bytes, at: int, number: int, offset: int) -> tuple[int, int]:
    """Where the content of the record at `at` begins, and its length; (`at`, 0) while the length is not there whole."""
    length = 0
    for position, byte in enumerate(buffer[at : at + _LENGTH_BYTES]):
        length |= (byte & 0x7F) << 7 * position
        if byte < _MORE:
            if length > MAX_RECORD:
                break
            return at + position + 1, length
    else:
        if len(buffer) < at + _LENGTH_BYTES:
            return at, 0
    raise damaged(f"Record {number} at offset {offset} has no possible length.", record=number, offset=offset)
