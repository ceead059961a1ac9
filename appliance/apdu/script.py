"""Delivery scripts: the commands that carry one SIM package into one SIM (card-side.md, "Delivery script").

A script is a function of its inputs, so it can be rendered offline, for a sequence counter that the SIM will reach.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from appliance.apdu.scp03 import Mode, SecureChannel, SecurityLevel, SessionKeys, capacity
from appliance.domain.package import KeyType
from appliance.domain.receipt import RECEIPT_LENGTHS
from appliance.domain.sim import validate_aid, validate_kvn
from appliance.errors import ApplianceError, Reason

DEFAULT_LEVEL: Final = SecurityLevel.C_MAC | SecurityLevel.C_ENC
MAX_BLOCKS: Final = 256
"""P2 of STORE DATA counts from 00 to FF."""
RECEIPT_PART: Final = 128
"""Bytes of the receipt in one GET DATA, DF21 onwards."""
MAX_COMMANDS: Final = MAX_BLOCKS + 8
"""Four before the blocks, a SELECT and at most three GET DATA behind them."""
SW_SUCCESS: Final = 0x9000

_BER_TLV_ENCRYPTED: Final = 0x30
"""P1 of STORE DATA: b7b6 = 01 the package brings its own encryption, b5b4 = 10 BER-TLV (GPC 2.3.1, 11.11)."""
_LAST_BLOCK: Final = 0x80
_RESPONSE_EXPECTED: Final = 0x01
_LE_ALL: Final = b"\x00"


@dataclass(frozen=True)
class Command:
    """One command APDU, the status words that let the script go on, and what it is for."""

    apdu: bytes
    purpose: str
    expected_sw: tuple[int, ...] = (SW_SUCCESS,)


@dataclass(frozen=True)
class Part:
    """The commands for the application `aid`. The first one selects it; `addressed` leaves that one out."""

    aid: bytes
    commands: tuple[Command, ...]

    @property
    def addressed(self) -> tuple[Command, ...]:
        """The commands where the carrier selects the application by its AID or TAR."""
        return self.commands[1:]


@dataclass(frozen=True)
class Script:
    """What the security domain gets, then what the applet gets; any other status word ends the delivery."""

    security_domain: Part
    applet: Part

    @property
    def parts(self) -> tuple[Part, Part]:
        """In the order of sending."""
        return self.security_domain, self.applet

    @property
    def commands(self) -> tuple[Command, ...]:
        """In the order of sending."""
        return self.security_domain.commands + self.applet.commands

    def text(self) -> str:
        """One command a line, as hex bytes with spaces: `scriptor` (pcsc-tools) plays it as it is."""
        return "".join(command.apdu.hex(" ").upper() + "\n" for command in self.commands)


@dataclass(frozen=True)
class Channel:
    """The secure channel that a script opens on the security domain.

    Args:
        ssd_aid: 5..16 bytes, the security domain of the applet.
        kvn: of the channel's key set, 01..7F.
        keys: of the session that the challenges belong to.
        host_challenge: 8 bytes (S16: 16), fresh for each rendering.
        card_challenge: of the same length, the card's for its next sequence counter.
        level: one of `scp03.LEVELS`.
        mode: S8 or S16.
    """

    ssd_aid: bytes
    kvn: int
    keys: SessionKeys = field(repr=False)
    host_challenge: bytes
    card_challenge: bytes
    level: int = DEFAULT_LEVEL
    mode: Mode = Mode.S8


def render(package: bytes, key_type: KeyType, applet_aid: bytes, channel: Channel) -> Script:
    """The script for one package.

    Args:
        package: the whole E0 TLV.
        key_type: of the package's key; it says how many parts the receipt has.
        applet_aid: 5..16 bytes, the applet that is personalised.
        channel: through which the package goes.

    Raises:
        ApplianceError: AID_INVALID, KVN_INVALID, SCP03_INVALID, or FIELD_INVALID for a package that is empty or needs
            more than 256 blocks.
    """
    validate_aid(channel.ssd_aid, "ssd_aid")
    validate_aid(applet_aid, "applet_aid")
    validate_kvn(channel.kvn, "channel_kvn")
    size = capacity(channel.level, channel.mode)
    blocks = [package[start : start + size] for start in range(0, len(package), size)]
    if not 1 <= len(blocks) <= MAX_BLOCKS:
        raise ApplianceError(
            Reason.FIELD_INVALID,
            f"{len(package)} bytes make {len(blocks)} STORE DATA blocks of {size}; 1 to {MAX_BLOCKS} are possible.",
            hint="Deliver one SIM package, which makes a dozen blocks at most.",
            field="package",
            blocks=len(blocks),
        )
    session = SecureChannel(channel.keys, channel.level, channel.mode)
    authenticate = session.external_authenticate(channel.host_challenge, channel.card_challenge)
    wrapped = (
        Command(session.wrap(apdu), purpose) for apdu, purpose in _personalize(blocks, applet_aid, channel.level)
    )
    return Script(
        Part(channel.ssd_aid, (*_open(channel), Command(authenticate, "EXTERNAL AUTHENTICATE"), *wrapped)),
        Part(applet_aid, tuple(_read_receipt(applet_aid, key_type))),
    )


def _open(channel: Channel) -> Iterator[Command]:
    """SELECT (GPC Card Specification 2.3.1, 11.9) and INITIALIZE UPDATE (GPC Amendment D, 7.1.1)."""
    select = bytes((0x00, 0xA4, 0x04, 0x00, len(channel.ssd_aid))) + channel.ssd_aid + _LE_ALL
    yield Command(select, "SELECT SSD")
    update = bytes((0x80, 0x50, channel.kvn, 0x00, len(channel.host_challenge))) + channel.host_challenge + _LE_ALL
    yield Command(update, "INITIALIZE UPDATE")


def _personalize(blocks: list[bytes], applet_aid: bytes, level: int) -> Iterator[tuple[bytes, str]]:
    """INSTALL [for personalization] (GPC Card Specification 2.3.1, 11.5) and STORE DATA (11.11), still in plain."""
    with_response = bool(level & SecurityLevel.R_MAC)
    install = b"\x00\x00" + bytes((len(applet_aid),)) + applet_aid + b"\x00\x00\x00"
    yield bytes((0x80, 0xE6, 0x20, 0x00, len(install))) + install + _LE_ALL, "INSTALL [for personalization]"
    p1 = _BER_TLV_ENCRYPTED | (_RESPONSE_EXPECTED if with_response else 0)
    for number, block in enumerate(blocks):
        last = _LAST_BLOCK if number == len(blocks) - 1 else 0
        store = bytes((0x80, 0xE2, p1 | last, number, len(block))) + block
        yield store + (_LE_ALL if with_response else b""), f"STORE DATA {number + 1}/{len(blocks)}"


def _read_receipt(applet_aid: bytes, key_type: KeyType) -> Iterator[Command]:
    """SELECT, which ends the channel, and GET DATA (card-side.md): the receipt needs no channel around it."""
    yield Command(bytes((0x00, 0xA4, 0x04, 0x0C, len(applet_aid))) + applet_aid, "SELECT applet")
    parts = -(-RECEIPT_LENGTHS[key_type] // RECEIPT_PART)
    for part in range(1, parts + 1):
        yield Command(bytes((0x80, 0xCA, 0xDF, 0x20 + part, 0x00)), f"GET DATA receipt {part}/{parts}")
