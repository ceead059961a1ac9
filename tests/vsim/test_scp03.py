"""The secure channel against recorded sessions (vectors/scp03.json), and what ends a session."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.vsim import scp03
from appliance.vsim.apdu import CardError, Command
from appliance.vsim.card import VirtualSim
from appliance.vsim.kdf import scp03_kdf
from appliance.vsim.memory import Memory, State
from appliance.vsim.personalisation import ChannelKeys, Personalisation
from appliance.vsim.scp03 import Session

from .host import Host
from .packages import P256, personalisation

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "scp03.json").read_text())
CARD_CHALLENGE = 0x02
"""Constant of its derivation (GPC Amendment D, 4.1.5)."""
by_name = pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])


def static_keys(vector: dict[str, Any]) -> tuple[ChannelKeys, int]:
    """The card's keys, and the sequence counter of its session."""
    if response := vector.get("init_upd_rsp"):
        data = bytes.fromhex(response)
        kdd, kvn, i, counter = data[:10], data[10], data[12], int.from_bytes(data[-3:])
    else:
        kdd, kvn, i, counter = bytes(10), 0x30, 0x71, int(vector["sequence_counter"], 16)
    k_enc, k_mac, k_dek = (
        bytes.fromhex(vector[name] or "") for name in ("k_enc", "k_mac", "k_dek")
    )  # one set has no DEK
    return ChannelKeys(kvn, i, kdd, k_enc, k_mac, k_dek), counter


def host_challenge(vector: dict[str, Any]) -> bytes:
    if command := vector.get("init_upd_cmd"):
        return bytes.fromhex(command)[5:-1]
    return bytes.fromhex(vector["host_challenge"])


