"""A delivery over the secure channel: INSTALL [for personalization], STORE DATA, and the receipt read outside it."""

from dataclasses import replace

import pytest

from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import Memory, State
from appliance.vsim.package import LONGEST_PACKAGE, Reason

from .host import Host, delivery_script, store_data
from .packages import P256, P384, RSA, blank_sim, draft, octets, personalisation

SELECT_APPLET = "00A4040C0AD392F000260100000001"


def opened(card: VirtualSim, level: int = 0x03) -> Host:
    host = Host(card.transmit, card.state.sim, level)
    assert host.open().hex() == "9000"
    return host


def receipt(card: VirtualSim) -> bytes:
    """GET DATA until there is no more."""
    assert card.transmit(bytes.fromhex(SELECT_APPLET)).hex() == "9000"
    answers = [card.transmit(bytes.fromhex(f"80CADF{part}00")) for part in ("21", "22", "23")]
    assert all(answer[-2:].hex() in ("9000", "6a88") for answer in answers)
    return b"".join(answer[:-2] for answer in answers)


@pytest.mark.parametrize("level", [0x01, 0x03, 0x11, 0x13, 0x33])
@pytest.mark.parametrize("i", [0x70, 0x71], ids=["S8", "S16"])
@pytest.mark.parametrize("index", [P256, RSA, P384], ids=["P-256", "RSA-2048", "P-384"])
def test_package_arrives_and_the_receipt_is_read_outside_the_channel(index: int, i: int, level: int) -> None:
    card = VirtualSim(Memory(State(personalisation(index, channel_i=i))))
    assert opened(card, level).personalise(octets(index, "package")) == "9000"
    installed = card.state.installed
    assert installed is not None
    assert installed.certificate == octets(index, "certificate")
    assert receipt(card) == installed.receipt
    assert len(installed.receipt) == {P256: 80, RSA: 272, P384: 112}[index]


def test_receipt_is_there_after_a_reset_and_the_same_each_time() -> None:
    card = blank_sim(P256)
    card.install(octets(P256, "package"))
    first = receipt(card)
    card.reset()
    assert receipt(card) == first
    assert opened(card).personalise(octets(P256, "package")) == "9000"
    assert receipt(card) == first


def test_receipt_before_any_package_is_not_found() -> None:
    card = blank_sim(P256)
    assert receipt(card) == b""
    assert card.transmit(bytes.fromhex("80CADF2400")).hex() == "6a88"
    assert card.transmit(bytes.fromhex("80CA006600")).hex() == "6a88"


def test_same_script_again_is_refused_and_changes_nothing_but_the_counter() -> None:
    card = blank_sim(P256)
    script = delivery_script(card, octets(P256, "package"))
    assert all(card.transmit(apdu)[-2:].hex() == "9000" for apdu in script)
    before = card.state
    statuses = [card.transmit(apdu)[-2:].hex() for apdu in script]
    assert statuses[2] == "6300"
    assert set(statuses[3:-2]) == {"6982"}
    assert card.state == replace(before, sequence_counter=before.sequence_counter + 1)


@pytest.mark.parametrize(("level", "block"), [(0x03, 16), (0x03, 239), (0x01, 247), (0x33, 239)])
def test_blocks_of_any_size_are_joined(level: int, block: int) -> None:
    card = blank_sim(P256)
    assert opened(card, level).personalise(octets(P256, "package"), block) == "9000"
    assert card.state.installed is not None


def test_more_blocks_than_p2_can_number_are_refused() -> None:
    card = blank_sim(P256)
    host = opened(card)
    aid = card.state.sim.applet_aid
    assert host.send("80E62000", bytes([0, 0, len(aid)]) + aid + bytes(3))[1] == "9000"
    for number in range(256):
        assert host.send(f"80E230{number:02X}", b"\x00")[1] == "9000"
    assert host.send("80E23000", b"\x00")[1] == "6a86"


