"""BER-TLV as the SIM package uses it: one-byte tags, minimal definite lengths, a fixed order (sim-package.md, head).

The reader is strict: each TLV has exactly one encoding, so what was decoded encodes to the same bytes again.
"""

from collections.abc import Sequence
from typing import NamedTuple

from appliance.errors import ApplianceError, Reason

MAX_VALUE = 0xFFFF
"""Longest value: length forms up to 82 (ISO/IEC 7816-4:2005, 5.2.2.2); a package has about 3.5 KB at most."""

_MULTI_BYTE_TAG = 0x1F
_FIRST_LONG_FORM = 0x80
_TWO_BYTE_LENGTH = 0x100


class Field(NamedTuple):
    """One TLV of a fixed sequence, with the lengths its value may have."""

    tag: int
    name: str
    min_length: int
    max_length: int

    @property
    def lengths(self) -> str:
        """The permitted lengths in words."""
        return str(self.max_length) if self.min_length == self.max_length else f"{self.min_length} to {self.max_length}"


def encode(tag: int, value: bytes) -> bytes:
    """The TLV of `tag` (one byte, not the start of a longer tag) and `value` (at most `MAX_VALUE` bytes)."""
    if not 0 < tag <= 0xFF or tag & _MULTI_BYTE_TAG == _MULTI_BYTE_TAG:
        raise ValueError(f"{tag:X} is not a one-byte tag")
    length = len(value)
    if length > MAX_VALUE:
        raise ValueError(f"{length} bytes do not fit into one TLV")
    if length < _FIRST_LONG_FORM:
        return bytes((tag, length)) + value
    if length < _TWO_BYTE_LENGTH:
        return bytes((tag, 0x81, length)) + value
    return bytes((tag, 0x82)) + length.to_bytes(2, "big") + value


def split_tlv(data: bytes, *, at: int = 0) -> tuple[int, bytes, bytes]:
    """The first TLV of `data` as (tag, value) and the bytes behind it.

    Args:
        data: at least one TLV.
        at: where `data` begins in the whole, for the offsets that errors name.

    Raises:
        ApplianceError: TLV_INVALID: truncated, a tag or length form that is not used here, or a non-minimal length.
    """
    if not data:
        raise _invalid("A TLV was expected, but nothing is left.", at)
    tag = data[0]
    if tag == 0 or tag & _MULTI_BYTE_TAG == _MULTI_BYTE_TAG:
        raise _invalid(f"{tag:02X} is not a one-byte tag.", at, tag)
    if len(data) == 1:
        raise _invalid("The length is missing.", at, tag)
    length, start = data[1], 2
    if length >= _FIRST_LONG_FORM:
        if length not in (0x81, 0x82):
            raise _invalid(f"The length form {length:02X} is not used; it is up to 7F, or 81, or 82.", at, tag)
        start += length & 0x7F
        if len(data) < start:
            raise _invalid("The length is truncated.", at, tag)
        length = int.from_bytes(data[2:start], "big")
        if length < (_FIRST_LONG_FORM if start == 3 else _TWO_BYTE_LENGTH):
            raise _invalid(f"The length {length} is not encoded in its shortest form.", at, tag)
    end = start + length
    if len(data) < end:
        raise _invalid(f"The value is truncated: {length} bytes announced, {len(data) - start} there.", at, tag)
    return tag, data[start:end], data[end:]


def decode_sequence(data: bytes, fields: Sequence[Field], *, at: int = 0) -> tuple[bytes, ...]:
    """The values of exactly `fields`: each once, in this order, within its lengths, and nothing behind them.

    Args:
        data: the TLVs, joined.
        fields: what must be there.
        at: where `data` begins in the whole, for the offsets that errors name.

    Raises:
        ApplianceError: TLV_INVALID, naming tag and offset.
    """
    values: list[bytes] = []
    rest = data
    for index, field in enumerate(fields):
        offset = at + len(data) - len(rest)
        if not rest:
            raise _invalid(f"{field.tag:02X} ({field.name}) is missing.", offset, field.tag, field.name)
        if rest[0] != field.tag:
            raise _unexpected(rest[0], f"{field.tag:02X} ({field.name}) is expected", fields, index, offset)
        _, value, rest = split_tlv(rest, at=offset)
        if not field.min_length <= len(value) <= field.max_length:
            raise _invalid(f"{field.name} has {len(value)} bytes, not {field.lengths}.", offset, field.tag, field.name)
        values.append(value)
    if rest:
        raise _unexpected(rest[0], "the end is expected", fields, len(fields), at + len(data) - len(rest))
    return tuple(values)


def _unexpected(tag: int, expected: str, fields: Sequence[Field], index: int, offset: int) -> ApplianceError:
    if any(field.tag == tag for field in fields[:index]):
        problem = "is doubled"
    elif any(field.tag == tag for field in fields[index:]):
        problem = "is out of order"
    else:
        problem = "does not belong here"
    return _invalid(f"{tag:02X} {problem}: {expected}.", offset, tag)


def _invalid(problem: str, offset: int, tag: int | None = None, name: str = "") -> ApplianceError:
    facts: dict[str, str | int] = {"offset": offset} if tag is None else {"offset": offset, "tag": f"{tag:02X}"}
    where = f"at offset {offset}" if tag is None else f"tag {tag:02X} at offset {offset}"
    return ApplianceError(
        Reason.TLV_INVALID,
        f"{problem} ({where})",
        hint="Send the bytes as they were made, unchanged and whole.",
        field=name,
        **facts,
    )
