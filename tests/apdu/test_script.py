"""Delivery scripts: their commands, what a card reassembles from them, and the text that `scriptor` plays."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB
from cryptography.hazmat.primitives.cmac import CMAC

from appliance.apdu.scp03 import LEVELS, Mode, SessionKeys, host_cryptogram
from appliance.apdu.script import MAX_BLOCKS, MAX_COMMANDS, Channel, Script, render
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason

APPLET = bytes.fromhex("D392F000260100000001")
SSD = bytes.fromhex("A0000001510000FF")
PACKAGE = bytes(number % 251 for number in range(1858))
"""As long as the RSA package of the known answers."""
CHANNEL = Channel(
    ssd_aid=SSD,
    kvn=0x30,
    keys=SessionKeys(bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 48))),
    host_challenge=bytes(range(8)),
    card_challenge=bytes(range(8, 16)),
)
CHANNEL_S16 = replace(CHANNEL, host_challenge=bytes(16), card_challenge=bytes(range(16)), mode=Mode.S16)

every_channel = pytest.mark.parametrize(
    "channel",
    [replace(channel, level=level) for channel in (CHANNEL, CHANNEL_S16) for level in LEVELS],
    ids=lambda channel: f"{channel.mode.name}-{channel.level:02X}",
)


def apdus(script: Script) -> list[bytes]:
    return [command.apdu for command in script.commands]


def received(script: Script, channel: Channel) -> list[bytes]:
    """What the card finds behind EXTERNAL AUTHENTICATE once C-MAC and C-ENC are taken off, Le left out."""
    chain, counter, plain = bytes(16), 0, []
    for apdu in apdus(script):
        if not apdu[0] & 0x04:
            continue
        data, le = apdu[5 : 5 + apdu[4] - channel.mode], apdu[5 + apdu[4] :]
        mac = CMAC(AES(channel.keys.s_mac))
        mac.update(chain + apdu[:5] + data)
        chain = mac.finalize()
        assert apdu[5 + len(data) :] == chain[: channel.mode] + le
        if counter and channel.level & 0x02:
            icv = Cipher(AES(channel.keys.s_enc), ECB()).encryptor().update(counter.to_bytes(16, "big"))  # noqa: S305 - one block
            padded = Cipher(AES(channel.keys.s_enc), CBC(icv)).decryptor().update(data)
            data = padded.rstrip(b"\x00")[:-1]
            assert padded == data + b"\x80" + bytes(-(len(data) + 1) % 16)
        counter += 1
        plain.append(apdu[:4] + data)
    return plain


def test_commands_come_in_the_order_of_the_delivery_script() -> None:
    script = render(PACKAGE, KeyType.RSA_2048, APPLET, CHANNEL)
    assert [command.purpose for command in script.commands] == [
        "SELECT SSD",
        "INITIALIZE UPDATE",
        "EXTERNAL AUTHENTICATE",
        "INSTALL [for personalization]",
        *(f"STORE DATA {number}/8" for number in range(1, 9)),
        "SELECT applet",
        "GET DATA receipt 1/3",
        "GET DATA receipt 2/3",
        "GET DATA receipt 3/3",
    ]
    assert {command.expected_sw for command in script.commands} == {(0x9000,)}


def test_commands_outside_the_channel_are_as_written() -> None:
    script = apdus(render(PACKAGE, KeyType.RSA_2048, APPLET, CHANNEL))
    assert script[0] == bytes.fromhex("00A40400 08 A0000001510000FF 00")
    assert script[1] == bytes.fromhex("80503000 08 0001020304050607 00")
    assert script[-4] == bytes.fromhex("00A4040C 0A D392F000260100000001")
    assert script[-3:] == [bytes.fromhex("80CADF2100"), bytes.fromhex("80CADF2200"), bytes.fromhex("80CADF2300")]


@pytest.mark.parametrize(("key_type", "parts"), [(KeyType.RSA_2048, 3), (KeyType.EC_P256, 1), (KeyType.EC_P384, 1)])
def test_receipt_is_read_in_as_many_parts_as_its_key_type_needs(key_type: KeyType, parts: int) -> None:
    script = render(PACKAGE, key_type, APPLET, CHANNEL)
    assert sum(command.purpose.startswith("GET DATA") for command in script.commands) == parts


@every_channel
def test_card_takes_the_package_out_of_the_script_whole(channel: Channel) -> None:
    authenticate, install, *stores = received(render(PACKAGE, KeyType.RSA_2048, APPLET, channel), channel)
    cryptogram = host_cryptogram(channel.keys.s_mac, channel.host_challenge, channel.card_challenge)
    assert authenticate == bytes((0x84, 0x82, channel.level, 0x00)) + cryptogram
    assert install == bytes.fromhex("84E62000 0000 0A D392F000260100000001 000000")
    more, last = (0x31, 0xB1) if channel.level & 0x10 else (0x30, 0xB0)
    assert [store[:4].hex() for store in stores] == [
        bytes((0x84, 0xE2, last if number == len(stores) - 1 else more, number)).hex() for number in range(len(stores))
    ]
    assert b"".join(store[4:] for store in stores) == PACKAGE


@every_channel
def test_wrapped_commands_carry_le_where_a_response_comes(channel: Channel) -> None:
    commands = render(PACKAGE, KeyType.EC_P256, APPLET, channel).commands
    with_le = {command.purpose.split(" ")[0] for command in commands if len(command.apdu) == 6 + command.apdu[4]}
    assert with_le == {"SELECT", "INITIALIZE", "INSTALL"} | ({"STORE"} if channel.level & 0x10 else set())


@every_channel
def test_no_command_is_longer_than_a_short_apdu(channel: Channel) -> None:
    assert max(len(apdu) for apdu in apdus(render(PACKAGE, KeyType.RSA_2048, APPLET, channel))) <= 5 + 255 + 1


@pytest.mark.parametrize(("channel", "size"), [(CHANNEL, 239), (CHANNEL_S16, 223)])
def test_package_takes_exactly_the_blocks_it_needs(channel: Channel, size: int) -> None:
    for length, blocks in ((1, 1), (size, 1), (size + 1, 2), (MAX_BLOCKS * size, MAX_BLOCKS)):
        script = render(bytes(length), KeyType.EC_P256, APPLET, channel)
        assert sum(command.purpose.startswith("STORE DATA") for command in script.commands) == blocks
    assert apdus(script)[-3][2:4] == b"\xb0\xff"
    assert len(render(bytes(length), KeyType.RSA_2048, APPLET, channel).commands) == MAX_COMMANDS


@pytest.mark.parametrize("length", [0, MAX_BLOCKS * 239 + 1])
def test_package_that_fits_no_script_is_refused(length: int) -> None:
    with pytest.raises(ApplianceError, match=f"{length} bytes make .* 1 to 256 are possible") as refused:
        render(bytes(length), KeyType.EC_P256, APPLET, CHANNEL)
    assert (refused.value.reason, refused.value.field) == (Reason.FIELD_INVALID, "package")


@pytest.mark.parametrize(
    ("applet", "channel", "reason", "field"),
    [
        (bytes(4), CHANNEL, Reason.AID_INVALID, "applet_aid"),
        (APPLET, replace(CHANNEL, ssd_aid=bytes(17)), Reason.AID_INVALID, "ssd_aid"),
        (APPLET, replace(CHANNEL, kvn=0), Reason.KVN_INVALID, "channel_kvn"),
        (APPLET, replace(CHANNEL, level=0x00), Reason.SCP03_INVALID, "security_level"),
        (APPLET, replace(CHANNEL, host_challenge=bytes(16)), Reason.SCP03_INVALID, "host_challenge"),
        (APPLET, replace(CHANNEL, mode=Mode.S16), Reason.SCP03_INVALID, "host_challenge"),
    ],
)
def test_parameter_outside_its_range_is_refused(applet: bytes, channel: Channel, reason: Reason, field: str) -> None:
    with pytest.raises(ApplianceError) as refused:
        render(PACKAGE, KeyType.EC_P256, applet, channel)
    assert (refused.value.reason, refused.value.field) == (reason, field)


def test_same_inputs_give_the_same_script() -> None:
    assert render(PACKAGE, KeyType.RSA_2048, APPLET, CHANNEL) == render(PACKAGE, KeyType.RSA_2048, APPLET, CHANNEL)


def test_text_is_one_command_a_line_as_scriptor_reads_it() -> None:
    script = render(PACKAGE, KeyType.RSA_2048, APPLET, CHANNEL)
    lines = script.text().splitlines()
    assert [bytes.fromhex(line) for line in lines] == apdus(script)
    # Debian's scriptor takes bytes apart at single spaces; a line of another form it would skip, join or send cut.
    assert all(line == " ".join(f"{byte:02X}" for byte in bytes.fromhex(line)) for line in lines)
    assert script.text().endswith("\n")


def test_repr_of_a_channel_shows_no_key() -> None:
    assert "keys" not in repr(CHANNEL)
    assert repr(CHANNEL.keys.s_enc) not in repr(CHANNEL)
