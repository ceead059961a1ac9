"""Delivery scripts, rendered offline, in the virtual SIM: two programs written apart that must agree on every byte."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.apdu.scp03 import (
    LEVELS,
    Mode,
    SecureChannel,
    capacity,
    card_challenge,
    derive_session_keys,
    kdf3,
)
from appliance.apdu.script import Channel, Script, render
from appliance.domain import keyset
from appliance.domain.derivation import CHANNEL_ENC, CHANNEL_MAC, K_RCPT
from appliance.domain.keyset import LEVEL_NEEDS
from appliance.domain.package import SimPackage
from appliance.domain.receipt import receipt_message, split_receipt, verify_signature
from appliance.domain.setting import SettingError
from appliance.vsim import script as vsim_script
from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import Memory, State
from appliance.vsim.package import Reason
from appliance.vsim.personalisation import Masters
from appliance.vsim.phone import PhoneApp
from tests.vsim.packages import KM_CHAN, P256, P384, RSA, Draft, case, draft, octets, personalisation

PIN = b"4711"
OK = "9000"
NAMES = {P256: "P-256", RSA: "RSA-2048", P384: "P-384"}

every_case = pytest.mark.parametrize("index", NAMES, ids=NAMES.values())
every_level = pytest.mark.parametrize("level", LEVELS, ids=lambda level: f"{level:02X}")


@dataclass(frozen=True)
class Setting:
    """A SIM of the known answers and the parameters of its channel; what the host knows of both."""

    index: int
    key_bits: int = 128
    mode: Mode = Mode.S8
    level: int = 0x03
    protection: int = 0x70

    @property
    def i(self) -> int:
        """The SCP03 parameter: S8 or S16, and the protection that responses can have."""
        return self.protection | (self.mode is Mode.S16)

    def sim(self) -> VirtualSim:
        """The SIM, fresh from its issuer."""
        return VirtualSim(Memory(State(personalisation(self.index, channel_key_bits=self.key_bits, channel_i=self.i))))

    def channel(self, counter: int) -> Channel:
        """The channel that the SIM opens with this sequence counter, from KM-CHAN and the ICCID alone."""
        named = personalisation(self.index)
        k_enc, k_mac = (kdf3(KM_CHAN, constant, named.iccid, self.key_bits) for constant in (CHANNEL_ENC, CHANNEL_MAC))
        challenge = card_challenge(k_enc, counter, named.ssd_aid, self.mode)
        host_challenge = bytes(range(self.mode))
        return Channel(
            ssd_aid=named.ssd_aid,
            kvn=named.channel.kvn,
            keys=derive_session_keys(k_enc, k_mac, host_challenge, challenge),
            host_challenge=host_challenge,
            card_challenge=challenge,
            level=self.level,
            mode=self.mode,
        )

    def script(self, counter: int = 1, package: bytes | None = None) -> Script:
        """The delivery script for a package, that of the known answers by default."""
        package = package or octets(self.index, "package")
        header = SimPackage.decode(package).header
        return render(package, header.key_type, personalisation(self.index).applet_aid, self.channel(counter))


every_setting = pytest.mark.parametrize(
    "setting",
    [
        Setting(index, key_bits, mode, level)
        for index in NAMES
        for key_bits in (128, 192, 256)
        for mode in Mode
        for level in LEVELS
    ],
    ids=lambda setting: f"{NAMES[setting.index]}-{setting.key_bits}-{setting.mode.name}-{setting.level:02X}",
)


def apdus(script: Script) -> list[bytes]:
    return [command.apdu for command in script.commands]


def play(sim: VirtualSim, commands: Sequence[bytes]) -> list[bytes]:
    """All the answers. This player goes on whatever the SIM says, as `scriptor` does."""
    return [sim.transmit(apdu) for apdu in commands]


def refusal(answers: Sequence[bytes]) -> tuple[int, str] | None:
    """Position and status word of the first command that was refused."""
    statuses = (answer[-2:].hex() for answer in answers)
    return next(((at, status) for at, status in enumerate(statuses) if status != OK), None)


def receipt_of(script: Script, answers: Sequence[bytes]) -> bytes:
    """What GET DATA answered, joined."""
    pairs = zip(script.commands, answers, strict=True)
    return b"".join(answer[:-2] for command, answer in pairs if command.purpose.startswith("GET DATA"))


def used(setting: Setting) -> VirtualSim:
    """A SIM that holds its package and has a PIN: there is something to leave alone."""
    sim = setting.sim()
    assert refusal(play(sim, apdus(setting.script()))) is None
    PhoneApp(sim).set_pin(case(setting.index)["activation_code"].encode(), PIN)
    return sim


def plain_commands(setting: Setting, package: bytes) -> list[bytes]:
    """INSTALL [for personalization] and STORE DATA as card-side.md writes them, before the channel protects them."""
    aid = personalisation(setting.index).applet_aid
    install = b"\x00\x00" + bytes([len(aid)]) + aid + bytes(3)
    commands = [b"\x80\xe6\x20\x00" + bytes([len(install)]) + install + b"\x00"]
    size = capacity(setting.level, setting.mode)
    blocks = [package[start : start + size] for start in range(0, len(package), size)]
    more, last, le = (0x31, 0xB1, b"\x00") if setting.level & 0x10 else (0x30, 0xB0, b"")
    for number, block in enumerate(blocks):
        p1 = last if number == len(blocks) - 1 else more
        commands.append(bytes([0x80, 0xE2, p1, number, len(block)]) + block + le)
    return commands


@every_setting
def test_script_is_accepted_to_the_last_command_and_brings_back_the_receipt(setting: Setting) -> None:
    sim, script = setting.sim(), setting.script()
    answers = play(sim, apdus(script))
    assert refusal(answers) is None
    package = SimPackage.decode(octets(setting.index, "package"))
    assert sim.state.installed is not None
    assert sim.state.installed.certificate == package.certificate
    receipt = receipt_of(script, answers)
    assert receipt == sim.state.installed.receipt
    message = receipt_message(package.header.digest(), package.certificate)
    signature, mac = split_receipt(receipt, package.header.key_type)
    key = x509.load_der_x509_certificate(package.certificate).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    verify_signature(spki, package.header.key_type, message, signature)
    expected = CMAC(AES(kdf3(octets(setting.index, "km_bind"), K_RCPT, package.header.iccid, 256)))
    expected.update(message)
    expected.verify(mac)


@every_setting
def test_every_answer_of_the_channel_is_verified_and_read_by_the_host(setting: Setting) -> None:
    script, channel = setting.script(), setting.channel(1)
    answers = play(setting.sim(), apdus(script))
    session = SecureChannel(channel.keys, channel.level, channel.mode)
    assert script.commands[2].apdu == session.external_authenticate(channel.host_challenge, channel.card_challenge)
    plain = plain_commands(setting, octets(setting.index, "package"))
    for number, command in enumerate(plain, 3):
        # The host's own session moves along with the script's: the same bytes, so the same chain.
        assert session.wrap(command) == script.commands[number].apdu
        protection = channel.mode if channel.level & 0x10 else 0
        expected = b"\x00" if number == 3 else b""
        if expected and channel.level & 0x20:
            protection += 15  # one block in place of one byte
        assert len(answers[number]) == len(expected) + protection + 2
        assert session.unwrap(answers[number]) == expected + b"\x90\x00"


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: f"{level:02X}")
@pytest.mark.parametrize("protection", [0x10, 0x30, 0x70], ids=lambda i: f"i{i:02X}")
def test_a_key_set_declares_exactly_the_levels_that_its_sims_accept(mode: Mode, level: int, protection: int) -> None:
    setting = Setting(P256, mode=mode, level=level, protection=protection)
    answers = play(setting.sim(), apdus(setting.script()))
    if protection & LEVEL_NEEDS[level] == LEVEL_NEEDS[level]:
        keyset.Channel(0x30, i=f"{setting.i:02X}", security_level=f"{level:02X}")
        assert refusal(answers) is None
    else:
        with pytest.raises(SettingError, match="response protection"):
            keyset.Channel(0x30, i=f"{setting.i:02X}", security_level=f"{level:02X}")
        assert refusal(answers) == (2, "6a86")


@every_case
@pytest.mark.parametrize("mode", Mode)
@every_level
def test_each_block_but_the_last_holds_as_much_as_fits(index: int, mode: Mode, level: int) -> None:
    setting = Setting(index, mode=mode, level=level)
    package = octets(index, "package")
    most = {(Mode.S8, 0): 247, (Mode.S16, 0): 239, (Mode.S8, 2): 239, (Mode.S16, 2): 223}[mode, level & 0x02]
    stores = [command for command in setting.script().commands if command.purpose.startswith("STORE DATA")]
    assert len(stores) == -(-len(package) // most)
    assert all(command.apdu[4] == len(command.apdu[5:]) - (level >> 4 & 1) for command in stores), "Le 00 with R-MAC"
    # One byte of padding at least under C-ENC, up to the next block; then the C-MAC.
    longest = most // 16 * 16 + 16 if level & 0x02 else most
    assert {command.apdu[4] for command in stores[:-1]} <= {longest + mode}


def test_text_of_a_script_is_read_back_as_the_same_commands() -> None:
    script = Setting(RSA).script()
    assert [step.apdu for step in vsim_script.read(script.text().splitlines())] == apdus(script)


@every_case
@every_level
def test_same_script_again_is_refused_at_external_authenticate(index: int, level: int) -> None:
    setting = Setting(index, level=level)
    sim, script = used(setting), setting.script()
    before = sim.state
    answers = play(sim, apdus(script))
    assert script.commands[2].purpose == "EXTERNAL AUTHENTICATE"
    assert refusal(answers) == (2, "6300")
    assert {answer.hex() for answer in answers[3 : 3 + len(plain_commands(setting, octets(index, "package")))]} == {
        "6982"
    }
    assert sim.state == replace(before, sequence_counter=2)


@every_case
@every_level
def test_same_package_under_the_next_counter_changes_nothing_and_its_receipt_is_read_again(
    index: int, level: int
) -> None:
    setting = Setting(index, level=level)
    sim, first = setting.sim(), setting.script()
    receipt = receipt_of(first, play(sim, apdus(first)))
    PhoneApp(sim).set_pin(case(index)["activation_code"].encode(), PIN)
    before, again = sim.state, setting.script(counter=2)
    answers = play(sim, apdus(again))
    assert refusal(answers) is None
    assert sim.state == replace(before, sequence_counter=2)
    assert receipt_of(again, answers) == receipt == PhoneApp(sim).receipt()


def test_foreign_initialize_update_voids_a_script_and_a_later_one_of_the_window_plays() -> None:
    setting = Setting(P256)
    sim, voided, later = setting.sim(), setting.script(1), setting.script(3)
    play(sim, apdus(voided)[:2])  # uses up counter 1
    assert refusal(play(sim, apdus(voided))) == (2, "6300")  # uses up counter 2
    assert sim.state.installed is None
    assert refusal(play(sim, apdus(later))) is None


def newer(index: int) -> Draft:
    return draft(index).at(int.from_bytes(draft(index).field(0x84)) + 1)


def for_another_sim(index: int) -> bytes:
    """As the HSM seals it for another SIM of the same issuer."""
    masters = Masters(octets(index, "km_bind"), KM_CHAN, draft(index).field(0x83)[0])
    other = masters.personalise(octets((index + 1) % len(NAMES), "kdd"))
    return newer(index).with_field(0x81, other.iccid).sealed(other)


def with_an_older_counter(index: int) -> bytes:
    return draft(index).at(int.from_bytes(draft(index).field(0x84)) - 1).sealed(personalisation(index))


def with_the_last_counter_and_another_code(index: int) -> bytes:
    return draft(index).with_field(0x87, bytes(8)).sealed(personalisation(index))


def with_a_changed_certificate(index: int) -> bytes:
    package = SimPackage.decode(newer(index).sealed(personalisation(index)))
    changed = package.certificate[:-1] + bytes([package.certificate[-1] ^ 1])
    return replace(package, certificate=changed).encode()


@every_case
def test_newer_package_is_accepted_over_the_last_one(index: int) -> None:
    """What the refused packages of the next test differ from."""
    setting = Setting(index)
    sim = used(setting)
    assert refusal(play(sim, apdus(setting.script(2, newer(index).sealed(personalisation(index)))))) is None
    assert sim.state.package_counter == int.from_bytes(newer(index).field(0x84))


@every_case
@pytest.mark.parametrize(
    ("package", "reason", "status"),
    [
        (for_another_sim, Reason.ICCID, "6985"),
        (with_an_older_counter, Reason.COUNTER, "6985"),
        (with_the_last_counter_and_another_code, Reason.COUNTER, "6985"),
        (with_a_changed_certificate, Reason.MAC, "6988"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_package_that_is_not_for_this_sim_now_is_refused_and_changes_nothing(
    index: int, package: Callable[[int], bytes], reason: Reason, status: str
) -> None:
    setting = Setting(index)
    sim = used(setting)
    before, script = sim.state, setting.script(2, package(index))
    at, refused = refusal(play(sim, apdus(script))) or (0, OK)
    last = max(at for at, command in enumerate(script.commands) if command.purpose.startswith("STORE DATA"))
    assert (at, refused) == (last, status)
    assert sim.refusal is not None
    assert sim.refusal.reason is reason
    assert sim.state == replace(before, sequence_counter=2)


def whole_script(level: int) -> tuple[Setting, list[bytes], int]:
    """A script of many blocks and the position of its last STORE DATA. INITIALIZE UPDATE stands at 1."""
    setting = Setting(RSA, level=level)
    return setting, apdus(setting.script()), 2 + len(plain_commands(setting, octets(RSA, "package")))


@every_level
def test_script_without_one_of_its_commands_is_refused_at_the_next(level: int) -> None:
    setting, commands, last = whole_script(level)
    for dropped in range(last + 1):
        sim = setting.sim()
        at, status = refusal(play(sim, commands[:dropped] + commands[dropped + 1 :])) or (0, OK)
        if dropped == last:  # SELECT applet is always possible, but there is no receipt
            assert (at, status) == (last + 1, "6a88")
        else:
            assert (at, status) == (dropped, "6982" if dropped else "6e00")
        assert sim.state.installed is None


@every_level
def test_script_with_a_doubled_command_is_refused_there(level: int) -> None:
    setting, commands, last = whole_script(level)
    for doubled in range(1, last + 1):
        sim = setting.sim()
        # INITIALIZE UPDATE begins another session instead, which EXTERNAL AUTHENTICATE does not fit.
        expected = (3, "6300") if doubled == 1 else (doubled + 1, "6982")
        assert refusal(play(sim, commands[: doubled + 1] + commands[doubled:])) == expected
        assert (sim.state.installed is not None) == (doubled == last)


@every_level
def test_script_with_two_commands_swapped_is_refused_there(level: int) -> None:
    setting, commands, last = whole_script(level)
    for first in range(last + 1):
        sim = setting.sim()
        swapped = [*commands[:first], commands[first + 1], commands[first], *commands[first + 2 :]]
        at, status = refusal(play(sim, swapped)) or (0, OK)
        # Before SELECT SSD and behind SELECT applet, there is nobody to take the command.
        expected = {0: (0, "6e00"), last: (last + 1, "6e00")}.get(first, (first, "6982"))
        assert (at, status) == expected
        assert sim.state.installed is None
