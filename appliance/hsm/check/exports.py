"""Wrapping keys out of the token: under a key of the attacker's, by weak mechanisms, or where it is forbidden."""

import os
from collections.abc import Mapping
from typing import Any, Final

from asn1crypto.parser import peek
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from pkcs11 import MGF, Attribute, KeyType, Mechanism

from appliance.hsm.check import foreign, wrapped
from appliance.hsm.check.attack import Try
from appliance.hsm.check.bench import Bench, unbound
from appliance.hsm.check.conflicts import BLOCK_MODES, KEY_WRAPS
from appliance.hsm.keys import Role

_FOR_PRIVATE: Final = (*KEY_WRAPS, Mechanism.AES_CBC_PAD)
_OAEP: Final = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303 - OAEP's default


def _private_key(mechanism: Mechanism, under: Role = Role.PROBE, of: Role = Role.SUBSCRIBER, **changes: Any) -> Try:
    """A private key under a secret key whose value is known outside."""

    def export(bench: Bench) -> bool:
        private, spki = bench.pair(of, **changes)
        exported = bench.wrap(bench.secret(under), private, mechanism)
        return wrapped.recognise(bench.value, exported, spki) is not None

    return export


def _secret_key(mechanism: Mechanism, under: Role, of: Role, **changes: Any) -> Try:
    """A secret key likewise."""

    def export(bench: Bench) -> bool:
        hidden = os.urandom(32)
        exported = bench.wrap(bench.secret(under), bench.secret(of, value=hidden, **changes), mechanism)
        return any(hidden in payload for _, payload in wrapped.undone(bench.value, exported))

    return export


def _under_a_public_key(mechanism: Mechanism) -> Try:
    """A subscriber's EC key, which is short enough, under an RSA key of the attacker's."""
    scheme = padding.PKCS1v15() if mechanism is Mechanism.RSA_PKCS else _OAEP
    parameter = None if mechanism is Mechanism.RSA_PKCS else (Mechanism.SHA_1, MGF.SHA1, None)

    def export(bench: Bench) -> bool:
        own = foreign.rsa_key()
        numbers = own.public_key().public_numbers()
        template = bench.template(Role.PUBLIC, WRAP=True) | {
            Attribute.KEY_TYPE: KeyType.RSA,
            Attribute.MODULUS: numbers.n.to_bytes(256, "big"),
            Attribute.PUBLIC_EXPONENT: numbers.e.to_bytes(3, "big"),
        }
        public = bench.keep(bench.attack(bench.session.raw.create_object, template))
        private, spki = bench.pair(Role.SUBSCRIBER)
        options = {"mechanism": mechanism, "mechanism_param": parameter}
        exported = bytes(bench.attack(unbound(public).wrap_key, private, **options))
        try:
            der = own.decrypt(exported, scheme)
            found = load_der_private_key(der[: peek(der)], password=None).public_key()
        except (UnsupportedAlgorithm, ValueError, TypeError):
            return False
        return found.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki

    return export


WRAP_FOREIGN_SECRET: Final[Mapping[str, Try]] = {mechanism.name: _private_key(mechanism) for mechanism in _FOR_PRIVATE}
WRAP_FOREIGN_PUBLIC: Final[Mapping[str, Try]] = {
    mechanism.name: _under_a_public_key(mechanism) for mechanism in (Mechanism.RSA_PKCS, Mechanism.RSA_PKCS_OAEP)
}
WRAP_UNEXTRACTABLE: Final[Mapping[str, Try]] = {
    **{
        f"master key by {mechanism.name}": _secret_key(mechanism, Role.PROBE, Role.KM_BIND)
        for mechanism in (*KEY_WRAPS, *BLOCK_MODES)
    },
    **{f"CA key by {mechanism.name}": _private_key(mechanism, of=Role.ISSUING_CA) for mechanism in _FOR_PRIVATE},
}
WRAP_WEAK: Final[Mapping[str, Try]] = {
    **{
        f"secret key by {mechanism.name}": _secret_key(mechanism, Role.WRAP, Role.CMAC, EXTRACTABLE=True)
        for mechanism in BLOCK_MODES
    },
    "subscriber's key by AES_CBC_PAD": _private_key(Mechanism.AES_CBC_PAD, under=Role.WRAP),
}
WRAP_UNTRUSTED: Final[Mapping[str, Try]] = {
    mechanism.name: _private_key(mechanism, WRAP_WITH_TRUSTED=True) for mechanism in _FOR_PRIVATE
}
