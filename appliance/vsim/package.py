"""Opening a SIM package (sim-package.md, "Opening") and answering with its receipt ("Receipt").

Nothing here changes the SIM: `open_package` returns what an accepted package leaves behind, or raises `PackageError`.
"""

import hashlib
import hmac
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import load_der_private_key

from appliance.vsim import tlv
from appliance.vsim.apdu import Status
from appliance.vsim.kdf import cmac
from appliance.vsim.personalisation import BindingKeys, Personalisation

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class KeyType(IntEnum):
    """Field 85."""

    RSA_2048 = 0x01
    EC_P256 = 0x02
    EC_P384 = 0x03


class _Curve(NamedTuple):
    curve: type[ec.EllipticCurve]
    hash: type[hashes.HashAlgorithm]
    size: int  # bytes of r, of s, and of the digest


CURVES = {
    KeyType.EC_P256: _Curve(ec.SECP256R1, hashes.SHA256, 32),
    KeyType.EC_P384: _Curve(ec.SECP384R1, hashes.SHA384, 48),
}


class Reason(StrEnum):
    """Every refusal of sim-package.md, in the order of the checks."""

    STRUCTURE = "structure: a field is missing, doubled, over-long, out of order or truncated"
    SUITE = "the suite is unknown"
    KVN = "the binding key version is not on this SIM"
    KEY_TYPE = "the key type is unknown"
    ICCID = "the package is for another SIM"
    AID = "the package is for another applet"
    MAC = "the package MAC (C3) does not verify"
    COUNTER = "the package counter is not above the last accepted one"
    UNWRAP = "the private key (C1) does not unwrap"
    KEY_ENCODING = "the unwrapped key is not one consistent PrivateKeyInfo and at most 7 zero bytes"
    KEY_OF_OTHER_TYPE = "the private key is not of the stated type"
    CERTIFICATE = "the certificate (C2) is not one of the public key in the header"
    KEY_MISMATCH = "the private key does not belong to the certificate"


STATUSES: dict[Reason, Status] = {
    Reason.STRUCTURE: Status.DATA_WRONG,
    Reason.SUITE: Status.NOT_SUPPORTED,
    Reason.KVN: Status.REFERENCE_NOT_FOUND,
    Reason.KEY_TYPE: Status.NOT_SUPPORTED,
    Reason.ICCID: Status.CONDITIONS_NOT_SATISFIED,
    Reason.AID: Status.CONDITIONS_NOT_SATISFIED,
    Reason.MAC: Status.CRYPTOGRAPHY_REFUSED,
    Reason.COUNTER: Status.CONDITIONS_NOT_SATISFIED,
    Reason.UNWRAP: Status.CRYPTOGRAPHY_REFUSED,
    Reason.KEY_ENCODING: Status.DATA_WRONG,
    Reason.KEY_OF_OTHER_TYPE: Status.DATA_WRONG,
    Reason.CERTIFICATE: Status.DATA_WRONG,
    Reason.KEY_MISMATCH: Status.DATA_WRONG,
}


