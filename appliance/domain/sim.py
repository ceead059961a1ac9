"""How a SIM and the things on it are named: ICCID, application identifier, key version number."""

from dataclasses import dataclass
from typing import Final, Self

from appliance.errors import ApplianceError, Reason

ICCID_LENGTHS: Final = (19, 20)
"""Digits with the check digit: 19 by ITU-T E.118; some issuers print 20."""
EF_ICCID_LENGTH: Final = 10
AID_LENGTHS: Final = range(5, 17)
"""ISO/IEC 7816-4: a registered identifier of 5 bytes and up to 11 more."""
KVN_RANGE: Final = range(0x01, 0x80)
"""GPC Card Specification 2.3.1, 11.8.2; 00 would mean "any"."""

_SWAPPED: Final = bytes(byte >> 4 | byte << 4 & 0xF0 for byte in range(0x100))


@dataclass(frozen=True)
class Iccid:
    """The identification number of a SIM: 19 or 20 decimal digits, the last one their Luhn check digit.

    >>> Iccid.parse("8981309114170753644").ef_coding.hex()
    '981803194171703546f4'
    """

    digits: str

    def __post_init__(self) -> None:
        if not (self.digits.isascii() and self.digits.isdigit()):
            raise _iccid_invalid("The ICCID has a character that is not a decimal digit.")
        if len(self.digits) not in ICCID_LENGTHS:
            raise _iccid_invalid(f"The ICCID has {len(self.digits)} digits; it has 19 (or 20) with its check digit.")
        expected = luhn_check_digit(self.digits[:-1])
        if self.digits[-1] != expected:
            raise _iccid_invalid(f"The ICCID's check digit is {self.digits[-1]}, but its digits give {expected}.")

    @classmethod
    def parse(cls, digits: str) -> Self:
        """The ICCID as printed, without spaces.

        Raises:
            ApplianceError: ICCID_INVALID, saying which rule is broken.
        """
        return cls(digits)

    @classmethod
    def from_ef_coding(cls, coding: bytes) -> Self:
        """The ICCID of the 10 bytes of EF.ICCID (ETSI TS 102 221, 13.2).

        Raises:
            ApplianceError: ICCID_INVALID.
        """
        if len(coding) != EF_ICCID_LENGTH:
            raise _iccid_invalid(f"EF.ICCID has {len(coding)} bytes; it has {EF_ICCID_LENGTH}.")
        nibbles = "".join(f"{byte & 0xF:X}{byte >> 4:X}" for byte in coding)
        return cls(nibbles.removesuffix("F"))

    @property
    def ef_coding(self) -> bytes:
        """The 10 bytes of EF.ICCID."""
        return ef_coding(self.digits)


def ef_coding(digits: str) -> bytes:
    """The 10 bytes of EF.ICCID for 19 or 20 digits: two a byte, the first in the low nibble, F behind 19."""
    return bytes.fromhex(digits.ljust(2 * EF_ICCID_LENGTH, "F")).translate(_SWAPPED)


def luhn_check_digit(digits: str) -> str:
    """The check digit to append to `digits` (ISO/IEC 7812-1, annex B)."""
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[::-2])
    return str(-(doubled + sum(int(digit) for digit in digits[-2::-2])) % 10)


def validate_aid(aid: bytes, field: str) -> bytes:
    """`aid`, if it is 5 to 16 bytes; else AID_INVALID for `field`."""
    if len(aid) not in AID_LENGTHS:
        raise ApplianceError(
            Reason.AID_INVALID,
            f"The application identifier has {len(aid)} bytes.",
            hint="An application identifier has 5 to 16 bytes.",
            field=field,
            length=len(aid),
        )
    return aid


def validate_kvn(kvn: int, field: str) -> int:
    """`kvn`, if it is 01 to 7F; else KVN_INVALID for `field`."""
    if kvn not in KVN_RANGE:
        raise ApplianceError(
            Reason.KVN_INVALID,
            f"The key version number {kvn} lies outside 1 to 127.",
            hint="Use the key version number of a declared key set, 01 to 7F.",
            field=field,
            kvn=kvn,
        )
    return kvn


def _iccid_invalid(problem: str) -> ApplianceError:
    return ApplianceError(
        Reason.ICCID_INVALID,
        problem,
        hint="Read the ICCID from the SIM or its carrier again, with the check digit and without spaces.",
        field="iccid",
    )
