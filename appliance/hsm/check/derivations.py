"""Deriving from a hidden key what is not hidden, may do more, or is short enough to be guessed."""

import ctypes
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from appliance.hsm.check.attack import Try
from appliance.hsm.check.bench import Bench
from appliance.hsm.derive import ZERO_BLOCK
from appliance.hsm.keys import Role
from appliance.hsm.probe import WRAP_CANDIDATES

_DATA: Final = bytes(range(32))


class _StringData(ctypes.Structure):
    """CK_KEY_DERIVATION_STRING_DATA (PKCS#11 v2.40 mechanisms, 2.31)."""

    _fields_ = (("data", ctypes.c_char_p), ("length", ctypes.c_ulong))


def _aes(key: bytes, data: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.CBC(ZERO_BLOCK)).encryptor().update(data)


def _readable(mechanism: Mechanism) -> Try:
    def derive(bench: Bench) -> bool:
        block = os.urandom(16)
        parameter = block if mechanism is Mechanism.AES_ECB_ENCRYPT_DATA else (ZERO_BLOCK, block)
        master = bench.secret(Role.KM_BIND)
        key = bench.derive(master, mechanism, parameter, Role.READABLE, 128)
        return bool(bench.read(key, Attribute.VALUE) == _aes(bench.value, block))

    return derive


def _decrypting_twin(bench: Bench) -> bool:
    """K_PKG derived a second time, with DECRYPT."""
    digest = os.urandom(32)
    key = bench.derive(
        bench.secret(Role.WRAP_DERIVER),
        Mechanism.AES_CBC_ENCRYPT_DATA,
        (ZERO_BLOCK, digest),
        Role.WRAP,
        256,
        WRAP=False,
        DECRYPT=True,
    )
    message = os.urandom(16)
    data = _aes(_aes(bench.value, digest), message)
    return bench.decrypt(key, data, Mechanism.AES_ECB) == message


def _unwrapping_twin(mechanism: Mechanism) -> Try:
    """K_PKG derived a second time, with UNWRAP, and a package's wrapped key opened with it."""

    def derive(bench: Bench) -> bool:
        digest, payload = os.urandom(32), os.urandom(64)
        key = bench.derive(
            bench.secret(Role.WRAP_DERIVER),
            Mechanism.AES_CBC_ENCRYPT_DATA,
            (ZERO_BLOCK, digest),
            Role.WRAP,
            256,
            WRAP=False,
            UNWRAP=True,
        )
        sealed = aes_key_wrap_with_padding(_aes(bench.value, digest), payload)
        template = {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
            Attribute.SENSITIVE: False,
            Attribute.EXTRACTABLE: True,
        }
        return bool(bench.read(bench.unwrap(key, sealed, mechanism, template), Attribute.VALUE) == payload)

    return derive


def _short(mechanism: Mechanism, key_type: KeyType, length: int, parameter: Any) -> Try:
    """A hidden key of a few bytes of what the master is made into."""

    def derive(bench: Bench) -> bool:
        master = bench.secret(Role.KM_BIND)
        key = bench.derive(master, mechanism, parameter, Role.CMAC, 8 * length, key_type)
        return bool(bench.read(key, Attribute.VALUE_LEN) == length) if key_type is KeyType.GENERIC_SECRET else True

    return derive


def _bits(mechanism: Mechanism, parameter: Any, expected: Callable[[bytes], bytes]) -> Try:
    """A readable key that shows the master's own bytes."""

    def derive(bench: Bench) -> bool:
        master = bench.secret(Role.KM_BIND)
        key = bench.derive(master, mechanism, parameter, Role.READABLE, 128, KeyType.GENERIC_SECRET)
        return bool(bench.read(key, Attribute.VALUE) == expected(bench.value)[:16])

    return derive


_STRING: Final = bytes(_StringData(_DATA, len(_DATA)))  # points into _DATA, which stays
_FIRST_BIT: Final = bytes(ctypes.c_ulong(0))
_OF_THE_VALUE: Final[Mapping[Mechanism, tuple[bytes, Callable[[bytes], bytes]]]] = {
    Mechanism.XOR_BASE_AND_DATA: (_STRING, lambda v: bytes(a ^ b for a, b in zip(v, _DATA, strict=True))),
    Mechanism.CONCATENATE_BASE_AND_DATA: (_STRING, lambda v: v),
    Mechanism.CONCATENATE_DATA_AND_BASE: (_STRING, lambda v: _DATA + v),
    Mechanism.EXTRACT_KEY_FROM_KEY: (_FIRST_BIT, lambda v: v),
}
"""Derivations whose result has the master's own bits in it (PKCS#11 v2.40 mechanisms, 2.31)."""

DERIVE_READABLE: Final[Mapping[str, Try]] = {
    mechanism.name: _readable(mechanism)
    for mechanism in (Mechanism.AES_ECB_ENCRYPT_DATA, Mechanism.AES_CBC_ENCRYPT_DATA)
}
DERIVE_OTHER_USE: Final[Mapping[str, Try]] = {
    "K_PKG that decrypts": _decrypting_twin,
    **{f"K_PKG that unwraps by {mechanism.name}": _unwrapping_twin(mechanism) for mechanism in WRAP_CANDIDATES},
}
DERIVE_SHORT: Final[Mapping[str, Try]] = {
    "1 byte": _short(Mechanism.AES_ECB_ENCRYPT_DATA, KeyType.GENERIC_SECRET, 1, ZERO_BLOCK),
    "8 bytes": _short(Mechanism.AES_ECB_ENCRYPT_DATA, KeyType.GENERIC_SECRET, 8, ZERO_BLOCK),
    "DES key": _short(Mechanism.AES_ECB_ENCRYPT_DATA, KeyType["_DES"], 8, ZERO_BLOCK),
}
DERIVE_BITS: Final[Mapping[str, Try]] = {
    **{
        f"{mechanism.name} readable": _bits(mechanism, parameter, expected)
        for mechanism, (parameter, expected) in _OF_THE_VALUE.items()
    },
    **{
        f"{mechanism.name} of 1 byte": _short(mechanism, KeyType.GENERIC_SECRET, 1, parameter)
        for mechanism, (parameter, _) in _OF_THE_VALUE.items()
    },
}