class PackageError(Exception):
    """A package is refused; the SIM is as it was."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = STATUSES[reason]


class _Rule(NamedTuple):
    tag: int
    shortest: int
    longest: int


_PACKAGE = (_Rule(0xE1, 1, 0x7F), _Rule(0xC1, 1, 1300), _Rule(0xC2, 1, 2048), _Rule(0xC3, 16, 16))
_HEADER = (
    _Rule(0x80, 1, 1),
    _Rule(0x81, 10, 10),
    _Rule(0x82, 5, 16),
    _Rule(0x83, 1, 1),
    _Rule(0x84, 4, 4),
    _Rule(0x85, 1, 1),
    _Rule(0x86, 32, 32),
    _Rule(0x87, 8, 8),
)
# The longest package: a header with an AID of 16 bytes (91), C1, C2, C3 and the outer tag and length.
LONGEST_PACKAGE = 4 + 91 + (4 + 1300) + (4 + 2048) + 18


@dataclass(frozen=True)
class Installed:
    """What an accepted package leaves in the SIM."""

    header_digest: bytes
    counter: int
    key_type: KeyType
    activation_check: bytes
    certificate: bytes
    receipt: bytes
    private_key: bytes = field(repr=False)  # PKCS#8, DER

    def key(self) -> PrivateKey:
        """The private key, ready to sign; it was checked when the package was opened."""
        key = load_der_private_key(self.private_key, None, unsafe_skip_rsa_key_validation=True)
        assert isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)  # noqa: S101  # as `_private_key` left it
        return key


def open_package(package: bytes, sim: Personalisation, last_counter: int, last: Installed | None) -> Installed:
    """Open one SIM package for this SIM.

    Args:
        package: the bytes that STORE DATA brought, E0 TLV and nothing else.
        last_counter: the last accepted package counter, initially 0.
        last: what the last accepted package left; the same package again (H and C2) returns this very object.

    Raises:
        PackageError: for each of `Reason`.
    """
    try:
        (outer,) = _fields(package, (_Rule(0xE0, 1, LONGEST_PACKAGE),))
        e1, c1, c2, c3 = _fields(outer.value, _PACKAGE)
        suite, iccid, aid, kvn, counter, stated_type, spki_digest, activation = (
            element.value for element in _fields(e1.value, _HEADER)
        )
    except ValueError:
        raise PackageError(Reason.STRUCTURE) from None
    if suite != b"\x01":
        raise PackageError(Reason.SUITE)
    if kvn[0] != sim.binding.kvn:
        raise PackageError(Reason.KVN)
    try:
        key_type = KeyType(stated_type[0])
    except ValueError:
        raise PackageError(Reason.KEY_TYPE) from None
    if iccid != sim.iccid:
        raise PackageError(Reason.ICCID)
    if aid != sim.applet_aid:
        raise PackageError(Reason.AID)
    mac = cmac(sim.binding.k_auth, b"PACKAGE" + e1.encoded + c1.encoded + c2.encoded)
    if not hmac.compare_digest(mac, c3.value):
        raise PackageError(Reason.MAC)
    header_digest = hashlib.sha256(e1.encoded).digest()
    if last and (last.header_digest, last.certificate) == (header_digest, c2.value):
        return last
    if int.from_bytes(counter) <= last_counter:
        raise PackageError(Reason.COUNTER)
    pkcs8 = _unwrap(sim.binding.k_sim, header_digest, c1.value)
    key = _private_key(pkcs8, key_type)
    if (public_key := _certified_key(c2.value, spki_digest)) is None:
        raise PackageError(Reason.CERTIFICATE)
    message = b"SIM-PACKAGE-RECEIPT-V1" + header_digest + hashlib.sha256(c2.value).digest()
    receipt = _receipt(sim.binding, message, key, key_type)
    if not _proves(receipt, message, public_key, key_type):
        raise PackageError(Reason.KEY_MISMATCH)
    return Installed(header_digest, int.from_bytes(counter), key_type, activation, c2.value, receipt, pkcs8)


def activation_check(binding: BindingKeys, code: bytes) -> bytes:
    """The 8 bytes of field 87 that belong to an activation code."""
    return cmac(binding.k_auth, b"ACTIVATION" + code)[:8]


def fixed_length(signature: bytes, size: int) -> bytes:
    """An ECDSA signature as r || s of `size` bytes each."""
    r, s = decode_dss_signature(signature)
    return r.to_bytes(size) + s.to_bytes(size)


def _fields(data: bytes, rules: tuple[_Rule, ...]) -> tuple[tlv.Tlv, ...]:
    found = tuple(tlv.elements(data))
    if len(found) != len(rules):
        raise ValueError("missing or doubled")
    for element, rule in zip(found, rules, strict=True):
        if element.tag != rule.tag or not rule.shortest <= len(element.value) <= rule.longest:
            raise ValueError("out of order or of another length")
    return found


def _unwrap(k_sim: bytes, header_digest: bytes, wrapped: bytes) -> bytes:
    """K_PKG from the header, then AES-KWP: the PKCS#8 DER without what a module may have padded behind it."""
    encryptor = Cipher(AES(k_sim), CBC(bytes(16))).encryptor()
    k_pkg = encryptor.update(header_digest) + encryptor.finalize()
    try:
        padded = aes_key_unwrap_with_padding(k_pkg, wrapped)
    except InvalidUnwrap:
        raise PackageError(Reason.UNWRAP) from None
    try:
        pkcs8 = tlv.first(padded).encoded
    except ValueError:
        raise PackageError(Reason.KEY_ENCODING) from None
    behind = padded[len(pkcs8) :]
    if len(behind) > 7 or any(behind):
        raise PackageError(Reason.KEY_ENCODING)
    return pkcs8