@pytest.fixture
def ssd_aid(vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Of the session's security domain; where it is not known, the card draws the recorded challenge in any."""
    if vector["aid"]:
        return bytes.fromhex(vector["aid"])
    recorded = bytes.fromhex(vector["init_upd_rsp"])[13:29]

    def derive(key: bytes, constant: int, context: bytes, bits: int) -> bytes:
        return recorded if constant == CARD_CHALLENGE else scp03_kdf(key, constant, context, bits)

    monkeypatch.setattr(scp03, "scp03_kdf", derive)
    return personalisation(P256).ssd_aid


@by_name
def test_published_session_runs_on_this_card(vector: dict[str, Any], ssd_aid: bytes) -> None:
    keys, counter = static_keys(vector)
    session = Session(keys, ssd_aid, counter, host_challenge(vector))
    if "init_upd_rsp" in vector:
        assert session.initialize_update_response.hex() == vector["init_upd_rsp"]
    else:
        expected = vector["card_challenge"] + vector["card_cryptogram"] + vector["sequence_counter"]
        assert session.initialize_update_response[13:].hex() == expected
    session.authenticate(Command.parse(bytes.fromhex(vector["ext_auth_cmd"])))
    assert session.level == int(vector["security_level"], 16)
    for exchange in vector["wraps"]:
        plain = session.unwrap(Command.parse(bytes.fromhex(exchange["wrapped"])))
        assert plain == Command.parse(bytes.fromhex(exchange["plain"]))
        if exchange.get("response") and vector["security_level"] != "03":
            answer = bytes.fromhex(exchange.get("answer") or clear_answer(vector["name"]))
            assert session.protect(answer).hex() == exchange["response"]


def clear_answer(name: str) -> str:
    """What the traced eUICC answered in clear to its first command: its level 03 session shows it."""
    clear = next(v for v in VECTORS if v["name"] == name[: -len("level11")] + "level03")
    return str(clear["wraps"][0]["response"])


@by_name
def test_published_session_opens_on_a_whole_sim(vector: dict[str, Any], ssd_aid: bytes) -> None:
    keys, counter = static_keys(vector)
    sim = replace(personalisation(P256), channel=keys, ssd_aid=ssd_aid)
    card = VirtualSim(Memory(State(sim, sequence_counter=counter - 1)))
    aid, challenge = sim.ssd_aid, host_challenge(vector)
    card.transmit(b"\x00\xa4\x04\x00" + bytes([len(aid)]) + aid)
    answer = card.transmit(b"\x80\x50\x00\x00" + bytes([len(challenge)]) + challenge + b"\x00")
    assert int.from_bytes(answer[-5:-2]) == counter == card.state.sequence_counter
    assert card.transmit(bytes.fromhex(vector["ext_auth_cmd"])).hex() == "9000"
    for exchange in vector["wraps"]:
        # Not this SIM's commands, but they pass the channel: a wrong MAC would be 6982.
        assert card.transmit(bytes.fromhex(exchange["wrapped"])).hex() in ("6d00", "6985")


def a_card(i: int = 0x70, bits: int = 128) -> tuple[VirtualSim, Personalisation]:
    sim = personalisation(P256, channel_i=i, channel_key_bits=bits)
    return VirtualSim(Memory(State(sim))), sim


@pytest.mark.parametrize("i", [0x10, 0x30, 0x70, 0x11, 0x31, 0x71])
@pytest.mark.parametrize("level", [0x00, 0x01, 0x03, 0x11, 0x13, 0x31, 0x33])
def test_level_is_permitted_as_the_i_parameter_says(i: int, level: int) -> None:
    card, sim = a_card(i)
    possible = {0x01: 0x10, 0x03: 0x10, 0x11: 0x30, 0x13: 0x30, 0x33: 0x70}
    permitted = level in possible and i & possible[level] == possible[level]
    assert Host(card.transmit, sim, level).open().hex() == ("9000" if permitted else "6a86")


@pytest.mark.parametrize("level", [0x01, 0x03, 0x11, 0x13, 0x33])
@pytest.mark.parametrize("i", [0x70, 0x71])
@pytest.mark.parametrize("bits", [128, 192, 256])
def test_protected_commands_and_responses_pass_at_every_level(level: int, i: int, bits: int) -> None:
    card, sim = a_card(i, bits)
    host = Host(card.transmit, sim, level)
    assert host.open().hex() == "9000"
    install = bytes([0, 0, len(sim.applet_aid)]) + sim.applet_aid + bytes(3)
    for _ in range(3):
        data, status = host.send("80E62000", install)
        assert (data, status) == (b"\x00" if level & 0x10 else b"", "9000")
        # An error status carries no R-MAC, and the chain goes on.
        assert host.send("80F22002") == (b"", "6d00")


def test_counter_rises_on_each_initialize_update_also_without_authentication() -> None:
    card, sim = a_card()
    for expected in (1, 2, 3):
        host = Host(card.transmit, sim)
        host.select()
        host.initialize_update()
        assert card.state.sequence_counter == expected


def test_key_set_is_used_up_at_the_last_counter() -> None:
    _, sim = a_card()
    card = VirtualSim(Memory(State(sim, sequence_counter=0xFFFFFE)))
    Host(card.transmit, sim).open()
    Host(card.transmit, sim).select()
    assert card.transmit(bytes.fromhex("80500000080102030405060708")).hex() == "6985"


@pytest.mark.parametrize(
    ("apdu", "status"),
    [
        ("8050310008010203040506070800", "6a88"),  # another key version
        ("8050300108010203040506070800", "6a86"),  # a key identifier
        ("80503000070102030405060700", "6700"),  # a host challenge of 7 bytes
        ("80E6200000", "6982"),  # personalisation in clear
        ("80E2B00001E0", "6982"),
        ("84E2B0000101", "6982"),  # protected, with no session
        ("8482030010" + "00" * 16, "6982"),
        ("80CA00E000", "6d00"),
        ("00B0000000", "6e00"),
    ],
)
def test_security_domain_refuses_what_is_not_a_session(apdu: str, status: str) -> None:
    sim = replace(personalisation(P256), channel=replace(personalisation(P256).channel, kvn=0x30))
    card = VirtualSim(Memory(State(sim)))
    Host(card.transmit, sim).select()
    assert card.transmit(bytes.fromhex(apdu)).hex() == status
    assert card.state == State(sim)


def test_wrong_host_cryptogram_ends_the_session() -> None:
    card, sim = a_card()
    host = Host(card.transmit, sim)
    host.select()
    cryptogram = host.initialize_update()
    assert host.external_authenticate(bytes(8)).hex() == "6300"
    assert host.external_authenticate(cryptogram).hex() == "6982"


def test_wrong_mac_on_external_authenticate_ends_the_session() -> None:
    card, sim = a_card()
    forged: list[bytes] = []

    def flip(apdu: bytes) -> bytes:
        if apdu[1] == 0x82:
            forged.append(apdu)
            apdu = apdu[:-1] + bytes([apdu[-1] ^ 1])
        return card.transmit(apdu)

    assert Host(flip, sim).open().hex() == "6982"
    assert card.transmit(forged[0]).hex() == "6982"


def opened(level: int = 0x03) -> tuple[VirtualSim, Host, bytes]:
    card, sim = a_card()
    host = Host(card.transmit, sim, level)
    assert host.open().hex() == "9000"
    return card, host, bytes([0, 0, len(sim.applet_aid)]) + sim.applet_aid + bytes(3)


@pytest.mark.parametrize("byte", [1, 2, 3, 5, -1])
def test_changed_command_is_refused_and_ends_the_session(byte: int) -> None:
    card, host, install = opened()
    wrapped = bytearray(host.wrap("80E62000", install))
    wrapped[byte] ^= 1
    assert card.transmit(bytes(wrapped)).hex() == "6982"
    assert host.send("80E62000", install)[1] == "6982"


def test_repeated_command_is_refused() -> None:
    card, host, install = opened()
    wrapped = host.wrap("80E62000", install)
    assert card.transmit(wrapped).hex() == "9000"
    assert card.transmit(wrapped).hex() == "6982"


def test_command_with_right_mac_and_wrong_padding_is_refused() -> None:
    keys, sim = personalisation(P256).channel, personalisation(P256)
    session = Session(keys, sim.ssd_aid, 1, bytes(8))
    session.level = 0x03
    host = Host(lambda _: b"", sim, level=0x01)
    host._s_mac = session._s_mac
    with pytest.raises(CardError, match="6982"):
        session.unwrap(Command.parse(host.wrap("80E62000", bytes(16))))


@pytest.mark.parametrize(
    "apdu", ["80E62000", "80500000080102030405060708", "00A4040C0AD392F000260100000001", "00A4000C023F00"]
)
def test_anything_in_clear_ends_the_session(apdu: str) -> None:
    card, host, install = opened()
    card.transmit(bytes.fromhex(apdu))
    assert card.transmit(host.wrap("80E62000", install)).hex() in ("6982", "6e00")


def test_failed_select_leaves_the_session_open() -> None:
    card, host, install = opened()
    assert card.transmit(bytes.fromhex("00A4040005A000000151")).hex() == "6a82"
    assert host.send("80E62000", install)[1] == "9000"


def test_reset_ends_the_session() -> None:
    card, host, install = opened()
    card.reset()
    host.select()
    assert host.send("80E62000", install)[1] == "6982"


def test_second_external_authenticate_is_refused() -> None:
    _, host, _ = opened()
    assert host.external_authenticate(bytes(8)).hex() == "6982"
