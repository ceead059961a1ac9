"""The function list of a loaded module, what its return values mean, and calls that python-pkcs11 leaves out.

C_Initialize with arguments, which some modules demand, and C_InitToken; those on keys are in `objects`.
"""

import ctypes
from collections.abc import Mapping
from functools import cache
from typing import Any

from pkcs11 import _pkcs11, exceptions

LABEL_BYTES = 32
"""CK_TOKEN_INFO.label, blank padded (PKCS#11 v2.40, 3.2)."""
_NOT_INITIALIZED = 0x190

# PKCS#11 v2.40, 5.5, 5.7, 5.11 and 5.13: what these functions may answer; python-pkcs11 has exceptions of these names.
_ERRORS: Mapping[int, type[exceptions.PKCS11Error]] = {
    0x02: exceptions.HostMemory,
    0x05: exceptions.GeneralError,
    0x06: exceptions.FunctionFailed,
    0x07: exceptions.ArgumentsBad,
    0x10: exceptions.AttributeReadOnly,
    0x11: exceptions.AttributeSensitive,
    0x12: exceptions.AttributeTypeInvalid,
    0x13: exceptions.AttributeValueInvalid,
    0x20: exceptions.DataInvalid,
    0x21: exceptions.DataLenRange,
    0x30: exceptions.DeviceError,
    0x31: exceptions.DeviceMemory,
    0x32: exceptions.DeviceRemoved,
    0x50: exceptions.FunctionCancelled,
    0x54: exceptions.FunctionNotSupported,
    0x60: exceptions.KeyHandleInvalid,
    0x62: exceptions.KeySizeRange,
    0x63: exceptions.KeyTypeInconsistent,
    0x69: exceptions.KeyNotWrappable,
    0x6A: exceptions.KeyUnextractable,
    0x70: exceptions.MechanismInvalid,
    0x71: exceptions.MechanismParamInvalid,
    0x82: exceptions.ObjectHandleInvalid,
    0x90: exceptions.OperationActive,
    0x91: exceptions.OperationNotInitialized,
    0xA0: exceptions.PinIncorrect,
    0xA2: exceptions.PinLenRange,
    0xA3: exceptions.PinExpired,
    0xA4: exceptions.PinLocked,
    0xB0: exceptions.SessionClosed,
    0xB1: exceptions.SessionCount,
    0xB3: exceptions.SessionHandleInvalid,
    0xB5: exceptions.SessionReadOnly,
    0xD0: exceptions.TemplateIncomplete,
    0xD1: exceptions.TemplateInconsistent,
    0xE0: exceptions.TokenNotPresent,
    0xE1: exceptions.TokenNotRecognised,
    0xE2: exceptions.TokenWriteProtected,
    0x100: exceptions.UserAlreadyLoggedIn,
    0x101: exceptions.UserNotLoggedIn,
    0x113: exceptions.WrappingKeyHandleInvalid,
    0x114: exceptions.WrappingKeySizeRange,
    0x115: exceptions.WrappingKeyTypeInconsistent,
    0x130: exceptions.DomainParamsInvalid,
    0x200: exceptions.FunctionRejected,
}

_ulong, _pointer = ctypes.c_ulong, ctypes.c_void_p


