"""The input bytes of every key derivation (sim-package.md, card-side.md). No cipher here: the HSM makes the keys.

Both derivations are SP 800-108 in counter mode with AES-CMAC; they differ in where counter, label and length stand.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Final

BLOCK: Final = 16
KDD_LENGTH: Final = 10
SEQUENCE_COUNTER_LENGTH: Final = 3
MAX_SEQUENCE_COUNTER: Final = 0xFFFFFF
"""3 bytes (GPC Amendment D, 6.2.2.1)."""

# Constants of KDF3 (sim-package.md, Keys). Those of the channel are GlobalPlatform's, those of the binding lie outside.
CHANNEL_ENC: Final = 0x01
CHANNEL_MAC: Final = 0x02
K_SIM: Final = 0x10
K_AUTH: Final = 0x11
K_RCPT: Final = 0x12

_KEY_BITS: Final = (128, 192, 256)
_RB: Final = 0x87
"""The constant of doubling in GF(2^128) (RFC 4493, 2.3)."""


class Scp03Constant(IntEnum):
    """Derivation constants of SCP03 (GPC Amendment D, table 4-1)."""

    CARD_CRYPTOGRAM = 0x00
    HOST_CRYPTOGRAM = 0x01
    CARD_CHALLENGE = 0x02
    S_ENC = 0x04
    S_MAC = 0x06
    S_RMAC = 0x07


def kdf3_blocks(constant: int, kdd: bytes, bits: int) -> tuple[bytes, ...]:
    """The CMAC inputs of `KDF3(master, constant, kdd, bits)`: `i || 00 00 00 || constant || 00 || KDD`, 16 bytes each.

    Args:
        constant: one byte, e.g. `K_SIM`.
        kdd: 10 bytes.
        bits: size of the key to be derived; the CMACs are joined and cut to it.
    """
    if len(kdd) != KDD_LENGTH:
        raise ValueError(f"key diversification data has {KDD_LENGTH} bytes, not {len(kdd)}")
    if bits not in _KEY_BITS:
        raise ValueError(f"no AES key has {bits} bits")
    return tuple(bytes((i, 0, 0, 0, constant, 0)) + kdd for i in _counters(bits))


def scp03_blocks(constant: int, bits: int, context: bytes) -> tuple[bytes, ...]:
    """The CMAC inputs of SCP03: `00*11 || constant || 00 || L || i || context` (GPC Amendment D, 4.1.5).

    Args:
        constant: a `Scp03Constant`.
        bits: L, the size of what is derived: 64 (cryptograms and challenges of S8) or 128 to 256.
        context: host and card challenge, or `pseudo_random_challenge_context`.
    """
    if bits not in (64, *_KEY_BITS):
        raise ValueError(f"SCP03 derives nothing of {bits} bits")
    head = bytes(11) + bytes((constant, 0)) + bits.to_bytes(2, "big")
    return tuple(head + bytes((i,)) + context for i in _counters(bits))


def pseudo_random_challenge_context(sequence_counter: int, aid: bytes) -> bytes:
    """The context of a pseudo-random card challenge (GPC Amendment D, 6.2.2.1).

    Args:
        sequence_counter: its value in the session to be opened, 000001 for a fresh SIM.
        aid: 5..16 bytes, the application that opens the channel.
    """
    if not 0 < sequence_counter <= MAX_SEQUENCE_COUNTER:
        raise ValueError(f"{sequence_counter} is not a sequence counter of 3 bytes")
    return sequence_counter.to_bytes(SEQUENCE_COUNTER_LENGTH, "big") + aid


def cmac_subkey_k1(l: bytes) -> bytes:  # noqa: E741 - RFC 4493, 2.3 calls AES_K(0^128) L
    """CMAC's subkey K1 from L, the encryption of 16 zero bytes (RFC 4493, 2.3)."""
    if len(l) != BLOCK:
        raise ValueError(f"L has {BLOCK} bytes, not {len(l)}")
    doubled = int.from_bytes(l, "big") << 1
    carry = doubled >> 128
    return ((doubled ^ (carry << 128)) ^ (_RB if carry else 0)).to_bytes(BLOCK, "big")


def ecb_input(blocks: Iterable[bytes], k1: bytes) -> bytes:
    """The plaintext whose AES-ECB encryption is the joined CMACs of `blocks`, each exactly 16 bytes.

    The CMAC of one whole block is `AES(K, block xor K1)` (RFC 4493, 2.4), so a token without an AES-CMAC derivation
    gives the same key with CKM_AES_ECB_ENCRYPT_DATA.
    """
    masked = bytearray()
    for block in blocks:
        if len(block) != BLOCK or len(k1) != BLOCK:
            raise ValueError(f"a block and K1 have {BLOCK} bytes each, not {len(block)} and {len(k1)}")
        masked += (int.from_bytes(block, "big") ^ int.from_bytes(k1, "big")).to_bytes(BLOCK, "big")
    return bytes(masked)


def _counters(bits: int) -> range:
    return range(1, 2 if bits <= 8 * BLOCK else 3)
