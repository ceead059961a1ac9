"""Reading what is hidden, and using a key for what its attributes rule out."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from asn1crypto.core import OctetString
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import KDF, Attribute, Mechanism

from appliance.domain.package import KeyType
from appliance.hsm.check.attack import Try
from appliance.hsm.check.bench import Bench, unbound
from appliance.hsm.derive import ZERO_BLOCK
from appliance.hsm.keys import Role


def _secret(role: Role, **changes: Any) -> Try:
    def read(bench: Bench) -> bool:
        return bool(bench.read(bench.secret(role, **changes), Attribute.VALUE) == bench.value)

    return read


def _private(role: Role, key_type: KeyType, attribute: Attribute) -> Try:
    def read(bench: Bench) -> bool:
        return bool(bench.read(bench.pair(role, key_type)[0], attribute))

    return read


READ_HIDDEN: Final[Mapping[str, Try]] = {
    "master key": _secret(Role.KM_BIND),
    "K_SIM": _secret(Role.WRAP_DERIVER),
    "K_PKG": _secret(Role.WRAP),
    "EC CA key": _private(Role.ISSUING_CA, KeyType.EC_P256, Attribute.VALUE),
    "subscriber's EC key": _private(Role.SUBSCRIBER, KeyType.EC_P256, Attribute.VALUE),
    "subscriber's RSA key": _private(Role.SUBSCRIBER, KeyType.RSA_2048, Attribute.PRIVATE_EXPONENT),
}
READ_UNEXTRACTABLE: Final[Mapping[str, Try]] = {
    "master key": _secret(Role.KM_BIND, SENSITIVE=False),
    "K_PKG": _secret(Role.WRAP, SENSITIVE=False),
}


def _encrypts(bench: Bench, key: Any) -> object:
    return bench.encrypt(key, ZERO_BLOCK, Mechanism.AES_ECB)


def _decrypts(bench: Bench, key: Any) -> object:
    return bench.decrypt(key, ZERO_BLOCK, Mechanism.AES_ECB)


def _macs(bench: Bench, key: Any) -> object:
    return bench.sign(key, ZERO_BLOCK, Mechanism.AES_CMAC)


def _wraps(mechanism: Mechanism) -> Callable[[Bench, Any], object]:
    def wrap(bench: Bench, key: Any) -> object:
        return bench.wrap(key, bench.secret(Role.CMAC, EXTRACTABLE=True), mechanism)

    return wrap


def _derives(bench: Bench, key: Any) -> object:
    return bench.derive(key, Mechanism.AES_ECB_ENCRYPT_DATA, ZERO_BLOCK, Role.CMAC, 128)


def _signs(bench: Bench, key: Any) -> object:
    return bench.sign(key, bytes(32), Mechanism.ECDSA if bench.key_type is KeyType.EC_P256 else Mechanism.RSA_PKCS)


def _decrypts_or_agrees(bench: Bench, key: Any) -> object:
    """What a private key of this type does with what others have sent: ECDH, or RSA decryption."""
    if bench.key_type is KeyType.RSA_2048:
        return bench.attack(unbound(key).decrypt, bytes(255) + b"\2", mechanism=Mechanism.RSA_X_509)
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return bench.derive(key, Mechanism.ECDH1_DERIVE, (KDF.NULL, None, OctetString(point).dump()), Role.CMAC, 128)


def _used(role: Role, use: Callable[[Bench, Any], object]) -> Try:
    def beyond(bench: Bench) -> bool:
        return bool(use(bench, bench.key(role)))

    return beyond


USE_BEYOND_TEMPLATE: Final[Mapping[str, Try]] = {
    "master key encrypts": _used(Role.KM_BIND, _encrypts),
    "master key signs": _used(Role.KM_BIND, _macs),
    "master key wraps by AES_KEY_WRAP": _used(Role.KM_BIND, _wraps(Mechanism.AES_KEY_WRAP)),
    "master key wraps by AES_CBC": _used(Role.KM_BIND, _wraps(Mechanism.AES_CBC)),
    "K_SIM encrypts": _used(Role.WRAP_DERIVER, _encrypts),
    "K_PKG decrypts": _used(Role.WRAP, _decrypts),
    "K_PKG derives": _used(Role.WRAP, _derives),
    "K_AUTH derives": _used(Role.CMAC, _derives),
    "CA key decrypts or agrees": _used(Role.ISSUING_CA, _decrypts_or_agrees),
    "subscriber's key signs": _used(Role.SUBSCRIBER, _signs),
}