class _InitializeArguments(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS: no mutexes and no flags, so one thread calls, as with no arguments at all."""

    _fields_ = (("mutexes", _pointer * 4), ("flags", _ulong), ("reserved", ctypes.c_char_p))


class _Functions(ctypes.Structure):
    """The functions used here, at their places in CK_FUNCTION_LIST (pkcs11f.h)."""

    _fields_ = (
        ("version", ctypes.c_ubyte * 2),
        ("initialize", ctypes.CFUNCTYPE(_ulong, _pointer)),
        ("finalize", ctypes.CFUNCTYPE(_ulong, _pointer)),
        ("get_info", ctypes.CFUNCTYPE(_ulong, _pointer)),
        ("until_init_token", _pointer * 6),
        ("init_token", ctypes.CFUNCTYPE(_ulong, _ulong, ctypes.c_char_p, _ulong, ctypes.c_char_p)),
        ("until_destroy_object", _pointer * 12),
        ("destroy_object", ctypes.CFUNCTYPE(_ulong, _ulong, _ulong)),
        ("get_object_size", _pointer),
        ("get_attribute_value", ctypes.CFUNCTYPE(_ulong, _ulong, _ulong, _pointer, _ulong)),
        ("until_sign_init", _pointer * 17),
        ("sign_init", ctypes.CFUNCTYPE(_ulong, _ulong, _pointer, _ulong)),
        ("sign", ctypes.CFUNCTYPE(_ulong, _ulong, ctypes.c_char_p, _ulong, _pointer, _pointer)),
        ("until_wrap_key", _pointer * 16),
        ("wrap_key", ctypes.CFUNCTYPE(_ulong, _ulong, _pointer, _ulong, _ulong, _pointer, _pointer)),
        ("unwrap_key", _pointer),
        ("derive_key", ctypes.CFUNCTYPE(_ulong, _ulong, _pointer, _ulong, _pointer, _ulong, _pointer)),
    )


class ArguedLibrary(_pkcs11.lib):
    """python-pkcs11's library, initialised with arguments."""

    def __new__(cls, path: str, _: str) -> "ArguedLibrary":
        library: ArguedLibrary = super().__new__(cls, path)  # type: ignore[call-arg]  # the compiled class takes it
        return library

    def __init__(self, path: str, arguments: str) -> None:
        self._functions = functions(path)
        self._arguments = _InitializeArguments(reserved=arguments.encode())
        self._runs = False
        super().__init__(path)

    def initialize(self) -> None:
        """C_Initialize, unless it runs."""
        if not self._runs:
            check(self._functions.initialize(ctypes.byref(self._arguments)))
            self._runs = True

    def finalize(self) -> None:
        """C_Finalize, if it runs."""
        if self._runs:
            self._runs = False
            check(self._functions.finalize(None))


@cache
def argued(path: str, arguments: str) -> ArguedLibrary:
    """The one library of this path and these arguments in this process."""
    return ArguedLibrary(path, arguments)


@cache
def functions(path: str) -> Any:
    """The function list of a module that python-pkcs11 has loaded, and so has loaded once."""
    listed = ctypes.POINTER(_Functions)()
    check(ctypes.CDLL(path).C_GetFunctionList(ctypes.byref(listed)))
    return listed.contents


def reinitialize(path: str, library: Any) -> None:
    """C_Initialize anew, whatever state the module is in.

    Raises:
        PKCS11Error
    """
    try:
        library.reinitialize()
    except exceptions.PKCS11Error:
        # python-pkcs11 takes a module for ended also where C_Finalize has failed, and for not begun where C_Initialize
        # has: one that runs all the same would refuse every other C_Initialize.
        functions(path).finalize(None)
        library.initialize()


def has_a_state_for_each_caller(path: str) -> bool:
    """Whether a module that is initialised is not so for another caller of C_GetFunctionList, as p11-kit's proxy."""
    info = ctypes.create_string_buffer(256)  # CK_INFO has 76 bytes and some padding
    return bool(functions(path).get_info(info) == _NOT_INITIALIZED)


def init_token(path: str, slot_id: int, so_pin: str, label: str) -> None:
    """C_InitToken.

    Raises:
        PKCS11Error
    """
    secret = so_pin.encode()
    check(functions(path).init_token(slot_id, secret, len(secret), label.encode().ljust(LABEL_BYTES)))


def check(outcome: int) -> None:
    """Raise what python-pkcs11 would raise for this return value."""
    if outcome:
        raise _ERRORS.get(outcome, lambda: exceptions.PKCS11Error(f"Unmapped error code {outcome:#x}"))()
