"""Keys that may do two things that together undo what each protects."""

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from asn1crypto.parser import peek
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from appliance.domain import derivation, package
from appliance.hsm.check.attack import Try
from appliance.hsm.check.bench import ATTACK, Bench, cmac
from appliance.hsm.keys import Role

BLOCK_MODES: Final = (Mechanism.AES_ECB, Mechanism.AES_CBC, Mechanism.AES_CBC_PAD)
KEY_WRAPS: Final = (Mechanism.AES_KEY_WRAP, Mechanism.AES_KEY_WRAP_PAD, Mechanism.AES_KEY_WRAP_KWP)
_KEY_BYTES: Final = 32
_HALF: Final = 8  # of a block (RFC 3394)
_ROUNDS: Final = 6
_HEADS: Final = {
    Mechanism.AES_KEY_WRAP: b"\xa6" * _HALF,
    Mechanism.AES_KEY_WRAP_PAD: b"\xa6\x59\x59\xa6" + _KEY_BYTES.to_bytes(4, "big"),
    Mechanism.AES_KEY_WRAP_KWP: b"\xa6\x59\x59\xa6" + _KEY_BYTES.to_bytes(4, "big"),
}
"""Initial values: RFC 3394, 2.2.3.1; RFC 5649, 3."""


def _wrap_and_decrypt(mechanism: Mechanism) -> Try:
    def undo(bench: Bench) -> bool:
        key = bench.secret(Role.WRAP, kind=ATTACK, DECRYPT=True)
        hidden = os.urandom(_KEY_BYTES)
        wrapped = bench.wrap(key, bench.secret(Role.CMAC, value=hidden, EXTRACTABLE=True), mechanism)
        if mechanism in KEY_WRAPS:
            return hidden in unwrapped_by_blocks(wrapped, lambda block: bench.decrypt(key, block, Mechanism.AES_ECB))
        return hidden in bench.decrypt(key, wrapped, mechanism)

    return undo


def unwrapped_by_blocks(wrapped: bytes, decrypt: Callable[[bytes], bytes]) -> bytes:
    """RFC 3394, 2.2.2, with nothing but the decryption of single blocks, and without its check."""
    head, *parts = _halves(wrapped)
    for step in range(_ROUNDS * len(parts), 0, -1):
        at = (step - 1) % len(parts)
        block = decrypt(_mixed(head, step) + parts[at])
        head, parts[at] = block[:_HALF], block[_HALF:]
    return b"".join(parts)


def wrapped_by_blocks(value: bytes, head: bytes, encrypt: Callable[[bytes], bytes]) -> bytes:
    """RFC 3394, 2.2.1, with nothing but the encryption of single blocks."""
    parts = _halves(value)
    for step in range(1, _ROUNDS * len(parts) + 1):
        at = (step - 1) % len(parts)
        block = encrypt(head + parts[at])
        head, parts[at] = _mixed(block[:_HALF], step), block[_HALF:]
    return head + b"".join(parts)


def _halves(data: bytes) -> list[bytes]:
    return [data[at : at + _HALF] for at in range(0, len(data), _HALF)]


def _mixed(head: bytes, step: int) -> bytes:
    return (int.from_bytes(head, "big") ^ step).to_bytes(_HALF, "big")


def _encrypt_and_unwrap(mechanism: Mechanism, stated: Mapping[Attribute, Any]) -> Try:
    def bring_in(bench: Bench) -> bool:
        key = bench.secret(Role.WRAP, kind=ATTACK, WRAP=False, ENCRYPT=True, UNWRAP=True)
        chosen = os.urandom(_KEY_BYTES)
        if mechanism in KEY_WRAPS:
            head = _HEADS[mechanism]
            data = wrapped_by_blocks(chosen, head, lambda block: bench.encrypt(key, block, Mechanism.AES_ECB))
        else:
            data = bench.encrypt(key, chosen, mechanism)
        template = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES, **stated}
        return bool(bench.read(bench.unwrap(key, data, mechanism, template), Attribute.VALUE) == chosen)

    return bring_in


_STATED: Final[Mapping[str, Mapping[Attribute, Any]]] = {
    "": {Attribute.PRIVATE: True, Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True},
    " into defaults": {},
}
"""How a key is brought in readable: by its template, or by what the module makes of one that says nothing."""


