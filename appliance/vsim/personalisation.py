"""What a SIM issuer's bureau writes into a SIM: its names and its diversified keys. The masters never enter the SIM."""

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

from appliance.vsim.kdf import kdf3

JPKI_AID = bytes.fromhex("D392F000260100000001")
# "SSPSO" behind the RID of GlobalPlatform: the supplementary security domain of these virtual SIMs.
DEFAULT_SSD_AID = bytes.fromhex("A0000001515350534F")
DEFAULT_I = 0x70  # pseudo-random card challenge, R-MAC, R-ENC, S8
# Amendment D 5.1: those with the pseudo-random challenge.
I_PARAMETERS = frozenset({0x10, 0x30, 0x70, 0x11, 0x31, 0x71})
KEY_BITS = (128, 192, 256)


@dataclass(frozen=True)
class BindingKeys:
    """What sim-package.md derives from KM-BIND for one SIM: 32 bytes each."""

    kvn: int
    k_sim: bytes = field(repr=False)
    k_auth: bytes = field(repr=False)
    k_rcpt: bytes = field(repr=False)


@dataclass(frozen=True)
class ChannelKeys:
    """The SSD's static SCP03 keys (16, 24 or 32 bytes), their version, the `i` parameter and the KDD (10 bytes)."""

    kvn: int
    i: int
    kdd: bytes
    k_enc: bytes = field(repr=False)
    k_mac: bytes = field(repr=False)
    k_dek: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.i not in I_PARAMETERS:
            raise ValueError(f"the i parameter {self.i:02X} is none of {sorted(f'{i:02X}' for i in I_PARAMETERS)}")
        if not 1 <= self.kvn <= 0x7F or len(self.kdd) != 10:
            raise ValueError("a channel key set has a KVN of 01..7F and a KDD of 10 bytes")


@dataclass(frozen=True)
class Personalisation:
    """One SIM: `iccid` as in EF.ICCID (10 bytes), the AIDs (5..16 bytes), and its keys."""

    iccid: bytes
    ssd_aid: bytes
    applet_aid: bytes
    binding: BindingKeys
    channel: ChannelKeys

    def __post_init__(self) -> None:
        if len(self.iccid) != 10 or not 1 <= self.binding.kvn <= 0x7F:
            raise ValueError("a SIM has an ICCID coded in 10 bytes and a binding KVN of 01..7F")
        if not all(5 <= len(aid) <= 16 for aid in (self.ssd_aid, self.applet_aid)) or self.ssd_aid == self.applet_aid:
            raise ValueError("the AIDs of security domain and applet are 5 to 16 bytes each, and not the same")


@dataclass(frozen=True)
class Masters:
    """A key set of a SIM issuer as its bureau holds it: KM-BIND and KM-CHAN (32 bytes each) and what goes with them."""

    km_bind: bytes = field(repr=False)
    km_chan: bytes = field(repr=False)
    kvn: int
    channel_kvn: int | None = None  # the key set's own, unless the issuer numbers them apart
    channel_key_bits: int = 128
    channel_i: int = DEFAULT_I
    ssd_aid: bytes = DEFAULT_SSD_AID
    applet_aid: bytes = JPKI_AID

    def __post_init__(self) -> None:
        if len(self.km_bind) != 32 or len(self.km_chan) != 32 or self.km_bind == self.km_chan:
            raise ValueError("km_bind and km_chan are 32 bytes each, and never equal")
        if self.channel_key_bits not in KEY_BITS:
            raise ValueError(f"channel_key_bits is one of {KEY_BITS}")

    @classmethod
    def load(cls, path: Path) -> "Masters":
        """Read a TOML file with the names of this class as keys; bytes are in hexadecimal.

        Raises:
            ValueError: unknown, missing or malformed keys; the message names the file and never a value.
        """
        types = {f.name: f.type for f in fields(cls)}
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ValueError(f"{path}: not a TOML file") from None
        values: dict[str, object] = {}
        for name, value in given.items():
            if name not in types:
                raise ValueError(f"{path}: unknown key {name}; known are {', '.join(types)}")
            if types[name] is bytes:
                try:
                    values[name] = bytes.fromhex(value)
                except (TypeError, ValueError):
                    raise ValueError(f"{path}: {name} is not a string of hexadecimal digits") from None
            elif isinstance(value, int) and not isinstance(value, bool):
                values[name] = value
            else:
                raise ValueError(f"{path}: {name} is not an integer")
        if missing := {"km_bind", "km_chan", "kvn"} - values.keys():
            raise ValueError(f"{path}: missing {', '.join(sorted(missing))}")
        try:
            return cls(**values)  # type: ignore[arg-type]  # checked against the field types just above
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def personalise(self, iccid: bytes, channel_kdd: bytes | None = None) -> Personalisation:
        """Derive one SIM's keys (sim-package.md, Keys). `channel_kdd` is the EF.ICCID coding unless given."""
        kdd = channel_kdd or iccid
        channel = (kdf3(self.km_chan, constant, kdd, self.channel_key_bits) for constant in (0x01, 0x02, 0x03))
        binding = (kdf3(self.km_bind, constant, iccid, 256) for constant in (0x10, 0x11, 0x12))
        return Personalisation(
            iccid,
            self.ssd_aid,
            self.applet_aid,
            BindingKeys(self.kvn, *binding),
            ChannelKeys(self.channel_kvn or self.kvn, self.channel_i, kdd, *channel),
        )
