"""Subscribers' key pairs: generated in the session, read back, wrapped once, destroyed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import pkcs11
from asn1crypto.core import ObjectIdentifier, OctetString
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute, MechanismFlag

from appliance.domain.package import KeyType
from appliance.hsm.keys import TEMPLATES, Role, verify_attributes
from appliance.hsm.module import TokenSession

RSA_BITS = 2048
CURVES: Mapping[KeyType, ec.EllipticCurve] = MappingProxyType(
    {KeyType.EC_P256: ec.SECP256R1(), KeyType.EC_P384: ec.SECP384R1()}
)
_CURVE_OIDS = {KeyType.EC_P256: "1.2.840.10045.3.1.7", KeyType.EC_P384: "1.3.132.0.34"}


@contextmanager
def generated(session: TokenSession, key_type: KeyType) -> Iterator[tuple[Any, bytes]]:
    """A subscriber's private key (its handle) and SubjectPublicKeyInfo (DER); destroyed at the end."""
    options = {
        "store": False,
        "capabilities": MechanismFlag(0),
        "public_template": dict(TEMPLATES[Role.SUBSCRIBER_PUBLIC].attributes),
        "private_template": dict(TEMPLATES[Role.SUBSCRIBER].attributes),
    }
    if key_type is KeyType.RSA_2048:
        public, private = session.call(
            "keypair_rsa", session.raw.generate_keypair, pkcs11.KeyType.RSA, RSA_BITS, **options
        )
    else:
        parameters = session.raw.create_domain_parameters(
            pkcs11.KeyType.EC, {Attribute.EC_PARAMS: curve_parameters(key_type)}, local=True
        )
        public, private = session.call("keypair_ec", parameters.generate_keypair, **options)
    try:
        verify_attributes(session, Role.SUBSCRIBER, private)
        verify_attributes(session, Role.SUBSCRIBER_PUBLIC, public)
        yield private, spki(session, key_type, public)
    finally:
        session.destroy(private)
        session.destroy(public)


def curve_parameters(key_type: KeyType) -> bytes:
    """CKA_EC_PARAMS: the named curve's OID, DER."""
    return bytes(ObjectIdentifier(_CURVE_OIDS[key_type]).dump())


def spki(session: TokenSession, key_type: KeyType, public: Any) -> bytes:
    """SubjectPublicKeyInfo (RFC 5280, 4.1.2.7) of a public key object; a point off its curve raises ValueError."""
    if key_type is KeyType.RSA_2048:
        numbers = session.call("read", public.get_attributes, (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT))
        modulus, exponent = (int.from_bytes(numbers[a], "big") for a in (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT))
        key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    else:
        point = session.call("read", public.__getitem__, Attribute.EC_POINT)
        encoded = OctetString.load(point).native
        key = ec.EllipticCurvePublicKey.from_encoded_point(CURVES[key_type], encoded)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
