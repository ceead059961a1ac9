"""Signatures by keys on the token, as they stand in certificates and certificate requests."""

import hashlib
from typing import Any

from pkcs11 import Mechanism

from appliance.domain.certificate import SignatureScheme, ecdsa_signature
from appliance.hsm.module import TokenSession


def mechanism(scheme: SignatureScheme) -> Mechanism:
    """What makes signatures of this scheme: for RSA the module hashes, for ECDSA it is given the digest."""
    return Mechanism.SHA256_RSA_PKCS if scheme.is_rsa else Mechanism.ECDSA


def sign(session: TokenSession, key: Any, scheme: SignatureScheme, message: bytes) -> bytes:
    """RSASSA-PKCS1-v1_5 as it is, ECDSA as DER."""
    given = message if scheme.is_rsa else hashlib.new(scheme.hash_name, message).digest()
    signature = session.sign(key, mechanism(scheme), given)
    return signature if scheme.is_rsa else ecdsa_signature(signature)