def _reimported(mechanism: Mechanism, stated: Mapping[Attribute, Any], of: package.KeyType | None = None) -> Try:
    def back(bench: Bench) -> bool:
        key = bench.secret(Role.WRAP, kind=ATTACK, UNWRAP=True)
        private, spki = bench.pair(Role.SUBSCRIBER, of)
        wrapped = bench.wrap(key, private, mechanism)
        is_rsa = package.KeyType.RSA_2048 in {of, bench.key_type}
        key_type = KeyType.RSA if is_rsa else KeyType.EC
        template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.KEY_TYPE: key_type, **stated}
        made = bench.unwrap(key, wrapped, mechanism, template)
        value = bench.read(made, Attribute.PRIVATE_EXPONENT if is_rsa else Attribute.VALUE)
        return _is_secret_of(int.from_bytes(value, "big"), spki)

    return back


def _reimported_as_secret(mechanism: Mechanism, stated: Mapping[Attribute, Any]) -> Try:
    def back(bench: Bench) -> bool:
        key = bench.secret(Role.WRAP, kind=ATTACK, UNWRAP=True)
        private, spki = bench.pair(Role.SUBSCRIBER)
        wrapped = bench.wrap(key, private, mechanism)
        template = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.GENERIC_SECRET, **stated}
        return _is_der_of(bytes(bench.read(bench.unwrap(key, wrapped, mechanism, template), Attribute.VALUE)), spki)

    return back


def _is_secret_of(secret: int, spki: bytes) -> bool:
    """Whether this is the scalar or private exponent of a public key."""
    match load_der_public_key(spki):
        case rsa.RSAPublicKey() as public:
            n, e = public.public_numbers().n, public.public_numbers().e
            return pow(pow(2, secret, n), e, n) == 2
        case _:
            return bool(secret) and _spki(ec.derive_private_key(secret, ec.SECP256R1())) == spki


def _is_der_of(value: bytes, spki: bytes) -> bool:
    try:
        key = load_der_private_key(value[: peek(value)], password=None)
    except (ValueError, TypeError):
        return False
    return _spki(key) == spki


def _spki(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _signing_master(bench: Bench) -> bool:
    """The first block of a K_SIM, by the CMAC that KDF3 is made of."""
    master = bench.secret(Role.KM_BIND, kind=ATTACK, SIGN=True)
    message = derivation.kdf3_blocks(derivation.K_SIM, bytes(derivation.KDD_LENGTH), 256)[0]
    return bench.sign(master, message, Mechanism.AES_CMAC) == cmac(bench.value, message)


def _encrypting_master(bench: Bench) -> bool:
    """What ECB_ENCRYPT_DATA would have made a hidden key of."""
    master = bench.secret(Role.KM_BIND, kind=ATTACK, ENCRYPT=True)
    block = os.urandom(16)
    expected = Cipher(algorithms.AES(bench.value), modes.ECB()).encryptor().update(block)  # noqa: S305 - what is tried
    return bench.encrypt(master, block, Mechanism.AES_ECB) == expected


WRAP_DECRYPT: Final[Mapping[str, Try]] = {
    **{mechanism.name: _wrap_and_decrypt(mechanism) for mechanism in BLOCK_MODES},
    **{f"{mechanism.name} undone by AES_ECB": _wrap_and_decrypt(mechanism) for mechanism in KEY_WRAPS},
}
ENCRYPT_UNWRAP: Final[Mapping[str, Try]] = {
    f"{mechanism.name}{' built by AES_ECB' if mechanism in KEY_WRAPS else ''}{how}": _encrypt_and_unwrap(
        mechanism, stated
    )
    for mechanism in (*BLOCK_MODES, *KEY_WRAPS)
    for how, stated in _STATED.items()
}
REIMPORT_READABLE: Final[Mapping[str, Try]] = {
    **{
        f"{mechanism.name}{how}": _reimported(mechanism, stated)
        for mechanism in (*KEY_WRAPS, Mechanism.AES_CBC_PAD)
        for how, stated in _STATED.items()
    },
    **{
        f"RSA key by {mechanism.name}": _reimported(mechanism, _STATED[""], package.KeyType.RSA_2048)
        for mechanism in (Mechanism.AES_KEY_WRAP_PAD, Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_CBC_PAD)
    },
}
REIMPORT_CLASS: Final[Mapping[str, Try]] = {
    f"{mechanism.name}{how}": _reimported_as_secret(mechanism, stated)
    for mechanism in (*KEY_WRAPS, Mechanism.AES_CBC_PAD)
    for how, stated in _STATED.items()
}
SIGN_DERIVE: Final[Mapping[str, Try]] = {"master key that signs": _signing_master}
DERIVE_ENCRYPT: Final[Mapping[str, Try]] = {"master key that encrypts": _encrypting_master}
