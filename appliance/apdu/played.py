"""A script that was played: what the SIM answered, held against the session command by command, up to the receipt.

The session's own answers come first (its opening, then R-MAC and R-ENC where the level has them), so that the first
wrong response is named and nothing behind it is looked at. At levels without R-MAC the responses inside the channel are
unprotected; the receipt carries its own proof at every level.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from appliance.apdu import engine
from appliance.apdu.expanded import responses as responses_in
from appliance.apdu.scp03 import InitializeUpdateResponse
from appliance.apdu.script import Channel, Command, Script
from appliance.errors import ApplianceError, Reason

INITIALIZE_UPDATE: Final = 0x50
GET_DATA: Final = 0xCA

_SECURE_MESSAGING: Final = 0x04
_FOREIGN_KEYS: Final = "The card's challenge and cryptogram are not those of the SIM's keys in this script's session."
_HELD_BACK: Final = (0x61, 0x6C)
"""SW1 of a T=0 card whose response data waits for GET RESPONSE, or for the right Le (ISO/IEC 7816-3, 12.2)."""


class Opening(NamedTuple):
    """What the SIM tells of itself when it opens the session: 10 bytes, the SCP03 parameter, and its counter."""

    kdd: bytes
    i: int
    sequence_counter: int


class Exchange(NamedTuple):
    """A command, its place in the script, its response (None: there is none), and where that stands in the request."""

    number: int
    command: Command
    response: bytes | None
    field: str


def exchanges(script: Script, responses: Sequence[bytes], field: str) -> list[Exchange]:
    """The script with one response for each command, in the order of sending.

    Args:
        script: as it was rendered.
        responses: response data and status word each; fewer where the script was cut off.
        field: where they stand in the request.

    Raises:
        ApplianceError: RESPONSE_REJECTED where there are more responses than commands.
    """
    pairs = _paired(script.commands, responses, field)
    return [Exchange(number, *pair, f"{field}[{number}]") for number, pair in enumerate(pairs)]


def remote_exchanges(script: Script, templates: Sequence[bytes], field: str) -> list[Exchange]:
    """The script's parts with one response template each (`expanded`), in which no SELECT was answered.

    Raises:
        ApplianceError: TLV_INVALID, SCRIPT_INCOMPLETE, or RESPONSE_REJECTED where there is more than was asked for.
    """
    if len(templates) > len(script.parts):
        raise _too_many(len(templates), len(script.parts), field)
    answered: list[Exchange] = []
    for at, part in enumerate(script.parts):
        place = f"{field}[{at}]"
        pairs = _paired(part.addressed, responses_in(templates[at], place) if at < len(templates) else (), place)
        first = script.commands.index(part.addressed[0])
        answered += (Exchange(number, *pair, place) for number, pair in enumerate(pairs, first))
    return answered


def receipt_in(answered: Sequence[Exchange], channel: Channel, opening: Opening) -> bytes:
    """The receipt, once every response is the one that this session's SIM gives.

    Args:
        answered: the whole script.
        channel: with which it was rendered.
        opening: of the session for which it was rendered.

    Raises:
        ApplianceError: SCRIPT_INCOMPLETE where a response is missing or has an unexpected status word,
            RESPONSE_REJECTED where one is malformed, another session's, or does not verify.
    """
    plain = _plain(answered, channel)
    counted = False
    receipt = b""
    for exchange in answered:
        instruction = exchange.command.apdu[1]
        response = plain.get(exchange.number, exchange.response)
        if isinstance(response, ApplianceError):
            raise _rejected(exchange, response.detail) from response
        data = _data(exchange._replace(response=response), opening.sequence_counter if counted else None)
        if instruction == INITIALIZE_UPDATE:
            _check_opening(exchange, data, opening, channel)
            counted = True
        elif instruction == GET_DATA:
            receipt += data
    return receipt


def _paired(
    commands: Sequence[Command], responses: Sequence[bytes], field: str
) -> Iterator[tuple[Command, bytes | None]]:
    if len(responses) > len(commands):
        raise _too_many(len(responses), len(commands), field)
    return zip(commands, (*responses, *[None] * (len(commands) - len(responses))), strict=True)


def _plain(answered: Sequence[Exchange], channel: Channel) -> dict[int, bytes | ApplianceError]:
    """Responses inside the channel in plain, by their commands' numbers, up to the first that is not right."""
    secured = [exchange for exchange in answered if exchange.command.apdu[0] & _SECURE_MESSAGING]
    commands = [exchange.command.apdu for exchange in secured]
    inside = {exchange.number: exchange.response for exchange in secured[1:] if exchange.response is not None}
    plain = engine.unwrap(channel.keys, channel.level, channel.mode, commands, list(inside.values()))
    return dict(zip(inside, plain, strict=False))


