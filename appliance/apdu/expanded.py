"""The expanded remote format (ETSI TS 102 226, 5.2): commands as one template for a UICC, and the template it answers.

A template goes to one application, which its carrier addresses; so a script makes two, neither with a SELECT.
C-APDU and R-APDU are COMPREHENSION-TLVs (TS 102 223, 8.35 and 8.36), not BER: 22 and 23 are not constructed.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final

from appliance.domain.tlv import encode
from appliance.errors import ApplianceError, Reason


class Coding(IntEnum):
    """How the template's length is coded; the value is its tag (TS 101 220, table 7.18)."""

    DEFINITE = 0xAA
    INDEFINITE = 0xAE


C_APDU: Final = 0x22
"""TS 101 220, table 7.19; the CR flag is 0."""

_INDEFINITE: Final = 0x80
_END_OF_CONTENTS: Final = b"\x00\x00"
_RESPONSE_TAGS: Final = {0xAB: Coding.DEFINITE, 0xAF: Coding.INDEFINITE}
_EXECUTED: Final = 0x80
_R_APDU: Final = 0x23
_FAULTS: Final = {
    0x90: "bad format of the template (90)",
    0x81: "immediate action not performed (81)",
    0x83: "script chaining not possible (83)",
}
"""TS 101 220, table 7.20; TS 102 226, tables 5.12, 5.14 and 5.16."""


def command_template(apdus: Iterable[bytes], coding: Coding) -> bytes:
    """The commands as one template (TS 102 226, 5.2.1, tables 5.2 and 5.2a).

    Args:
        apdus: for one application, in the order of execution; Le 00 asks for all response data (5.2.1.1).
        coding: INDEFINITE is for HTTPS, DEFINITE for every carrier that needs the length first.
    """
    commands = b"".join(encode(C_APDU, apdu) for apdu in apdus)
    if coding is Coding.DEFINITE:
        return encode(coding, commands)
    return bytes((coding, _INDEFINITE)) + commands + _END_OF_CONTENTS


def responses(template: bytes, field: str) -> tuple[bytes, ...]:
    """The responses in a template (TS 102 226, 5.2.2, tables 5.10 and 5.10a): data and status word of each command.

    A UICC that stops early answers fewer than there were commands. How many it says to have executed (80) is left out:
    the responses show it.

    Args:
        template: as the UICC sent it, in either coding, whichever the commands had.
        field: where it stands in the request, for errors.

    Raises:
        ApplianceError: TLV_INVALID for what is no such template, SCRIPT_INCOMPLETE where the UICC reports a fault.
    """
    answered = []
    for tag, value in _elements(template, field):
        if tag in _FAULTS:
            raise ApplianceError(
                Reason.SCRIPT_INCOMPLETE,
                f"The UICC reports: {_FAULTS[tag]}, error {value.hex().upper()}.",
                hint="Carry the template unchanged to the application that it is for; it holds C-APDUs alone.",
                field=field,
                fault=f"{tag:02X}",
            )
        if tag == _R_APDU:
            answered.append(value)
        elif tag != _EXECUTED:
            raise _invalid(f"{tag:02X} does not belong into a response template.", field)
    return tuple(answered)


def _elements(template: bytes, field: str) -> Iterator[tuple[int, bytes]]:
    """The TLVs of a response template; UICCs may use more length bytes than needed (ISO/IEC 8825-1, 8.1.3.5)."""
    coding = _RESPONSE_TAGS.get(template[0]) if template else None
    if coding is None:
        raise _invalid("A response template begins with AB or AF.", field)
    if coding is Coding.DEFINITE:
        start, end = _value(template, 0, len(template), field)
        if end != len(template):
            raise _invalid(f"There are {len(template) - end} bytes behind the template.", field)
    else:
        start, end = 2, len(template) - len(_END_OF_CONTENTS)
        if end < start or template[1] != _INDEFINITE or template[end:] != _END_OF_CONTENTS:
            raise _invalid("A template AF begins with AF 80 and ends with 00 00.", field)
    while start < end:
        tag = template[start]
        begin, start = _value(template, start, end, field)
        yield tag, template[begin:start]


def _value(data: bytes, at: int, limit: int, field: str) -> tuple[int, int]:
    """Begin and end of the value of the TLV at `at`: a tag of one byte and a definite length of at most two bytes."""
    begin = at + 2
    if limit < begin:
        raise _invalid("The template is truncated.", field)
    length = data[at + 1]
    if length in (0x81, 0x82):
        begin += length & 0x7F
        length = int.from_bytes(data[at + 2 : min(begin, limit)], "big")
    elif length >= _INDEFINITE:
        raise _invalid(f"The length form {length:02X} is not used here; it is up to 7F, or 81, or 82.", field)
    if limit < begin + length:
        raise _invalid("The template is truncated.", field)
    return begin, begin + length


def _invalid(problem: str, field: str) -> ApplianceError:
    return ApplianceError(
        Reason.TLV_INVALID,
        problem,
        hint="Report the UICC's answer as it came, without headers of the carrier and whole.",
        field=field,
    )
