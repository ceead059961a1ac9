"""The calls on the keys of a session, each made once: keys are handles, attributes are bytes.

python-pkcs11 asks of every new key what it may do, and asks for the length of every answer first: that is half of all
calls of an order. These go to the module that it has loaded, in a session that it has opened.
"""

import ctypes
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from pkcs11 import Attribute
from pkcs11.attributes import ATTRIBUTE_TYPES

from appliance.hsm.cryptoki import check, functions

_ANSWER_BYTES: Final = 8192
"""More than anything has that is wrapped or signed here; an RSA-2048 key has about 1,230 when it is wrapped."""
ATTRIBUTE_BYTES: Final = 1024
"""More than any attribute has that is read here: the modulus of RSA-8192."""
_WORD: Final = ctypes.sizeof(ctypes.c_ulong)
_SOME_NOT_GIVEN: Final = frozenset({0x11, 0x12, 0x150})
"""ATTRIBUTE_SENSITIVE, ATTRIBUTE_TYPE_INVALID, BUFFER_TOO_SMALL: the others are given all the same (v2.40, 5.7)."""

_ulong, _pointer = ctypes.c_ulong, ctypes.c_void_p
_Block = ctypes.c_ubyte * 16  # not of c_char, which ends at a zero byte


class Key(NamedTuple):
    """A key that was derived here."""

    handle: int


class Attributes:
    """Attributes as C takes them, or has them to fill: for each its type, the value's address and its length.

    CK_ATTRIBUTE is three words on every platform where a pointer is as long as a CK_ULONG.
    """

    def __init__(self, values: Mapping[Attribute, bytes]) -> None:
        self.types = tuple(values)
        self._starts: list[int] = []
        laid_out = bytearray()
        for value in values.values():
            self._starts.append(len(laid_out))
            laid_out += value.ljust(-(-len(value) // _WORD) * _WORD, b"\x00")
        self._room = ctypes.create_string_buffer(bytes(laid_out))
        self._lengths: Final[Sequence[int]] = [len(value) for value in values.values()]
        addresses = [ctypes.addressof(self._room) + start for start in self._starts]
        entries = zip(self.types, addresses, map(len, values.values()), strict=True)
        self.words = (_ulong * (3 * len(values)))(*chain.from_iterable(entries))

    @classmethod
    def stating(cls, values: Mapping[Attribute, Any]) -> "Attributes":
        """A template."""
        return cls({attribute: packed(attribute, value) for attribute, value in values.items()})

    @classmethod
    def asking(cls, attributes: Iterable[Attribute], length: int = ATTRIBUTE_BYTES) -> "Attributes":
        """Room for these, so many bytes for each."""
        return cls(dict.fromkeys(attributes, bytes(length)))

    def clear(self) -> None:
        """Makes room again."""
        ctypes.memset(self._room, 0, len(self._room))
        self.words[2::3] = list(self._lengths)

    def given(self) -> dict[Attribute, bytes]:
        """What was filled in. What is said to be longer than its room is not; CK_UNAVAILABLE_INFORMATION is so long."""
        room, filled = self._room.raw, zip(self.types, self._starts, self._lengths, self.words[2::3], strict=True)
        return {attribute: room[start : start + length] for attribute, start, most, length in filled if length <= most}


class _Mechanism(ctypes.Structure):
    """CK_MECHANISM."""

    _fields_ = (("mechanism", _ulong), ("parameter", _pointer), ("length", _ulong))


class _StringData(ctypes.Structure):
    """CK_KEY_DERIVATION_STRING_DATA (v2.40 mechanisms, 2.15)."""

    _fields_ = (("data", ctypes.c_char_p), ("length", _ulong))


class _CbcEncryptData(ctypes.Structure):
    """CK_AES_CBC_ENCRYPT_DATA_PARAMS (likewise)."""

    _fields_ = (("iv", _Block), ("data", ctypes.c_char_p), ("length", _ulong))


def _cbc_encrypt_data(iv: bytes, data: bytes) -> _CbcEncryptData:
    return _CbcEncryptData(_Block(*iv), data, len(data))


class Objects:
    """What can be done with keys in one session.

    Args:
        path: of the module.
        session: handle.
    """

    def __init__(self, path: str, session: int) -> None:
        self._session = session
        listed = functions(path)
        self._derive, self._wrap = listed.derive_key, listed.wrap_key
        self._sign_init, self._sign = listed.sign_init, listed.sign
        self._read, self._destroy = listed.get_attribute_value, listed.destroy_object

    def derive(self, base: int, mechanism: int, data: bytes | tuple[bytes, bytes], template: Attributes) -> Key:
        """C_DeriveKey with one of the mechanisms that encrypt data; for CBC it comes with its IV in front.

        Raises:
            PKCS11Error
        """
        given = _StringData(data, len(data)) if isinstance(data, bytes) else _cbc_encrypt_data(*data)
        used = _Mechanism(mechanism, ctypes.addressof(given), ctypes.sizeof(given))
        key = _ulong()
        count = len(template.types)
        check(self._derive(self._session, ctypes.byref(used), base, template.words, count, ctypes.byref(key)))
        return Key(key.value)

    def read(self, key: int, asked: Attributes) -> dict[Attribute, bytes]:
        """C_GetAttributeValue; what the module does not give is left out.

        Raises:
            PKCS11Error: also where it says that something is not given, but not what.
        """
        asked.clear()
        outcome = self._read(self._session, key, asked.words, len(asked.types))
        given = asked.given()
        if outcome not in _SOME_NOT_GIVEN or not given or len(given) == len(asked.types):
            check(outcome)
        return given

    def sign(self, key: int, mechanism: int, message: bytes) -> bytes:
        """C_SignInit and C_Sign with a mechanism without parameters.

        Raises:
            PKCS11Error
        """
        check(self._sign_init(self._session, ctypes.byref(_Mechanism(mechanism)), key))
        answer, length = ctypes.create_string_buffer(_ANSWER_BYTES), _ulong(_ANSWER_BYTES)
        check(self._sign(self._session, message, len(message), answer, ctypes.byref(length)))
        return answer.raw[: length.value]

    def wrap(self, wrapping_key: int, key: int, mechanism: int) -> bytes:
        """C_WrapKey with a mechanism without parameters.

        Raises:
            PKCS11Error
        """
        answer, length = ctypes.create_string_buffer(_ANSWER_BYTES), _ulong(_ANSWER_BYTES)
        used = _Mechanism(mechanism)
        check(self._wrap(self._session, ctypes.byref(used), wrapping_key, key, answer, ctypes.byref(length)))
        return answer.raw[: length.value]

    def destroy(self, key: int) -> None:
        """C_DestroyObject.

        Raises:
            PKCS11Error
        """
        check(self._destroy(self._session, key))


def packed(attribute: Attribute, value: Any) -> bytes:
    """An attribute's value as the module has it."""
    pack, _ = ATTRIBUTE_TYPES[attribute]
    return pack(value)


def unpacked(attribute: Attribute, value: bytes) -> Any:
    """An attribute's value as python-pkcs11 has it; as it is where it is none of its type."""
    _, unpack = ATTRIBUTE_TYPES[attribute]
    try:
        return unpack(value)
    except (struct.error, ValueError):
        return value
