"""Command templates of remote management, executed by the virtual SIM."""

import pytest

from appliance.vsim import remote
from appliance.vsim.card import VirtualSim
from appliance.vsim.personalisation import DEFAULT_SSD_AID, JPKI_AID
from tests.vsim.packages import P256, blank_sim, octets, tlv

SELECT_PIN, TRIES = bytes.fromhex("00A4020C020018"), bytes.fromhex("00200080")
RECEIPT = bytes.fromhex("80CADF2100")


@pytest.fixture
def sim() -> VirtualSim:
    """A SIM that holds its package."""
    made = blank_sim(P256)
    made.install(octets(P256, "package"))
    return made


def commands(*apdus: bytes) -> bytes:
    return b"".join(tlv(0x22, apdu) for apdu in apdus)


def test_every_command_is_answered_in_a_template_of_the_same_coding(sim: VirtualSim) -> None:
    asked = commands(SELECT_PIN, RECEIPT)
    assert sim.state.installed is not None
    answers = tlv(0x23, b"\x90\x00") + tlv(0x23, sim.state.installed.receipt + b"\x90\x00")
    assert remote.execute(sim, JPKI_AID, tlv(0xAA, asked)) == tlv(0xAB, b"\x80\x01\x02" + answers)
    assert remote.execute(sim, JPKI_AID, b"\xae\x80" + asked + b"\x00\x00") == b"\xaf\x80" + answers + b"\x00\x00"


def test_execution_ends_with_the_first_error_but_not_with_a_warning(sim: VirtualSim) -> None:
    asked = commands(SELECT_PIN, TRIES, b"\x00\xff\x00\x00", RECEIPT)
    answers = bytes.fromhex("2302 9000 2302 63C0 2302 6D00")
    assert remote.execute(sim, JPKI_AID, tlv(0xAA, asked)) == tlv(0xAB, b"\x80\x01\x03" + answers)


def test_commands_go_to_the_application_that_is_addressed(sim: VirtualSim) -> None:
    assert remote.execute(sim, DEFAULT_SSD_AID, tlv(0xAA, commands(RECEIPT))) == bytes.fromhex("AB 07 800101 2302 6D00")
    with pytest.raises(ValueError, match="A0000000030000"):
        remote.execute(sim, bytes.fromhex("A0000000030000"), tlv(0xAA, commands(RECEIPT)))


def test_number_of_many_executed_commands_takes_two_bytes(sim: VirtualSim) -> None:
    answers = tlv(0x23, b"\x63\xc0") * 256
    asked = tlv(0xAA, commands(SELECT_PIN, *[TRIES] * 256))
    assert remote.execute(sim, JPKI_AID, asked) == tlv(0xAB, b"\x80\x02\x01\x01" + bytes.fromhex("23029000") + answers)


@pytest.mark.parametrize(
    ("behind", "error"), [(tlv(0x81, b"\x81"), "01"), (b"\x22\x05\x00", "02"), (b"\x22", "02"), (b"\x22\x80", "02")]
)
def test_bad_format_is_reported_behind_the_answers_so_far(sim: VirtualSim, behind: bytes, error: str) -> None:
    answer = remote.execute(sim, JPKI_AID, tlv(0xAA, commands(SELECT_PIN) + behind))
    assert answer == bytes.fromhex("AB 0A 800101 2302 9000 9001" + error)


@pytest.mark.parametrize("template", [b"", b"\xaa", b"\xaa\x02\x22", b"\xab\x00", b"\xae\x80\x00", b"\xaa\x00\x00"])
def test_what_is_no_template_is_not_executed(sim: VirtualSim, template: bytes) -> None:
    with pytest.raises(ValueError, match=r"truncated|neither|indefinite"):
        remote.execute(sim, JPKI_AID, template)
