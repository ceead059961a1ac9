"""How scripts are written: which form the engine gives, and how a script stands in a shard's file."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from appliance.apdu import engine
from appliance.api.v1 import bureau_pb2, delivery_pb2
from appliance.bureau.orders import Planned
from appliance.bureau.records import varint

_BLOCK: Final = 512
_LENGTH_DELIMITED: Final = 2
_FETCHED: Final = delivery_pb2.FetchScriptResponse.DESCRIPTOR.fields_by_name
_RENDERED: Final = bureau_pb2.RenderedScript.DESCRIPTOR.fields_by_name


def _key(number: int, wire_type: int) -> bytes:
    """What stands in front of a field (protobuf's encoding, Message Structure)."""
    return varint(number << 3 | wire_type)


_ISSUANCE: Final = _key(_RENDERED["issuance"].number, _LENGTH_DELIMITED)
_HOST_CHALLENGE: Final = _key(_RENDERED["host_challenge"].number, _LENGTH_DELIMITED)
_SCRIPT: Final = _key(_RENDERED["script"].number, _LENGTH_DELIMITED)
_ICCID: Final = _key(_FETCHED["iccid"].number, _LENGTH_DELIMITED)
_SEQUENCE_COUNTER: Final = _key(_FETCHED["sequence_counter"].number, 0)


def record(planned: Planned, rendered: bytes, _shard: int) -> tuple[bytes, ...]:
    """A RenderedScript behind its length; `rendered` is the field of FetchScriptResponse that the engine wrote.

    Put together by hand: objects of protobuf would cost as much as the script itself.
    """
    issuance, iccid = planned.issuance.encode(), planned.iccid.encode()
    counter, challenge = varint(planned.sequence_counter), planned.order.host_challenge
    script = len(rendered) + len(_ICCID) + 1 + len(iccid) + len(_SEQUENCE_COUNTER) + len(counter)
    length = varint(script)
    # Of the values in front of it each is shorter than 128 bytes: one byte of length.
    head = len(_ISSUANCE) + 1 + len(issuance) + len(_HOST_CHALLENGE) + 1 + len(challenge) + len(_SCRIPT) + len(length)
    return (
        varint(head + script),
        _ISSUANCE,
        varint(len(issuance)),
        issuance,
        _HOST_CHALLENGE,
        varint(len(challenge)),
        challenge,
        _SCRIPT,
        length,
        rendered,
        _ICCID,
        varint(len(iccid)),
        iccid,
        _SEQUENCE_COUNTER,
        counter,
    )


def member(planned: Planned, rendered: bytes, shard: int) -> tuple[bytes, ...]:
    """A member of a tar archive (POSIX.1-1988, ustar): shard/ICCID-counter-issuance.txt, its owner's alone."""
    issuance = planned.issuance.rpartition("/")[2]
    name = f"{shard:06}/{planned.iccid}-{planned.sequence_counter:08}-{issuance}.txt".encode()
    size = b"%011o" % len(rendered)
    checksum = b"%06o\0 " % (_SUM + sum(name) + sum(size))
    return (
        name,
        bytes(_NAME - len(name)),
        _OWNER,
        size,
        _TIME,
        checksum,
        _REST,
        rendered,
        bytes(-len(rendered) % _BLOCK),
    )


# The parts of a member's head: between them name, size and checksum.
_NAME: Final = 100
_OWNER: Final = b"0000600\x00" + b"0000000\x00" * 2
_TIME: Final = b"\x00" + b"00000000000\x00"
_REST: Final = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
_SUM: Final = sum(_OWNER) + sum(_TIME) + 8 * ord(" ") + sum(_REST)
"""The checksum counts its own field as eight spaces."""
ARCHIVE_END: Final = bytes(2 * _BLOCK)


@dataclass(frozen=True)
class Form:
    """A way to write scripts.

    Args:
        engine: the engine's form.
        suffix: of a shard's file.
        entry: what a script is in it, in parts to be joined: from the plan, what the engine made, the shard's number.
        end: what comes last.
        purpose: for people.
    """

    engine: engine.Form
    suffix: str
    entry: Callable[[Planned, bytes, int], tuple[bytes, ...]]
    end: bytes
    purpose: str


def _binary(form: engine.Form, purpose: str) -> Form:
    return Form(form, ".scripts", record, b"", purpose)


FORMS: Final = {
    "text": Form(
        engine.Form.TEXT, ".tar", member, ARCHIVE_END, "a file for each script, as scriptor plays it; in tar archives"
    ),
    "commands": _binary(engine.Form.COMMANDS, "the command APDUs, with the status words to expect"),
    "expanded-definite": _binary(engine.Form.EXPANDED_DEFINITE, "ETSI TS 102 226 templates AA"),
    "expanded-indefinite": _binary(engine.Form.EXPANDED_INDEFINITE, "the same of indefinite length, for HTTPS"),
}
