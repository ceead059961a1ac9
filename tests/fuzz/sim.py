"""Targets that are the SIM: whatever it is sent, it answers with a status word; only a right package changes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from appliance.domain.package import KeyType, SimPackage
from appliance.domain.receipt import receipt_message, split_receipt, verify_signature
from appliance.vsim.apdu import Status
from appliance.vsim.card import VirtualSim
from appliance.vsim.kdf import cmac
from appliance.vsim.memory import Memory, State
from appliance.vsim.package import PackageError
from tests.fuzz.formats import CASES, octets, public_key
from tests.fuzz.target import Choices, Run, Target, chunk
from tests.vsim.host import Host, delivery_script
from tests.vsim.packages import P256, P384, RSA, Draft, blank_sim, draft, personalisation, signed, tlv

PIN, LEVELS, OPTIONS = b"1234", (0x01, 0x03, 0x11, 0x13, 0x33), (0x70, 0x71, 0x10, 0x30)
SELECTED = {0: P256, 1: P384, 0xFF: RSA}
"""The package that an input's first byte selects; all other bytes the first one. To check an RSA key takes 0.1 s."""
SELECT_KEY, SIGN = bytes.fromhex("00A4020C020017"), bytes.fromhex("802A008020" + "11" * 32 + "00")
PHONE = (
    *map(bytes.fromhex, ("00A4020C020018", "00200080", "00240080", "0024008000", "002401800439393939")),
    *(SELECT_KEY, SIGN),
    *map(bytes.fromhex, ("00A4020C02000A", "00B0000000", "00B08A0000", "80CADF2100")),
    *map(bytes.fromhex, ("00A4020C022FE2", "00B000000A", "00A4000C023F00")),
)
"""A phone's commands: the PIN with and without data, a signature, the certificate, the receipt, the master file."""
CODE = CASES[P256]["activation_code"].encode()


def changed(known: Draft, choices: Choices) -> Draft:
    """The draft after some changes: of header fields by position, of the key, of the certificate."""
    for _ in range(choices.number() % 4):
        which, value = choices.number() % 10, choices.chunk()
        if which < len(known.header):
            fields = list(known.header)
            fields[which] = (fields[which][0], value)
            known = replace(known, header=tuple(fields))
        elif which == 8:
            known = replace(known, key=value or bytes(1))
        else:
            known = replace(known, certificate=value)
    return known


@contextmanager
def open_opening() -> Iterator[Run]:
    """An input is: which case, whether it is sealed; then the package as it is, or changes of the case's draft."""
    blanks = [blank_sim(index).state for index in range(len(CASES))]

    def run(data: bytes) -> None:
        choices = Choices(data)
        index, sealed = SELECTED.get(choices.number(), P256), choices.number() % 2
        before = blanks[index]
        if sealed:
            elements = changed(draft(index), choices).elements(before.sim)
            if wrapped := choices.chunk():
                elements = signed(before.sim, elements[0], tlv(0xC1, wrapped), elements[2])
            package = b"\xe0\x82" + sum(map(len, elements)).to_bytes(3)[-2:] + b"".join(elements)
        else:
            package = choices.rest()
        sim = VirtualSim(Memory(before))
        try:
            sim.install(package)
        except PackageError as refusal:
            assert sim.state is before
            assert refusal.status in set(Status)
        else:
            assert sealed or package == octets(CASES[index], "package"), "a package is accepted without its keys"
            require_right(sim.state, package)

    yield run


def require_right(state: State, package: bytes) -> None:
    """What was installed is what the package says, as the appliance reads it, and the receipt proves it."""
    read, installed = SimPackage.decode(package), state.installed
    assert installed is not None
    assert (state.package_counter, installed.certificate) == (read.header.counter, read.certificate)
    key_type = KeyType(installed.key_type)
    signature, mac = split_receipt(installed.receipt, key_type)
    message = receipt_message(read.header.digest(), read.certificate)
    verify_signature(public_key(read.certificate), key_type, message, signature)
    assert mac == cmac(state.sim.binding.k_rcpt, message)
    installed.key()


def openings() -> Iterator[bytes]:
    for selection, index in SELECTED.items():
        yield bytes((selection, 0)) + octets(CASES[index], "package")
        yield bytes((selection, 1, 0)) + chunk(octets(CASES[index], "wrapped"))
    package, known = octets(CASES[P256], "package"), draft(P256)
    for at in (3, 20, 60, 100, 300, len(package) - 1):
        yield bytes(2) + package[:at] + bytes([package[at] ^ 1]) + package[at + 1 :]
    for wrapped in (bytes(8), bytes(79), bytes(80)):
        yield bytes((P256, 1, 0)) + chunk(wrapped)
    for which, value in enumerate((*(value for _, value in known.header), known.key, known.certificate)):
        for other in (value, value[:-1], value + value[-1:], value[:-1] + b"\xff"):
            yield bytes((P256, 1, 1, which)) + chunk(other)