def _private_key(pkcs8: bytes, key_type: KeyType) -> PrivateKey:
    """The key of a PrivateKeyInfo, version 0, no attributes.

    The library recomputes: RSA numbers that do not fit together, or a public key inside an ECPrivateKey that does not
    belong to the private one, are a ValueError.
    """
    try:
        # The library would take other forms of key too, such as RFC 5915's with a version of 1.
        version, _algorithm, _key = tlv.elements(tlv.first(pkcs8).value)
        if version.encoded != b"\x02\x01\x00":
            raise PackageError(Reason.KEY_ENCODING)
        key = load_der_private_key(pkcs8, None)
    except ValueError:
        raise PackageError(Reason.KEY_ENCODING) from None
    except UnsupportedAlgorithm:
        raise PackageError(Reason.KEY_OF_OTHER_TYPE) from None
    if isinstance(key, rsa.RSAPrivateKey):
        if key_type is not KeyType.RSA_2048 or key.key_size != 2048:
            raise PackageError(Reason.KEY_OF_OTHER_TYPE)
        return key
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PackageError(Reason.KEY_OF_OTHER_TYPE)
    if key_type not in CURVES or not isinstance(key.curve, CURVES[key_type].curve):
        raise PackageError(Reason.KEY_OF_OTHER_TYPE)
    return key


def _certified_key(certificate: bytes, spki_digest: bytes) -> object | None:
    """The certificate's public key, or None where the certificate or its SubjectPublicKeyInfo is not as stated."""
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        # RFC 5280, 4.1: version [0], serial number, signature, issuer, validity, subject, then subjectPublicKeyInfo.
        fields = tuple(tlv.elements(tlv.first(parsed.tbs_certificate_bytes).value))
        if fields[0].tag != 0xA0 or not hmac.compare_digest(hashlib.sha256(fields[6].encoded).digest(), spki_digest):
            return None
        return parsed.public_key()
    except (ValueError, IndexError, UnsupportedAlgorithm):
        return None


def _receipt(binding: BindingKeys, message: bytes, key: PrivateKey, key_type: KeyType) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    else:
        curve = CURVES[key_type]
        signature = fixed_length(key.sign(message, ec.ECDSA(curve.hash())), curve.size)
    return signature + cmac(binding.k_rcpt, message)


def _proves(receipt: bytes, message: bytes, public_key: object, key_type: KeyType) -> bool:
    """Whether the receipt's signature verifies under the certificate's key: the private key is that one's."""
    signature = receipt[:-16]
    try:
        if isinstance(public_key, rsa.RSAPublicKey):
            public_key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
            return key_type is KeyType.RSA_2048
        if not isinstance(public_key, ec.EllipticCurvePublicKey) or key_type not in CURVES:
            return False
        size = CURVES[key_type].size
        r, s = int.from_bytes(signature[:size]), int.from_bytes(signature[size:])
        public_key.verify(encode_dss_signature(r, s), message, ec.ECDSA(CURVES[key_type].hash()))
    except InvalidSignature:
        return False
    return True
