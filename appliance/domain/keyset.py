"""SIM issuers and the master keys shared with each: what is declared, and what the state of a key set permits."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from appliance.domain.setting import SettingError, check_setting_name
from appliance.domain.sim import AID_LENGTHS, KVN_RANGE
from appliance.errors import ApplianceError, Reason

DEMO_KCVS: Final = frozenset({"A5AE31", "6204F8"})
"""Check values of the demo's KM-BIND and KM-CHAN. Their components are published, so production refuses them."""

_KCV: Final = re.compile(r"[0-9A-Fa-f]{6}")
_HEX_BYTE: Final = re.compile(r"[0-9A-Fa-f]{2}")

I_S16: Final = 0x01
I_PSEUDO_RANDOM: Final = 0x10
I_R_MAC: Final = 0x20
I_R_ENC: Final = 0x40
_I_VALUES: Final = frozenset(I_PSEUDO_RANDOM | r | s for r in (0, I_R_MAC, I_R_MAC | I_R_ENC) for s in (0, I_S16))
"""Amendment D, 5.1, the `i` parameter. A script made without the card at hand needs the pseudo-random challenge."""
LEVEL_NEEDS: Final = {0x01: 0, 0x03: 0, 0x11: I_R_MAC, 0x13: I_R_MAC, 0x33: I_R_MAC | I_R_ENC}
"""Amendment D, 7.1.2.1: security levels with C-MAC, and the bits of `i` that each needs."""
_KEY_BITS: Final = (128, 192, 256)


class KeySetState(StrEnum):
    """Where a key set stands in its life."""

    PREPARED = "PREPARED"
    ACTIVE = "ACTIVE"
    OLD = "OLD"


class Permits(NamedTuple):
    """What a state permits. Channels and receipts are served in every state: SIMs in the field still need them."""

    seals_by_default: bool
    seals_when_named: bool


PERMITS: Final[dict[KeySetState, Permits]] = {
    KeySetState.PREPARED: Permits(seals_by_default=False, seals_when_named=False),
    KeySetState.ACTIVE: Permits(seals_by_default=True, seals_when_named=True),
    KeySetState.OLD: Permits(seals_by_default=False, seals_when_named=True),
}


@dataclass(frozen=True)
class MasterKey:
    """One AES-256 master key on the token.

    Args:
        label: CKA_LABEL of the key.
        kcv: GlobalPlatform AES check value, 6 hex digits: first 3 bytes of AES(key, 16 x 01).
        kdf_kcv: check value of the derivation, 6 hex digits: first 3 bytes of AES-CMAC(D, 16 x 00) with
            D = KDF3(key, c, 10 x FF, 256), c = 10 for KM-BIND and 01 for KM-CHAN (sim-package.md, Keys).

    Raises:
        SettingError: SETTINGS_INVALID.
    """

    label: str
    kcv: str
    kdf_kcv: str

    def __post_init__(self) -> None:
        if not (self.label.isprintable() and 1 <= len(self.label) <= 64):
            raise SettingError("label", "A key label is empty, too long or not printable.", "Give 1 to 64 characters.")
        for field, value in (("kcv", self.kcv), ("kdf_kcv", self.kdf_kcv)):
            if not _KCV.fullmatch(value):
                raise SettingError(
                    field,
                    f"The check value {value!r} of key {self.label!r} is not 6 hex digits.",
                    "Copy it from the ceremony's transcript.",
                )

    @property
    def kcv_bytes(self) -> bytes:
        """3 bytes."""
        return bytes.fromhex(self.kcv)

    @property
    def is_demo(self) -> bool:
        """Whether anybody can compute this key from published components."""
        return self.kcv.upper() in DEMO_KCVS


@dataclass(frozen=True)
class Channel:
    """The SCP03 key set of the SSD on the SIM, which KM-CHAN derives (card-side.md).

    Args:
        kvn: its key version number on the SIM, 01..7F.
        key_bits: length of the derived keys: 128, 192 or 256.
        i: SCP03 `i` parameter, 2 hex digits.
        security_level: of EXTERNAL AUTHENTICATE, 2 hex digits: 01, 03, 11, 13 or 33.

    Raises:
        SettingError: SETTINGS_INVALID.
    """

    kvn: int
    key_bits: int = 128
    i: str = "70"
    security_level: str = "03"

    def __post_init__(self) -> None:
        _check_kvn(self.kvn)
        if self.key_bits not in _KEY_BITS:
            raise SettingError(
                "key_bits", f"Channel keys of {self.key_bits} bits do not exist.", "Use 128, 192 or 256."
            )
        if not (_HEX_BYTE.fullmatch(self.i) and self.i_byte in _I_VALUES):
            raise SettingError(
                "i",
                f"The SCP03 parameter i {self.i!r} is not one that the appliance can serve.",
                "Use 10, 30 or 70 (S8), 11, 31 or 71 (S16): the card challenge must be pseudo-random.",
            )
        if not (_HEX_BYTE.fullmatch(self.security_level) and self.security_level_byte in LEVEL_NEEDS):
            raise SettingError(
                "security_level",
                f"{self.security_level!r} is not a security level of a delivery script.",
                "Use 01, 03, 11, 13 or 33; 03 unless the SIM issuer says otherwise.",
            )
        needed = LEVEL_NEEDS[self.security_level_byte]
        if self.i_byte & needed != needed:
            raise SettingError(
                "security_level",
                f"Security level {self.security_level} needs response protection that i = {self.i} does not have.",
                "Choose a level without R-MAC and R-ENC, or the i parameter that the SIM really has.",
            )

    @property
    def i_byte(self) -> int:
        """The `i` parameter as a number."""
        return int(self.i, 16)

    @property
    def security_level_byte(self) -> int:
        """The security level as a number."""
        return int(self.security_level, 16)

    @property
    def s16(self) -> bool:
        """Whether challenges, cryptograms and MACs have 16 bytes instead of 8."""
        return bool(self.i_byte & I_S16)

    @property
    def challenge_length(self) -> int:
        """Bytes of a host or card challenge: 8, or 16 with S16."""
        return 16 if self.s16 else 8


