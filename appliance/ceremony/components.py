"""Key components: each proves its own check value, their XOR is the key. They live in buffers that are wiped."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from appliance.errors import ApplianceError, Reason

KEY_BYTES = 32
COUNT = range(2, 10)
KCV_BYTES = 3


@dataclass(frozen=True)
class Component:
    """One custodian's share and the check value that was written beside it (hex, GlobalPlatform AES)."""

    value: bytearray = field(repr=False)
    kcv: str


def key_check_value(key: bytes | bytearray) -> str:
    """First 3 bytes of AES(key, 01 x 16), hex (GlobalPlatform Card Specification 2.3.1, B.6)."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(b"\x01" * 16)  # noqa: S305 - one block
    return block[:KCV_BYTES].hex().upper()


@contextmanager
def wiped(components: Iterable[Component]) -> Iterator[None]:
    """Overwrite the components' values at the end, whatever happened."""
    try:
        yield
    finally:
        for component in components:
            _wipe(component.value)


@contextmanager
def combined(components: Sequence[Component]) -> Iterator[bytearray]:
    """The XOR of all components, 32 bytes; wiped at the end, as are the components.

    Raises:
        ApplianceError: COMPONENT_INVALID, naming which component; nothing was combined.
    """
    with wiped(components):
        _check(components)
        key = bytearray(KEY_BYTES)
        try:
            for component in components:
                for index, byte in enumerate(component.value):
                    key[index] ^= byte
            yield key
        finally:
            _wipe(key)


def _check(components: Sequence[Component]) -> None:
    if len(components) not in COUNT:
        raise _invalid(f"The number of components is {len(components)}; a key has 2 to 9.", "components")
    for number, component in enumerate(components, 1):
        where = f"components[{number}]"
        if len(component.value) != KEY_BYTES:
            raise _invalid(f"Component {number} has {len(component.value)} bytes, not {KEY_BYTES}.", where)
        found = key_check_value(component.value)
        if found != component.kcv.upper():
            raise _invalid(f"Component {number} has check value {found}, not {component.kcv.upper()}.", where)
        if any(component.value == earlier.value for earlier in components[: number - 1]):
            raise _invalid(f"Component {number} was given before: the two would cancel each other.", where)


def _wipe(buffer: bytearray) -> None:
    buffer[:] = bytes(len(buffer))


def _invalid(detail: str, where: str) -> ApplianceError:
    return ApplianceError(
        Reason.COMPONENT_INVALID, detail, hint="Enter it again from the custodian's card.", field=where
    )
