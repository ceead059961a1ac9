"""The SIM's key derivations: AES-CMAC (RFC 4493), and in its counter mode (SP 800-108) the SCP03 KDF and KDF3."""

from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC


def cmac(key: bytes, message: bytes) -> bytes:
    """AES-CMAC, 16 bytes."""
    mac = CMAC(AES(key))
    mac.update(message)
    return mac.finalize()


def scp03_kdf(key: bytes, constant: int, context: bytes, bits: int) -> bytes:
    """SCP03's derivation (GlobalPlatform Amendment D 4.1.5): 00*11, constant, 00, L in bits, i, context."""
    label = bytes(11) + bytes([constant, 0]) + bits.to_bytes(2)
    return _counted(key, lambda i: label + bytes([i]) + context, bits)


def kdf3(key: bytes, constant: int, kdd: bytes, bits: int) -> bytes:
    """KDF3 of sim-package.md: i, 00 00 00, constant, 00, KDD (10 bytes)."""
    return _counted(key, lambda i: bytes([i, 0, 0, 0, constant, 0]) + kdd, bits)


def _counted(key: bytes, block: Callable[[int], bytes], bits: int) -> bytes:
    count = -(-bits // 128)
    return b"".join(cmac(key, block(i)) for i in range(1, count + 1))[: bits // 8]