@dataclass(frozen=True)
class KeySet:
    """The masters shared with a SIM issuer under one key version number.

    Args:
        kvn: key version number of KM-BIND, 01..7F; field 83 of the package header.
        state: what it may be used for.
        bind: KM-BIND.
        chan: KM-CHAN.
        channel: how the channel keys are used on the SIM.

    Raises:
        SettingError: SETTINGS_INVALID.
    """

    kvn: int
    state: KeySetState
    bind: MasterKey
    chan: MasterKey
    channel: Channel

    def __post_init__(self) -> None:
        _check_kvn(self.kvn)

    @property
    def masters(self) -> tuple[MasterKey, MasterKey]:
        """KM-BIND and KM-CHAN."""
        return self.bind, self.chan


@dataclass(frozen=True)
class SimIssuer:
    """A mobile operator that issues SIMs, with the key sets shared with it.

    Args:
        name: resource name after simIssuers/; equals the name of its settings file.
        applet_aid: AID of the JPKI applet on its SIMs, hex, 5 to 16 bytes.
        ssd_aid: AID of the security domain through which the applet is personalised, hex, 5 to 16 bytes.
        key_sets: at most one of them ACTIVE, no version number, label or key twice.
        demo: made for demonstration; production refuses it.

    Raises:
        SettingError: SETTINGS_INVALID.
    """

    name: str
    applet_aid: str
    ssd_aid: str
    key_sets: tuple[KeySet, ...]
    demo: bool = False

    def __post_init__(self) -> None:
        check_setting_name(self.name)
        _check_aid("applet_aid", self.applet_aid)
        _check_aid("ssd_aid", self.ssd_aid)
        masters = [master for key_set in self.key_sets for master in key_set.masters]
        rules: tuple[tuple[str, Iterable[object], str], ...] = (
            ("key version number", (key_set.kvn for key_set in self.key_sets), "Give every key set its own number."),
            ("key label", (master.label for master in masters), "Every master key is a key of its own on the token."),
            ("check value", (master.kcv_bytes.hex().upper() for master in masters), "KM-BIND and KM-CHAN of all key "
             "sets must differ; one key in two places would let a channel key open packages."),
        )  # fmt: skip
        for what, values, hint in rules:
            if repeated := _repeated(values):
                raise SettingError("key_sets", f"The {what} {repeated} stands in more than one place.", hint)
        if sum(key_set.state is KeySetState.ACTIVE for key_set in self.key_sets) > 1:
            raise SettingError("key_sets", "More than one key set is ACTIVE.", "Make the one before it OLD.")

    @property
    def applet_aid_bytes(self) -> bytes:
        """5 to 16 bytes."""
        return bytes.fromhex(self.applet_aid)

    @property
    def ssd_aid_bytes(self) -> bytes:
        """5 to 16 bytes."""
        return bytes.fromhex(self.ssd_aid)

    def key_set(self, kvn: int) -> KeySet:
        """The key set of this version number, in any state.

        Raises:
            ApplianceError: KEY_SET_UNKNOWN.
        """
        for key_set in self.key_sets:
            if key_set.kvn == kvn:
                return key_set
        raise ApplianceError(
            Reason.KEY_SET_UNKNOWN,
            f"SIM issuer {self.name} has no key set {kvn}.",
            hint="Leave kvn 0 for the ACTIVE key set, or name a declared one.",
            field="kvn",
            sim_issuer=self.name,
            kvn=kvn,
        )

    def sealing_key_set(self, kvn: int = 0) -> KeySet:
        """The key set that seals: the one named, or with 0 the ACTIVE one.

        Raises:
            ApplianceError: KEY_SET_UNKNOWN, KEY_SET_NOT_USABLE.
        """
        if kvn == 0:
            for key_set in self.key_sets:
                if PERMITS[key_set.state].seals_by_default:
                    return key_set
            raise ApplianceError(
                Reason.KEY_SET_NOT_USABLE,
                f"SIM issuer {self.name} has no ACTIVE key set.",
                hint="Name an OLD one in kvn, or let the operator make one ACTIVE.",
                field="kvn",
                sim_issuer=self.name,
            )
        key_set = self.key_set(kvn)
        if not PERMITS[key_set.state].seals_when_named:
            raise ApplianceError(
                Reason.KEY_SET_NOT_USABLE,
                f"Key set {kvn} of SIM issuer {self.name} is {key_set.state}.",
                hint="Leave kvn 0 for the ACTIVE key set, or let the operator make this one ACTIVE.",
                field="kvn",
                sim_issuer=self.name,
                kvn=kvn,
                state=key_set.state,
            )
        return key_set


def _check_kvn(kvn: int) -> None:
    if kvn not in KVN_RANGE:
        raise SettingError("kvn", f"The key version number {kvn} lies outside 1 to 127.", "Use 0x01 to 0x7F.")


def _check_aid(field: str, aid: str) -> None:
    if not re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", aid) or len(aid) // 2 not in AID_LENGTHS:
        raise SettingError(field, f"{aid!r} is not an application identifier.", "Give 5 to 16 bytes in hex.")


def _repeated(values: Iterable[object]) -> object:
    return next((value for value, times in Counter(values).items() if times > 1), None)
