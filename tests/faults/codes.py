"""The error codes that calls are made to fail with, by the names that they are told by (PKCS#11 v2.40, 5.1)."""

from typing import Final

CODES: Final = {
    "HostMemory": 0x02,
    "GeneralError": 0x05,
    "FunctionFailed": 0x06,
    "ArgumentsBad": 0x07,
    "AttributeSensitive": 0x11,
    "AttributeTypeInvalid": 0x12,
    "DeviceError": 0x30,
    "DeviceMemory": 0x31,
    "DeviceRemoved": 0x32,
    "KeyHandleInvalid": 0x60,
    "MechanismInvalid": 0x70,
    "ObjectHandleInvalid": 0x82,
    "OperationActive": 0x90,
    "OperationNotInitialized": 0x91,
    "PinIncorrect": 0xA0,
    "PinLocked": 0xA4,
    "SessionClosed": 0xB0,
    "SessionCount": 0xB1,
    "SessionHandleInvalid": 0xB3,
    "TokenNotPresent": 0xE0,
    "UserAlreadyLoggedIn": 0x100,
    "UserNotLoggedIn": 0x101,
    "BufferTooSmall": 0x150,
    "CryptokiNotInitialized": 0x190,
    "CryptokiAlreadyInitialized": 0x191,
    "0x80000042": 0x80000042,  # a vendor's own
}

FEW: Final = ("DeviceError", "SessionHandleInvalid", "UserNotLoggedIn")
"""An HSM that fails, one that has lost the session, and one that has lost the login."""

APART: Final = (
    *FEW,
    "AttributeTypeInvalid",
    "BufferTooSmall",
    "CryptokiAlreadyInitialized",
    "MechanismInvalid",
    "PinIncorrect",
    "TokenNotPresent",
)
"""One of each kind that python-pkcs11 or the appliance tells apart from the others."""

PIN_CODES: Final = {"PinIncorrect", "PinLocked"}
