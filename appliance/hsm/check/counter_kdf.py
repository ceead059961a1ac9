"""SP 800-108 in counter mode as PKCS#11 v3.0 has it (mechanisms, 2.43), which python-pkcs11 does not know.

With AES-CMAC, a counter of 8 bits and the rest of a KDF3 block behind it, it is KDF3 without knowledge of K1.
"""

import ctypes
from typing import Any, Final

from pkcs11 import Mechanism

from appliance.domain import derivation

_ITERATION_VARIABLE: Final = 1
_BYTE_ARRAY: Final = 4


class _CounterFormat(ctypes.Structure):
    """CK_SP800_108_COUNTER_FORMAT."""

    _fields_ = (("little_endian", ctypes.c_ubyte), ("bits", ctypes.c_ulong))


class _DataParameter(ctypes.Structure):
    """CK_PRF_DATA_PARAM."""

    _fields_ = (("type", ctypes.c_ulong), ("value", ctypes.c_void_p), ("length", ctypes.c_ulong))


class _Parameters(ctypes.Structure):
    """CK_SP800_108_KDF_PARAMS."""

    _fields_ = (
        ("prf", ctypes.c_ulong),
        ("count", ctypes.c_ulong),
        ("data", ctypes.POINTER(_DataParameter)),
        ("additional_count", ctypes.c_ulong),
        ("additional", ctypes.c_void_p),
    )


def _mechanism() -> Any:
    """CKM_SP800_108_COUNTER_KDF as a member that python-pkcs11 accepts."""
    member = int.__new__(Mechanism, 0x3AC)
    member._name_, member._value_ = "SP800_108_COUNTER_KDF", 0x3AC
    return member


COUNTER_KDF: Final = _mechanism()


class Kdf3Parameter:
    """The mechanism's parameter for `KDF3(master, constant, kdd, …)`; its memory lives as long as this object."""

    def __init__(self, constant: int, kdd: bytes) -> None:
        rest = derivation.kdf3_blocks(constant, kdd, 256)[0][1:]
        self._rest = ctypes.create_string_buffer(rest, len(rest))
        self._format = _CounterFormat(0, 8)
        self._parts = (_DataParameter * 2)(
            _DataParameter(_ITERATION_VARIABLE, ctypes.addressof(self._format), ctypes.sizeof(self._format)),
            _DataParameter(_BYTE_ARRAY, ctypes.addressof(self._rest), len(rest)),
        )
        self._parameters = _Parameters(Mechanism.AES_CMAC, len(self._parts), self._parts, 0, None)

    def __bytes__(self) -> bytes:
        return bytes(self._parameters)