@contextmanager
def open_sim() -> Iterator[Run]:
    """An input is: the SIM's options, whether it has its package, then steps: what kind, and its bytes."""
    states = {options: State(personalisation(P256, channel_i=options)) for options in OPTIONS}
    package = octets(CASES[P256], "package")
    delivered = {options: _delivered(state, package) for options, state in states.items()}

    def run(data: bytes) -> None:
        choices = Choices(data)
        options = OPTIONS[choices.number() % len(OPTIONS)]
        sim = VirtualSim(Memory((delivered if choices.number() % 2 else states)[options]))
        host: Host | None = None
        for _ in range(24):
            if not choices:
                break
            before, kind, value = sim.state, choices.number() % 7, choices.octets(choices.number())
            if kind == 0:
                sim.reset()
            elif kind == 1:
                host = _open(sim, value)
            elif kind == 2 and host is not None and len(value) >= 4:
                transmit(sim, host.wrap(value[:4].hex(), value[4:220]))
            elif kind == 6 and host is not None and len(value) >= 4:
                require_refused(sim, host.wrap(value[:4].hex(), value[4:220]))
            elif kind == 3:
                aid = (sim.state.sim.ssd_aid, sim.state.sim.applet_aid)[len(value) % 2]
                transmit(sim, bytes((0, 0xA4, 4, 0, len(aid))) + aid)
            elif kind == 4:
                transmit(sim, (b"\x00\x20\x00\x80\x04" + PIN, set_pin(value[1:]))[len(value) % 2])
            else:
                transmit(sim, value)
            require_lawful(before, sim.state)

    yield run


def transmit(sim: VirtualSim, apdu: bytes) -> bytes:
    """The response, which ends with a status word of this SIM and has no data unless it is 9000."""
    answer = sim.transmit(apdu)
    status = int.from_bytes(answer[-2:])
    assert len(answer) >= 2
    assert status in set(Status) or status & 0xFFF0 == Status.TRIES_LEFT, f"{status:04X}"
    assert len(answer) <= 258
    assert status == Status.OK or len(answer) == 2
    return answer


def require_refused(sim: VirtualSim, wrapped: bytes) -> None:
    """A command of the channel with a bit of its C-MAC changed; Le may stand behind it."""
    mac_ends = 5 + wrapped[4]
    before = sim.state
    spoilt = wrapped[: mac_ends - 1] + bytes([wrapped[mac_ends - 1] ^ 1]) + wrapped[mac_ends:]
    assert transmit(sim, spoilt) != Status.OK.to_bytes(2)
    assert sim.state is before


def require_lawful(before: State, after: State) -> None:
    """A SIM's memory moves one way: counters up, tries to their limits, and a package that was never sent is absent."""
    assert after.sim is before.sim
    assert after.sequence_counter in {before.sequence_counter, before.sequence_counter + 1}
    assert after.package_counter >= before.package_counter
    assert 0 <= after.pin_tries <= 3
    assert 0 <= after.code_tries <= 5
    assert after.installed is before.installed or after.package_counter > before.package_counter


def set_pin(code: bytes) -> bytes:
    code = code[:249] or CODE
    return bytes((0, 0x24, 0, 0x80, len(code) + 5, len(code))) + code + PIN


def _delivered(state: State, package: bytes) -> State:
    sim = VirtualSim(Memory(state))
    sim.install(package)
    return sim.state


def _open(sim: VirtualSim, value: bytes) -> Host:
    """A host that has opened a channel, or has tried at a level that the SIM does not have."""
    host = Host(sim.transmit, sim.state.sim, LEVELS[value[0] % len(LEVELS)] if value else 0x03)
    host.open()
    return host


def scripts() -> Iterator[bytes]:
    """The delivery of the published package, step by step and as one play; a phone's commands; each channel level."""
    package = octets(CASES[P256], "package")
    sim = VirtualSim(Memory(State(personalisation(P256))))

    def steps(*apdus: bytes) -> bytes:
        return b"".join(bytes((5, len(apdu))) + apdu for apdu in apdus if len(apdu) <= 255)

    aid = sim.state.sim.applet_aid
    install = b"\x80\xe6\x20\x00" + bytes((0, 0, len(aid))) + aid + bytes(3)
    yield bytes((0, 0)) + steps(*delivery_script(sim, package))
    for options in range(len(OPTIONS)):
        for level in range(len(LEVELS)):
            blocks = [package[start : start + 200] for start in range(0, len(package), 200)]
            stores = (
                bytes((0x80, 0xE2, 0x30 | (0x80 if number == len(blocks) - 1 else 0), number)) + block
                for number, block in enumerate(blocks)
            )
            wrapped = b"".join(bytes((2, len(plain))) + plain for plain in (install, *stores))
            yield bytes((options, 0, 1, 1, level)) + wrapped
            yield bytes((options, 0, 1, 1, level, 6, len(install))) + install
    yield bytes((0, 1, 3, 1, 0, 5, 7)) + PHONE[0] + bytes((4, 1, 0)) + steps(*PHONE)
    yield bytes((0, 1, 3, 1, 0)) + steps(SELECT_KEY, SIGN) + bytes((5, 7)) + PHONE[0] + bytes((4, 0)) + steps(*PHONE)


OPENING = Target(open_opening, openings, 4000)
SIM = Target(open_sim, scripts, 2000)
