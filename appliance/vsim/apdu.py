"""Command APDUs (ISO/IEC 7816-4, short form) and the status words this SIM answers with."""

from dataclasses import dataclass
from enum import IntEnum


class Status(IntEnum):
    """Status words by their ISO/IEC 7816-4 and GlobalPlatform names; `MEANINGS` says them in words."""

    OK = 0x9000
    CRYPTOGRAM_WRONG = 0x6300
    TRIES_LEFT = 0x63C0  # the low four bits are the count
    MEMORY_FAILURE = 0x6581
    LENGTH_WRONG = 0x6700
    CHANNEL_UNSUPPORTED = 0x6881
    FILE_INCOMPATIBLE = 0x6981
    SECURITY_NOT_SATISFIED = 0x6982
    CODE_BLOCKED = 0x6983
    PIN_BLOCKED = 0x6984
    CONDITIONS_NOT_SATISFIED = 0x6985
    NO_CURRENT_EF = 0x6986
    CRYPTOGRAPHY_REFUSED = 0x6988
    DATA_WRONG = 0x6A80
    NOT_SUPPORTED = 0x6A81
    NOT_FOUND = 0x6A82
    NO_SPACE = 0x6A84
    PARAMETERS_WRONG = 0x6A86
    REFERENCE_NOT_FOUND = 0x6A88
    OFFSET_WRONG = 0x6B00
    INSTRUCTION_UNKNOWN = 0x6D00
    CLASS_UNKNOWN = 0x6E00


MEANINGS: dict[Status, str] = {
    Status.OK: "done",
    Status.CRYPTOGRAM_WRONG: "the host cryptogram is wrong: other channel keys, or another sequence counter",
    Status.TRIES_LEFT: "wrong or asked; the last digit counts the tries left",
    Status.MEMORY_FAILURE: "the state could not be written; nothing was changed",
    Status.LENGTH_WRONG: "wrong length",
    Status.CHANNEL_UNSUPPORTED: "only the basic logical channel is there",
    Status.FILE_INCOMPATIBLE: "the current file is of another kind",
    Status.SECURITY_NOT_SATISFIED: "no valid secure channel, or the PIN has not been verified",
    Status.CODE_BLOCKED: "activation is blocked: five wrong codes",
    Status.PIN_BLOCKED: "the PIN is blocked or absent",
    Status.CONDITIONS_NOT_SATISFIED: "conditions not satisfied",
    Status.NO_CURRENT_EF: "no file is selected that this command works on",
    Status.CRYPTOGRAPHY_REFUSED: "a MAC or a wrapped key does not verify",
    Status.DATA_WRONG: "the data is not as specified",
    Status.NOT_SUPPORTED: "not supported",
    Status.NOT_FOUND: "no such application or file",
    Status.NO_SPACE: "more data than a SIM package can have",
    Status.PARAMETERS_WRONG: "P1 or P2 is wrong",
    Status.REFERENCE_NOT_FOUND: "the referenced data, key or application is not here",
    Status.OFFSET_WRONG: "the offset lies behind the end of the file",
    Status.INSTRUCTION_UNKNOWN: "unknown instruction",
    Status.CLASS_UNKNOWN: "unknown class",
}


def meaning(status: int) -> str:
    """A status word in words; 63Cx by its count."""
    if status & 0xFFF0 == Status.TRIES_LEFT:
        return f"not accepted; {status & 0x0F} tries left"
    try:
        return MEANINGS[Status(status)]
    except ValueError:
        return "not a status word of this SIM"


class CardError(Exception):
    """A command ends with a status word other than 9000 and without response data."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:04X} {meaning(status)}")
        self.status = status


@dataclass(frozen=True)
class Command:
    """One command APDU; `le` is None where absent, and 256 where its byte is 00. Data may be secret: not in repr."""

    cla: int
    ins: int
    p1: int
    p2: int
    data: bytes
    le: int | None

    def __repr__(self) -> str:
        return f"Command({self.cla:02X} {self.ins:02X} {self.p1:02X} {self.p2:02X}, {len(self.data)} bytes)"

    @classmethod
    def parse(cls, apdu: bytes) -> "Command":
        """Split a short APDU of case 1, 2, 3 or 4.

        Raises:
            CardError: 6700, also for extended lengths.
        """
        if len(apdu) < 4:
            raise CardError(Status.LENGTH_WRONG)
        body = apdu[4:]
        data, le = b"", body
        if len(body) > 1:
            data, le = body[1 : 1 + body[0]], body[1 + body[0] :]
            if not data or len(data) != body[0]:
                raise CardError(Status.LENGTH_WRONG)
        if len(le) > 1:
            raise CardError(Status.LENGTH_WRONG)
        return cls(apdu[0], apdu[1], apdu[2], apdu[3], data, (le[0] or 256) if le else None)
