"""ICCIDs: 19 or 20 digits that end in their Luhn check digit (ITU-T E.118), coded as in EF.ICCID (TS 102 221, 13.2)."""


def encode(digits: str) -> bytes:
    """EF.ICCID coding: 10 bytes, nibbles swapped, F padding.

    Raises:
        ValueError: not 19 or 20 digits, or a wrong check digit.
    """
    if len(digits) not in (19, 20) or not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"an ICCID has 19 or 20 digits, this has {len(digits)} characters")
    if (expected := luhn(digits[:-1])) != int(digits[-1]):
        raise ValueError(f"the ICCID's check digit is {digits[-1]}, but its other digits ask for {expected}")
    padded = digits.ljust(20, "F")
    return bytes.fromhex("".join(padded[i + 1] + padded[i] for i in range(0, 20, 2)))


def decode(coded: bytes) -> str:
    """The digits of an EF.ICCID coding."""
    text = coded.hex()
    return "".join(text[i + 1] + text[i] for i in range(0, len(text), 2)).rstrip("f")


def luhn(body: str) -> int:
    """The Luhn check digit (ISO/IEC 7812-1, annex B) that belongs behind these digits."""
    total = 0
    for position, digit in enumerate(reversed(body)):
        doubled = int(digit) * (2 - position % 2)
        total += doubled // 10 + doubled % 10
    return -total % 10
