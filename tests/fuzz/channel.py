"""Targets between appliance and SIM: what one end of a channel wraps, the other unwraps; and scripts, played."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import Mock, patch

from appliance.apdu import scp03, script
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.vsim.apdu import Command, Status
from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import Memory, State
from appliance.vsim.package import LONGEST_PACKAGE, open_package
from appliance.vsim.personalisation import ChannelKeys
from appliance.vsim.scp03 import Session
from appliance.vsim.script import Step, read
from tests.fuzz.formats import CASES, octets
from tests.fuzz.target import Choices, Run, Target, refused_with
from tests.vsim.packages import P256, personalisation

AID = bytes.fromhex("A0000001515350534F")
LEVELS = {0x01: 0x10, 0x03: 0x10, 0x11: 0x30, 0x13: 0x30, 0x33: 0x70}
"""Levels, and an i that has them."""
KEY_LENGTHS = (16, 24, 32)


@contextmanager
def open_channel() -> Iterator[Run]:
    """An input is: level, mode, key length, then commands, each with the response to it and a way to spoil that."""

    def run(data: bytes) -> None:
        choices = Choices(data)
        with refused_with(Reason.SCP03_INVALID):
            scp03.InitializeUpdateResponse.decode(data)
        level, mode = list(LEVELS)[choices.number() % len(LEVELS)], list(scp03.Mode)[choices.number() % 2]
        size = KEY_LENGTHS[choices.number() % len(KEY_LENGTHS)]
        keys = ChannelKeys(
            1, LEVELS[level] | (mode is scp03.Mode.S16), bytes(10), *(bytes([n]) * size for n in (1, 2, 3))
        )
        host_challenge = bytes(range(mode))
        card = Session(keys, AID, 1, host_challenge)
        card_challenge = scp03.InitializeUpdateResponse.decode(card.initialize_update_response).card_challenge
        session_keys = scp03.derive_session_keys(keys.k_enc, keys.k_mac, host_challenge, card_challenge)
        host = scp03.SecureChannel(session_keys, level, mode)
        card.authenticate(Command.parse(host.external_authenticate(host_challenge, card_challenge)))
        while choices:
            apdu = choices.octets(choices.number())
            response, spoiling = choices.octets(choices.number()), choices.number()
            try:
                wrapped = host.wrap(apdu)
            except ApplianceError as refusal:
                assert refusal.reason is Reason.SCP03_INVALID
                continue
            assert card.unwrap(Command.parse(wrapped)) == Command.parse(apdu)
            sent = card.protect(response) + Status.OK.to_bytes(2)
            if spoiling and level & scp03.SecurityLevel.R_MAC:
                at = (spoiling - 1) % (len(sent) - 2)
                require_refused(host, sent[:at] + bytes([sent[at] ^ 1]) + sent[at + 1 :])
                require_refused(host, sent[:-3] + sent[-2:])
            assert host.unwrap(sent) == response + Status.OK.to_bytes(2)
            with refused_with(Reason.SCP03_INVALID):
                host.unwrap(response)

    yield run


def require_refused(host: scp03.SecureChannel, response: bytes) -> None:
    with refused_with(Reason.SCP03_INVALID):
        host.unwrap(response)
        raise AssertionError("a spoilt response is taken")


def conversations() -> Iterator[bytes]:
    apdus = [bytes.fromhex(text) for text in ("80E6200000", "80E230000504030201FF", "00A4040C", "80CADF2100")]
    for level in range(len(LEVELS)):
        for mode in range(2):
            said = b"".join(
                bytes([len(apdu)]) + apdu + bytes([number]) + bytes(number) + bytes([number])
                for number, apdu in enumerate(apdus)
            )
            yield bytes((level, mode, level % 3)) + said
            for length in (222, 223, 224, 238, 239, 240, 246, 247, 248):
                apdu = b"\x80\xe2\x30\x00" + bytes([length]) + bytes(length)
                yield bytes((level, mode, 0, len(apdu))) + apdu
    yield bytes(10) + bytes.fromhex("01037000") + bytes(18)


def offline_channel(sim: VirtualSim, level: int) -> script.Channel:
    """The channel that a script opens on a fresh SIM."""
    keys, ssd_aid = sim.state.sim.channel, sim.state.sim.ssd_aid
    mode = scp03.Mode(16 if keys.i & 1 else 8)
    host_challenge = bytes(mode)
    challenge = scp03.card_challenge(keys.k_enc, 1, ssd_aid, mode)
    return script.Channel(
        ssd_aid=ssd_aid,
        kvn=keys.kvn,
        keys=scp03.derive_session_keys(keys.k_enc, keys.k_mac, host_challenge, challenge),
        host_challenge=host_challenge,
        card_challenge=challenge,
        level=level,
        mode=mode,
    )


@contextmanager
def open_delivery() -> Iterator[Run]:
    """An input is: level, options, key type, then any bytes as the package: the SIM gets those bytes and no others."""
    sims = {i: State(personalisation(P256, channel_i=i)) for i in (0x70, 0x71)}

    def run(data: bytes) -> None:
        choices = Choices(data)
        level, options = list(LEVELS)[choices.number() % len(LEVELS)], (0x70, 0x71)[choices.number() % 2]
        key_type, package = KeyType(choices.number() % len(KeyType) + 1), choices.rest()
        sim = VirtualSim(Memory(sims[options]))
        channel = offline_channel(sim, level)
        opened = Mock(wraps=open_package)
        with refused_with(Reason.FIELD_INVALID), patch("appliance.vsim.security_domain.open_package", opened):
            rendered = script.render(package, key_type, sim.state.sim.applet_aid, channel)
            apdus = [command.apdu for command in rendered.commands]
            assert list(read(rendered.text().splitlines())) == [Step(n, apdu) for n, apdu in enumerate(apdus, 1)]
            statuses = [int.from_bytes(sim.transmit(apdu)[-2:]) for apdu in apdus]
            if len(package) > LONGEST_PACKAGE:
                assert Status.NO_SPACE in statuses
                assert not opened.called
            else:
                opened.assert_called_once()
                assert opened.call_args.args[0] == package
                assert sim.refusal is None or sim.refusal.status in statuses
                assert (sim.state.installed is None) == (sim.refusal is not None)

    yield run


@contextmanager
def open_script_text() -> Iterator[Run]:
    """What a person or another program wrote into a script's file."""

    def run(data: bytes) -> None:
        lines = data.decode("latin-1").splitlines()
        try:
            steps = list(read(lines))
        except ValueError as error:
            assert str(error).endswith("is not a command APDU in hexadecimal")
            return
        for step in steps:
            assert 1 <= step.line <= len(lines)
            assert step.name
            if step.apdu is not None:
                assert list(read([step.apdu.hex(" ")])) == ([Step(1, step.apdu)] if step.apdu else [])

    yield run


PACKAGE = octets(CASES[P256], "package")
CHANNEL = Target(open_channel, conversations, 2000)
DELIVERY = Target(
    open_delivery,
    lambda: [
        bytes((level, options, 1)) + package
        for level in range(len(LEVELS))
        for options in range(2)
        for package in (PACKAGE, bytes(600))
    ],
    4000,
)
SCRIPT_TEXT = Target(
    open_script_text,
    lambda: [b"# a comment\n00A4040C00\n80 ca DF 21 \\\n 00\nreset\n\n00B0000000\r\nexit\nnothing\n"],
    300,
)