def _data(exchange: Exchange, counter: int | None) -> bytes:
    """The response data, if the status word is one that the script expects; for `counter` see `_incomplete`."""
    if exchange.response is None:
        raise _incomplete(exchange, "has no response", counter)
    if len(exchange.response) < 2:
        raise _rejected(exchange, "The response has no status word.")
    data, status = exchange.response[:-2], int.from_bytes(exchange.response[-2:], "big")
    if status not in exchange.command.expected_sw:
        raise _incomplete(exchange, f"was answered {status:04X}", counter, status)
    return data


def _check_opening(exchange: Exchange, data: bytes, expected: Opening, channel: Channel) -> None:
    """What explains most comes first: another SIM or key set, another session of the right one, other keys."""
    try:
        answered = InitializeUpdateResponse.decode(data)
    except ApplianceError as refusal:
        raise _rejected(exchange, refusal.detail) from refusal
    if answered.kdd != expected.kdd:
        problem = f"The key diversification data is {answered.kdd.hex().upper()}, not {expected.kdd.hex().upper()}."
        raise _rejected(exchange, problem)
    if (answered.kvn, answered.i) != (channel.kvn, expected.i):
        problem = f"KVN {answered.kvn:02X} and i {answered.i:02X} are not the key set's {channel.kvn:02X} and "
        raise _rejected(exchange, f"{problem}{expected.i:02X}.")
    if answered.sequence_counter != expected.sequence_counter:
        what = f"was answered with sequence counter {answered.sequence_counter}, not {expected.sequence_counter}"
        raise _incomplete(exchange, what, answered.sequence_counter)
    if answered.card_challenge != channel.card_challenge:
        raise _rejected(exchange, _FOREIGN_KEYS)
    try:
        engine.verify_card_cryptogram(
            channel.keys.s_mac, channel.host_challenge, answered.card_challenge, answered.card_cryptogram
        )
    except ApplianceError as refusal:
        raise _rejected(exchange, _FOREIGN_KEYS) from refusal


def _incomplete(exchange: Exchange, what: str, counter: int | None, status: int | None = None) -> ApplianceError:
    """`counter` is the SIM's, as far as it is known."""
    next_one = "the SIM's last sequence counter plus one" if counter is None else f"sequence counter {counter + 1}"
    hint = f"Fetch a script for {next_one} and play it whole."
    if exchange.command.apdu[1] == GET_DATA:
        hint = "The SIM may hold the package: report the receipt that GET DATA reads from the applet. Or: " + hint
    facts = {}
    if status is not None:
        facts["status_word"] = f"{status:04X}"
        if status >> 8 in _HELD_BACK:
            hint = "Let the player fetch what the SIM holds back: GET RESPONSE after 61xx, Le as told by 6Cxx. " + hint
    return ApplianceError(
        Reason.SCRIPT_INCOMPLETE,
        f"Command {exchange.number}, {exchange.command.purpose}, {what}.",
        hint=hint,
        field=exchange.field,
        command=exchange.number,
        purpose=exchange.command.purpose,
        **facts,
    )


def _rejected(exchange: Exchange, problem: str) -> ApplianceError:
    return ApplianceError(
        Reason.RESPONSE_REJECTED,
        f"The response to command {exchange.number}, {exchange.command.purpose}: {problem}",
        hint="Report the responses of one run unchanged, with the request_id of its script; else fetch another script.",
        field=exchange.field,
        command=exchange.number,
        purpose=exchange.command.purpose,
    )


def _too_many(there: int, asked: int, field: str) -> ApplianceError:
    return ApplianceError(
        Reason.RESPONSE_REJECTED,
        f"There are {there} responses where {asked} are expected.",
        hint="Report one response for each command of one run, or one template for each of remote_scripts; "
        "what GET RESPONSE fetched belongs to its command.",
        field=field,
    )
