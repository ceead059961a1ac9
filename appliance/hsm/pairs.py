"""Key pairs: generated in the token, read back; a subscriber's lives for one sealing and is destroyed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import pkcs11
from asn1crypto.core import ObjectIdentifier, OctetString
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute, Mechanism, MechanismFlag

from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.hsm.keys import Role, attributes, verify_attributes
from appliance.hsm.module import TokenSession
from appliance.hsm.objects import Attributes

RSA_BITS = 2048
CURVES: Mapping[KeyType, ec.EllipticCurve] = MappingProxyType(
    {KeyType.EC_P256: ec.SECP256R1(), KeyType.EC_P384: ec.SECP384R1()}
)
_CURVE_OIDS = {KeyType.EC_P256: "1.2.840.10045.3.1.7", KeyType.EC_P384: "1.3.132.0.34"}


@contextmanager
def generated(session: TokenSession, key_type: KeyType, role: Role = Role.SUBSCRIBER) -> Iterator[tuple[Any, bytes]]:
    """A subscriber's private key (its handle) and SubjectPublicKeyInfo (DER); destroyed at the end."""
    public, private = generate(session, key_type, role)
    try:
        verify_attributes(session, role, private)
        verify_attributes(session, Role.PUBLIC, public)
        yield private, spki(session, key_type, public)
    finally:
        session.destroy(private)
        session.destroy(public)


def generate(
    session: TokenSession,
    key_type: KeyType,
    role: Role,
    label: str | None = None,
    changes: Mapping[Attribute, Any] = MappingProxyType({}),
) -> tuple[Any, Any]:
    """The handles of a new key pair, public and private; the caller reads them back and owns them.

    The public half always leaves with the session: the certificate is its home.

    Args:
        changes: attributes of the private key that differ from its role's template, for throwaway keys.
    """
    options = {
        "label": label,
        "capabilities": MechanismFlag(0),
        "public_template": attributes(session, Role.PUBLIC),
        "private_template": {**attributes(session, role), **changes},
    }
    made: tuple[Any, Any]
    if key_type is KeyType.RSA_2048:
        made = session.call("keypair_rsa", session.raw.generate_keypair, pkcs11.KeyType.RSA, RSA_BITS, **options)
    else:
        curve = {Attribute.EC_PARAMS: ObjectIdentifier(_CURVE_OIDS[key_type]).dump()}
        parameters = session.raw.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)  # no module call
        made = session.call("keypair_ec", parameters.generate_keypair, **options)
    return made


def mechanism(key_type: KeyType) -> Mechanism:
    """What makes pairs of this type."""
    return Mechanism.RSA_PKCS_KEY_PAIR_GEN if key_type is KeyType.RSA_2048 else Mechanism.EC_KEY_PAIR_GEN


def spki(session: TokenSession, key_type: KeyType, public: Any) -> bytes:
    """SubjectPublicKeyInfo (RFC 5280, 4.1.2.7) of a public key object.

    Raises:
        ApplianceError: TOKEN_FAULT, also for a public key that is none of this type.
    """
    wanted = (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT) if key_type is KeyType.RSA_2048 else (Attribute.EC_POINT,)
    found = session.read(public, Attributes.asking(wanted))
    try:
        values = [found[attribute] for attribute in wanted]
        if key_type is KeyType.RSA_2048:
            modulus, exponent = (int.from_bytes(value, "big") for value in values)
            key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey = rsa.RSAPublicNumbers(exponent, modulus).public_key()
        else:
            key = ec.EllipticCurvePublicKey.from_encoded_point(CURVES[key_type], _point(values[0], CURVES[key_type]))
    except (KeyError, TypeError, ValueError):
        raise ApplianceError(
            Reason.TOKEN_FAULT,
            f"The HSM made a key pair whose public half is no {key_type.name} key.",
            hint="Look at the HSM; nothing was certified.",
            call="read",
        ) from None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _point(value: bytes, curve: ec.EllipticCurve) -> bytes:
    """EC_POINT: an OCTET STRING with the point (v2.40 mechanisms, 2.3.3), or on some modules the point itself."""
    coordinate = (curve.key_size + 7) // 8
    return value if len(value) == 1 + 2 * coordinate else bytes(OctetString.load(value, strict=True).native)
