"""Private keys from outside: the attacker's own; and RSA keys in the place of subscribers', which take long to make."""

from functools import cache
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pkcs11 import Attribute
from pkcs11.util.ec import decode_ec_private_key
from pkcs11.util.rsa import decode_rsa_private_key

from appliance.domain.package import KeyType

_EXPONENT: Final = 65537


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    """RSA-2048, one in a process."""
    return rsa.generate_private_key(_EXPONENT, 2048)


@cache
def _ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def private_key(key_type: KeyType) -> tuple[dict[Attribute, Any], bytes]:
    """A P-256 or RSA-2048 key as the attributes that C_CreateObject takes, and its SubjectPublicKeyInfo (DER)."""
    is_rsa = key_type is KeyType.RSA_2048
    key = rsa_key() if is_rsa else _ec_key()
    der = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    attributes = decode_rsa_private_key(der) if is_rsa else decode_ec_private_key(der)
    return attributes, key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