@pytest.mark.parametrize(
    "heads",
    [
        ["80E23001"],  # does not begin with block 00
        ["80E23000", "80E23000"],  # a block twice
        ["80E23000", "80E23002"],  # a block left out
        ["80E22000"],  # encryption by the session's DEK
        ["80E23800"],  # reserved bits
        ["80E21000"],  # DGI structure
    ],
)
def test_store_data_with_wrong_parameters_drops_what_was_assembled(heads: list[str]) -> None:
    card = blank_sim(P256)
    host = opened(card)
    aid = card.state.sim.applet_aid
    assert host.send("80E62000", bytes([0, 0, len(aid)]) + aid + bytes(3))[1] == "9000"
    statuses = [host.send(head, octets(P256, "package")[:100])[1] for head in heads]
    assert statuses[-1] == "6a86"
    assert host.send("80E2B000", octets(P256, "package")[:200])[1] == "6985"
    assert host.personalise(octets(P256, "package")) == "9000"


def test_store_data_needs_install_for_personalization() -> None:
    card = blank_sim(P256)
    assert opened(card).send("80E2B000", b"\xe0\x00")[1] == "6985"


@pytest.mark.parametrize(
    ("head", "data", "status"),
    [
        ("80E62000", "00000AD392F000260100000002000000", "6a88"),  # another application
        ("80E62000", "00000AD392F0002601000000010000", "6a80"),
        ("80E62000", "000009D392F000260100000001000000", "6a80"),
        ("80E62000", "01000AD392F000260100000001000000", "6a80"),
        ("80E62000", "00", "6a80"),
        ("80E60400", "00000AD392F000260100000001000000", "6a86"),  # [for install]
    ],
)
def test_install_of_another_kind_is_refused(head: str, data: str, status: str) -> None:
    card = blank_sim(P256)
    host = opened(card)
    assert host.send("80E62000", bytes.fromhex("00000AD392F000260100000001000000"))[1] == "9000"
    assert host.send(head, bytes.fromhex(data))[1] == status
    assert host.send("80E2B000", b"\xe0\x00")[1] == "6985"


def test_more_data_than_any_package_is_refused_and_dropped() -> None:
    card = blank_sim(P256)
    host = opened(card)
    assert host.personalise(bytes(LONGEST_PACKAGE), 239) == "6a80"
    assert host.personalise(bytes(LONGEST_PACKAGE + 1), 239) == "6a84"
    assert host.personalise(octets(P256, "package")) == "9000"


def test_what_is_assembled_ends_with_the_session() -> None:
    card = blank_sim(P256)
    host = opened(card)
    package = octets(P256, "package")
    aid = card.state.sim.applet_aid
    host.send("80E62000", bytes([0, 0, len(aid)]) + aid + bytes(3))
    head, piece = next(store_data(package, 200, False))
    assert host.send(head, piece)[1] == "9000"
    again = opened(card)
    assert again.send("80E2B001", package[200:400])[1] == "6985"
    assert card.state.installed is None


def test_session_goes_on_after_a_refused_package() -> None:
    card = blank_sim(P256)
    host = opened(card)
    sim = card.state.sim
    assert host.personalise(draft(P256).with_field(0x80, b"\x02").sealed(sim)) == "6a81"
    assert card.refusal is not None
    assert card.refusal.reason is Reason.SUITE
    assert card.state.installed is None
    assert host.personalise(octets(P256, "package")) == "9000"
    assert card.refusal is None


def test_new_package_replaces_the_old_and_asks_for_a_new_pin() -> None:
    card = blank_sim(P256)
    card.install(octets(P256, "package"))
    sim = VirtualSim(Memory(replace(card.state, pin_check=bytes(16), pin_tries=1, code_tries=2)))
    counter = sim.state.package_counter + 1
    assert opened(sim).personalise(draft(P256).at(counter).sealed(sim.state.sim)) == "9000"
    assert (sim.state.pin_check, sim.state.pin_tries, sim.state.code_tries) == (None, 3, 5)
    assert sim.state.package_counter == counter
