"""What a vault may ask of the HSM: typed fields, from which all that is derived, wrapped or signed is built here.

The fields are those of `appliance.vault.v1`; there is no order that carries bytes to sign, a key to wrap under, or
derivation data.
"""

from dataclasses import dataclass, field
from datetime import datetime

from appliance.domain.package import KeyType


@dataclass(frozen=True)
class ModuleParameters:
    """Which token to use: path of the PKCS#11 module, label (32 characters at most) and serial number of the token.

    Args:
        arguments: what the module wants of C_Initialize; most want nothing.
    """

    path: str
    token_label: str
    token_serial: str
    arguments: str = ""


@dataclass(frozen=True)
class SealOrder:
    """One key pair to make, certify, seal and destroy; counter and serial were committed for this attempt alone.

    With an external CA serial and times are not read.
    """

    sim_issuer: str
    kvn: int
    iccid: bytes
    """EF.ICCID coding, 10 bytes."""
    applet_aid: bytes
    key_type: KeyType
    package_counter: int
    activation_code: str = field(repr=False)
    profile: str
    certificate_serial: bytes
    """Big-endian, positive, 8 to 20 bytes."""
    subject_common_name: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True)
class CompletionOrder:
    """What was sealed (a PendingPackage) and its certificate; `header` (E1 TLV) names key set and SIM."""

    sim_issuer: str
    header: bytes
    wrapped_key: bytes = field(repr=False)
    interim_mac: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    profile: str
    subject_common_name: str
    latest_end: datetime


@dataclass(frozen=True)
class ChannelOrder:
    """One SCP03 session with a pseudo-random card challenge, for one SIM and one sequence counter.

    Args:
        with_s_rmac: what protects commands does not need it, only who checks responses does.
    """

    sim_issuer: str
    kvn: int
    iccid: bytes
    sequence_counter: int
    host_challenge: bytes
    with_s_rmac: bool = False


@dataclass(frozen=True)
class ChannelKeys:
    """Session keys of one channel and the card challenge that they answer (8 bytes; S16: 16).

    `s_rmac` is empty where it was not asked for.
    """

    card_challenge: bytes
    s_enc: bytes = field(repr=False)
    s_mac: bytes = field(repr=False)
    s_rmac: bytes = field(repr=False)


@dataclass(frozen=True)
class ReceiptOrder:
    """One receipt to verify; `header` (E1 TLV) names key set, SIM and key type."""

    sim_issuer: str
    header: bytes
    certificate: bytes
    receipt: bytes


@dataclass(frozen=True)
class TokenDescription:
    """Module (manufacturer, description, version) and token in use."""

    module: str
    token_label: str
    token_serial: str


@dataclass(frozen=True)
class LoadedKeySet:
    """A key set found on the token, with its check values (3 bytes each)."""

    sim_issuer: str
    kvn: int
    bind_kcv: bytes
    chan_kcv: bytes
