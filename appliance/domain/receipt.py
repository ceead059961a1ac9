"""The receipt: a SIM's proof that it installed a package (sim-package.md, Receipt).

`signature || AES-CMAC(K_RCPT, M)`. The signature is public-key work and is checked here; the CMAC needs K_RCPT and is
checked in the vault. Only both together make an issuance ACTIVE.
"""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import load_der_public_key

from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason

RECEIPT_LABEL: Final = b"SIM-PACKAGE-RECEIPT-V1"
RECEIPT_CMAC_LENGTH: Final = 16

SIGNATURE_LENGTHS: Final[Mapping[KeyType, int]] = MappingProxyType(
    {KeyType.RSA_2048: 256, KeyType.EC_P256: 64, KeyType.EC_P384: 96}
)
RECEIPT_LENGTHS: Final[Mapping[KeyType, int]] = MappingProxyType(
    {key_type: length + RECEIPT_CMAC_LENGTH for key_type, length in SIGNATURE_LENGTHS.items()}
)

_EC_HASHES: Final[Mapping[KeyType, tuple[type[ec.EllipticCurve], SHA256 | SHA384]]] = MappingProxyType(
    {KeyType.EC_P256: (ec.SECP256R1, SHA256()), KeyType.EC_P384: (ec.SECP384R1, SHA384())}
)
_RSA_BITS: Final = 2048


def receipt_message(header_digest: bytes, certificate: bytes) -> bytes:
    """M: `"SIM-PACKAGE-RECEIPT-V1" || H || SHA-256(certificate DER)`; `header_digest` is H, 32 bytes."""
    if len(header_digest) != hashlib.sha256().digest_size:
        raise ValueError(f"a header digest has 32 bytes, not {len(header_digest)}")
    return RECEIPT_LABEL + header_digest + hashlib.sha256(certificate).digest()


def split_receipt(receipt: bytes, key_type: KeyType) -> tuple[bytes, bytes]:
    """(signature, CMAC) of a receipt by a key of this type.

    Raises:
        ApplianceError: RECEIPT_INVALID when the length is not that of the key type.
    """
    expected = RECEIPT_LENGTHS[key_type]
    if len(receipt) != expected:
        raise ApplianceError(
            Reason.RECEIPT_INVALID,
            f"The receipt has {len(receipt)} bytes; one by a key of type {key_type.name} has {expected}.",
            hint="Join the parts that GET DATA DF21, DF22, DF23 answered, in this order and without status words.",
            field="receipt",
            length=len(receipt),
            expected_length=expected,
        )
    return receipt[:-RECEIPT_CMAC_LENGTH], receipt[-RECEIPT_CMAC_LENGTH:]


def verify_signature(spki_der: bytes, key_type: KeyType, message: bytes, signature: bytes) -> None:
    """Return only if `signature` over M = `message` is by the key of `spki_der` (DER SubjectPublicKeyInfo).

    RSASSA-PKCS1-v1_5 with SHA-256, or ECDSA as r || s of fixed length with SHA-256 (P-256) or SHA-384 (P-384).

    Raises:
        ApplianceError: RECEIPT_REJECTED.
    """
    try:
        key = load_der_public_key(spki_der)
    except (ValueError, UnsupportedAlgorithm) as unreadable:
        raise _rejected("The issuance's public key cannot be read.") from unreadable
    try:
        if key_type is KeyType.RSA_2048:
            if not isinstance(key, rsa.RSAPublicKey) or key.key_size != _RSA_BITS:
                raise _rejected(f"The issuance's public key is not of type {key_type.name}.")
            key.verify(signature, message, padding.PKCS1v15(), SHA256())
            return
        curve, digest = _EC_HASHES[key_type]
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, curve):
            raise _rejected(f"The issuance's public key is not of type {key_type.name}.")
        if len(signature) != SIGNATURE_LENGTHS[key_type]:
            raise _rejected("The receipt's signature has not the length of its key.")
        half = len(signature) // 2
        r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(digest))
    except InvalidSignature:
        raise _rejected("The receipt's signature does not verify with the issuance's public key.") from None


def _rejected(problem: str) -> ApplianceError:
    return ApplianceError(
        Reason.RECEIPT_REJECTED,
        problem,
        hint="Read the receipt from the SIM of this issuance again; it belongs to one package and one certificate.",
        field="receipt",
    )
