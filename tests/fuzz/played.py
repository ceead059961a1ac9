"""The target that is what a TSM reports: responses to a script, as they came or not, plain or in remote templates."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from appliance.apdu.expanded import responses
from appliance.apdu.played import Opening, exchanges, receipt_in, remote_exchanges
from appliance.apdu.scp03 import SecurityLevel
from appliance.apdu.script import Channel, Script, render
from appliance.domain.package import KeyType
from appliance.domain.tlv import encode
from appliance.errors import Reason
from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import Memory, State
from tests.fuzz.channel import LEVELS, PACKAGE, offline_channel
from tests.fuzz.target import Choices, Run, Target, chunk, refused_with
from tests.vsim.packages import P256, personalisation

MOST_CHANGES = 4


class Play(NamedTuple):
    """A script, what its SIM answered, and the receipt in it."""

    script: Script
    channel: Channel
    opening: Opening
    responses: list[bytes]
    receipt: bytes

    @property
    def remote(self) -> list[bytes]:
        """The same as response templates, without the SELECTs."""
        answered, templates = iter(self.responses), []
        for part in self.script.parts:
            next(answered)
            said = b"".join(encode(0x23, next(answered)) for _ in part.addressed)
            templates.append(encode(0xAB, encode(0x80, bytes([len(part.addressed)])) + said))
        return templates


def play(level: int) -> Play:
    """The published package, delivered."""
    sim = VirtualSim(Memory(State(personalisation(P256, channel_i=LEVELS[level]))))
    channel, keys = offline_channel(sim, level), sim.state.sim.channel
    script = render(PACKAGE, KeyType.EC_P256, sim.state.sim.applet_aid, channel)
    said = [sim.transmit(command.apdu) for command in script.commands]
    assert sim.state.installed is not None
    opening = Opening(kdd=keys.kdd, i=keys.i, sequence_counter=1)
    return Play(script, channel, opening, said, sim.state.installed.receipt)


@contextmanager
def open_played() -> Iterator[Run]:
    """An input is: level, form, changes of the responses; all of it is also read as a template."""
    plays = [play(level) for level in LEVELS]

    def run(data: bytes) -> None:
        with refused_with(Reason.TLV_INVALID, Reason.SCRIPT_INCOMPLETE):
            responses(data, "template")
            with refused_with(Reason.TLV_INVALID, Reason.SCRIPT_INCOMPLETE):
                responses(data[:-1], "template")
                raise AssertionError("a template is taken that lacks its last byte")
        choices = Choices(data)
        known, remote = plays[choices.number() % len(plays)], choices.number() % 2
        reported = changed(known.remote if remote else known.responses, choices)
        with refused_with(Reason.TLV_INVALID, Reason.SCRIPT_INCOMPLETE, Reason.RESPONSE_REJECTED):
            answered = (remote_exchanges if remote else exchanges)(known.script, reported, "played")
            receipt = receipt_in(answered, known.channel, known.opening)
            if reported == (known.remote if remote else known.responses):
                assert receipt == known.receipt
            for exchange in answered:
                require_proved(exchange.command.apdu, exchange.response, known)

    yield run


def require_proved(apdu: bytes, response: bytes | None, known: Play) -> None:
    """What is taken of a session is what the SIM answered in it, as far as the level proves it."""
    ins, secured = apdu[1], apdu[0] & 0x04 and known.channel.level & SecurityLevel.R_MAC
    if ins == 0x50 or (secured and ins != 0x82):
        sent = [command.apdu for command in known.script.commands].index(apdu)
        assert response == known.responses[sent], f"another response to {apdu[:4].hex()} is taken"


def changed(said: list[bytes], choices: Choices) -> list[bytes]:
    """Some of them replaced, spoilt, left out or added."""
    said = list(said)
    for _ in range(choices.number() % (MOST_CHANGES + 1)):
        kind, at = choices.number() % 5, choices.number()
        here = at % len(said) if said else 0
        if kind == 0:
            said[here : here + 1] = [choices.chunk()]
        elif kind == 1:
            del said[here:]
        elif kind == 2:
            said.append(choices.chunk())
        elif kind == 3 and said:
            said[here], said[-1] = said[-1], said[here]
        elif said and said[here]:
            where = choices.number(2) % len(said[here])
            said[here] = said[here][:where] + bytes([said[here][where] ^ 1]) + said[here][where + 1 :]
    return said


def reports() -> Iterator[bytes]:
    for level in range(len(LEVELS)):
        known = play(list(LEVELS)[level])
        yield bytes((level, 0, 0))
        yield bytes((level, 1, 0))
        yield bytes((level, 0, 1, 0, 3)) + chunk(known.responses[3])
        for at in range(len(known.responses)):
            for where in (12, 20, 30):
                yield bytes((level, 0, 1, 4, at, 0, where))
        yield bytes((level, 1, 1, 0, 1)) + chunk(known.remote[1])
    yield known.remote[1]
    yield b"\xaf\x80" + known.remote[1][2:] + bytes(2)
    yield bytes.fromhex("AB0780010023029000")
    yield bytes.fromhex("AF808001019001010000")


PLAYED = Target(open_played, reports, 1500)
