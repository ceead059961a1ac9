"""Delivery scripts as text, read as Debian's `scriptor` reads them: one command APDU in hexadecimal a line."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

NAMES = {
    0xA4: "SELECT",
    0xB0: "READ BINARY",
    0x20: "VERIFY",
    0x24: "CHANGE / SET PIN",
    0x2A: "SIGN",
    0xCA: "GET DATA",
    0x50: "INITIALIZE UPDATE",
    0x82: "EXTERNAL AUTHENTICATE",
    0xE6: "INSTALL",
    0xE2: "STORE DATA",
}


class Step(NamedTuple):
    """One line: `apdu` is None for `reset`."""

    line: int
    apdu: bytes | None

    @property
    def name(self) -> str:
        """The command in words."""
        if self.apdu is None:
            return "RESET"
        return NAMES.get(self.apdu[1], "?") if len(self.apdu) > 1 else "?"


def read(lines: Iterable[str]) -> Iterator[Step]:
    r"""The steps of a script: `#` begins a comment line, `\` continues a line, `reset` resets, `exit` ends.

    Raises:
        ValueError: a line is not hexadecimal; the message says which.
    """
    pending = ""
    for number, line in enumerate(lines, 1):
        text = pending + line.strip()
        pending = ""
        if not text or text.startswith("#"):
            continue
        if text.endswith("\\"):
            pending = text[:-1]
        elif text.lower() == "reset":
            yield Step(number, None)
        elif text.lower() == "exit":
            return
        else:
            try:
                yield Step(number, bytes.fromhex(text))
            except ValueError:
                raise ValueError(f"line {number} is not a command APDU in hexadecimal") from None
