"""The SIM package, version 1: the only form in which a private key leaves the HSM (sim-package.md, Format and Sealing).

Bytes alone: a value of these classes keeps every rule of the format, whoever made it; whether its MAC is right, the
holders of the keys decide.
"""

import hashlib
import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Self

from appliance.domain import tlv
from appliance.domain.sim import AID_LENGTHS, EF_ICCID_LENGTH, Iccid, validate_aid, validate_kvn
from appliance.errors import ApplianceError, Reason

SUITE_01: Final = 1

SPKI_DIGEST_LENGTH: Final = 32
ACTIVATION_CHECK_LENGTH: Final = 8
MAC_LENGTH: Final = 16
MAX_COUNTER: Final = 0xFFFFFFFF
MAX_WRAPPED: Final = 1300
"""A wrapped RSA-2048 key has about 1,230 bytes."""
MAX_CERTIFICATE: Final = 2048
MAX_CERTIFICATE_REQUEST: Final = 2048
"""One for an RSA-2048 key has about 700 bytes."""

PACKAGE_TAG: Final = 0xE0
HEADER_TAG: Final = 0xE1
WRAPPED_TAG: Final = 0xC1
CERTIFICATE_TAG: Final = 0xC2
MAC_TAG: Final = 0xC3

_ACTIVATION_CODE: Final = re.compile(r"[0-9A-Z]{8,16}")


class KeyType(IntEnum):
    """Field 85: what key the package brings."""

    RSA_2048 = 1
    EC_P256 = 2
    EC_P384 = 3


_HEADER_FIELDS: Final = (
    tlv.Field(0x80, "suite", 1, 1),
    tlv.Field(0x81, "iccid", EF_ICCID_LENGTH, EF_ICCID_LENGTH),
    tlv.Field(0x82, "applet_aid", AID_LENGTHS[0], AID_LENGTHS[-1]),
    tlv.Field(0x83, "kvn", 1, 1),
    tlv.Field(0x84, "counter", 4, 4),
    tlv.Field(0x85, "key_type", 1, 1),
    tlv.Field(0x86, "spki_sha256", SPKI_DIGEST_LENGTH, SPKI_DIGEST_LENGTH),
    tlv.Field(0x87, "activation_check", ACTIVATION_CHECK_LENGTH, ACTIVATION_CHECK_LENGTH),
)
_HEADER: Final = (tlv.Field(HEADER_TAG, "header", 1, tlv.MAX_VALUE),)
_PACKAGE: Final = (tlv.Field(PACKAGE_TAG, "package", 1, tlv.MAX_VALUE),)
_PACKAGE_FIELDS: Final = (
    *_HEADER,
    tlv.Field(WRAPPED_TAG, "wrapped", 1, MAX_WRAPPED),
    tlv.Field(CERTIFICATE_TAG, "certificate", 1, MAX_CERTIFICATE),
    tlv.Field(MAC_TAG, "mac", MAC_LENGTH, MAC_LENGTH),
)


@dataclass(frozen=True)
class Header:
    """Fields 80 to 87, the authenticated part that says for which SIM, applet and key the package is.

    Args:
        iccid: 10 bytes, EF.ICCID coding; also the KDD of the binding keys.
        applet_aid: 5..16 bytes.
        kvn: key version number of KM-BIND, 01..7F.
        counter: package counter, 1..FFFFFFFF.
        key_type: of the wrapped key.
        spki_sha256: 32 bytes, SHA-256 of the DER SubjectPublicKeyInfo.
        activation_check: 8 bytes, the start of AES-CMAC(K_AUTH, `activation_message(code)`).
        suite: the one place that chooses the cryptography; 01 is the only one.

    Raises:
        ApplianceError: ICCID_INVALID, AID_INVALID, KVN_INVALID or FIELD_INVALID; `decode` also KEY_TYPE_INVALID.
    """

    iccid: bytes
    applet_aid: bytes
    kvn: int
    counter: int
    key_type: KeyType
    spki_sha256: bytes
    activation_check: bytes
    suite: int = SUITE_01

    def __post_init__(self) -> None:
        if self.suite != SUITE_01:
            raise _field_invalid("suite", f"Suite {self.suite:02X} is not known; this is 01.")
        Iccid.from_ef_coding(self.iccid)
        validate_aid(self.applet_aid, "applet_aid")
        validate_kvn(self.kvn, "kvn")
        if not 1 <= self.counter <= MAX_COUNTER:
            raise _field_invalid("counter", f"The package counter {self.counter} lies outside 1 to {MAX_COUNTER}.")
        _require_length("spki_sha256", self.spki_sha256, SPKI_DIGEST_LENGTH, SPKI_DIGEST_LENGTH)
        _require_length("activation_check", self.activation_check, ACTIVATION_CHECK_LENGTH, ACTIVATION_CHECK_LENGTH)

    def encode(self) -> bytes:
        """The whole E1 TLV."""
        values = (
            bytes((self.suite,)),
            self.iccid,
            self.applet_aid,
            bytes((self.kvn,)),
            self.counter.to_bytes(4, "big"),
            bytes((self.key_type,)),
            self.spki_sha256,
            self.activation_check,
        )
        fields = zip(_HEADER_FIELDS, values, strict=True)
        return tlv.encode(HEADER_TAG, b"".join(tlv.encode(entry.tag, value) for entry, value in fields))

    def digest(self) -> bytes:
        """H, 32 bytes: SHA-256 of the E1 TLV, tag and length included (Sealing, 1)."""
        return hashlib.sha256(self.encode()).digest()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The header of a whole E1 TLV.

        Raises:
            ApplianceError: TLV_INVALID, or what `Header` raises.
        """
        (value,) = tlv.decode_sequence(data, _HEADER)
        return cls._of(value, at=len(data) - len(value))

    @classmethod
    def _of(cls, value: bytes, *, at: int) -> Self:
        suite, iccid, aid, kvn, counter, key_type, spki_sha256, check = tlv.decode_sequence(
            value, _HEADER_FIELDS, at=at
        )
        return cls(
            iccid=iccid,
            applet_aid=aid,
            kvn=kvn[0],
            counter=int.from_bytes(counter, "big"),
            key_type=_key_type(key_type[0]),
            spki_sha256=spki_sha256,
            activation_check=check,
            suite=suite[0],
        )


@dataclass(frozen=True)
class SimPackage:
    """The whole of it: header, wrapped private key (C1), certificate (C2, DER) and package MAC (C3, 16 bytes).

    Raises:
        ApplianceError: FIELD_INVALID for a part outside its length.
    """

    header: Header
    wrapped: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    mac: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _require_length("wrapped", self.wrapped, 1, MAX_WRAPPED)
        _require_length("certificate", self.certificate, 1, MAX_CERTIFICATE)
        _require_length("mac", self.mac, MAC_LENGTH, MAC_LENGTH)

    def encode(self) -> bytes:
        """The whole E0 TLV."""
        return tlv.encode(
            PACKAGE_TAG,
            _mac_covered(self.header.encode(), self.wrapped, self.certificate) + tlv.encode(MAC_TAG, self.mac),
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The package of a whole E0 TLV, with nothing behind it.

        Raises:
            ApplianceError: TLV_INVALID naming tag and offset, or what `Header` raises.
        """
        (value,) = tlv.decode_sequence(data, _PACKAGE)
        at = len(data) - len(value)
        header, wrapped, certificate, mac = tlv.decode_sequence(value, _PACKAGE_FIELDS, at=at)
        header_tlv = tlv.encode(HEADER_TAG, header)
        return cls(Header._of(header, at=at + len(header_tlv) - len(header)), wrapped, certificate, mac)


@dataclass(frozen=True)
class PendingPackage:
    """A sealed key that waits for its certificate: header, C1, the certificate request (PKCS#10, DER), interim MAC.

    It stays within the appliance: no SIM ever sees one (sim-package.md, With an external CA).

    Raises:
        ApplianceError: FIELD_INVALID for a part outside its length.
    """

    header: Header
    wrapped: bytes = field(repr=False)
    certificate_request: bytes = field(repr=False)
    interim_mac: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _require_length("wrapped", self.wrapped, 1, MAX_WRAPPED)
        _require_length("certificate_request", self.certificate_request, 1, MAX_CERTIFICATE_REQUEST)
        _require_length("interim_mac", self.interim_mac, MAC_LENGTH, MAC_LENGTH)


def interim_mac_input(header_tlv: bytes, wrapped: bytes) -> bytes:
    """What the interim MAC is the AES-CMAC of, under K_AUTH: `"PENDING" || E1 TLV || C1 TLV`."""
    _require_length("wrapped", wrapped, 1, MAX_WRAPPED)
    return b"PENDING" + header_tlv + tlv.encode(WRAPPED_TAG, wrapped)


def package_mac_input(header_tlv: bytes, wrapped: bytes, certificate: bytes) -> bytes:
    """What C3 is the AES-CMAC of, under K_AUTH: `"PACKAGE" || E1 TLV || C1 TLV || C2 TLV` (Sealing, 4)."""
    _require_length("wrapped", wrapped, 1, MAX_WRAPPED)
    _require_length("certificate", certificate, 1, MAX_CERTIFICATE)
    return b"PACKAGE" + _mac_covered(header_tlv, wrapped, certificate)


def activation_message(code: str) -> bytes:
    """What the activation check is the AES-CMAC of, under K_AUTH: `"ACTIVATION" || code`.

    Raises:
        ApplianceError: ACTIVATION_CODE_INVALID unless the code is 8 to 16 ASCII digits or capitals.
    """
    if not _ACTIVATION_CODE.fullmatch(code):
        raise ApplianceError(
            Reason.ACTIVATION_CODE_INVALID,
            "The activation code is not 8 to 16 ASCII digits or capital letters.",
            hint="Send the code as the applicant received it, without spaces or hyphens.",
            field="activation_code",
        )
    return b"ACTIVATION" + code.encode("ascii")


def _mac_covered(header_tlv: bytes, wrapped: bytes, certificate: bytes) -> bytes:
    return header_tlv + tlv.encode(WRAPPED_TAG, wrapped) + tlv.encode(CERTIFICATE_TAG, certificate)


def _require_length(name: str, value: bytes, shortest: int, longest: int) -> None:
    if not shortest <= len(value) <= longest:
        wanted = f"{shortest} to {longest}" if shortest < longest else longest
        raise _field_invalid(name, f"{name} has {len(value)} bytes, not {wanted}.")


def _field_invalid(name: str, problem: str) -> ApplianceError:
    return ApplianceError(
        Reason.FIELD_INVALID, problem, hint="Keep to the limits of the SIM package format, version 1.", field=name
    )


def _key_type(value: int) -> KeyType:
    try:
        return KeyType(value)
    except ValueError:
        raise ApplianceError(
            Reason.KEY_TYPE_INVALID,
            f"Key type {value:02X} is not known.",
            hint="Key types are 01 RSA-2048, 02 EC P-256 and 03 EC P-384.",
            field="key_type",
        ) from None
