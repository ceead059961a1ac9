"""Deriving and using keys inside the token: KDF3 by encryption, AES-CMAC, and check values.

`CMAC(K, M) = AES(K, M xor K1)` for one whole block, so CKM_AES_ECB_ENCRYPT_DATA over masked blocks is KDF3.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from pkcs11 import Attribute, Mechanism

from appliance.domain import derivation
from appliance.errors import ApplianceError, Reason
from appliance.hsm.keys import Role, template, verify_attributes
from appliance.hsm.module import TokenSession
from appliance.hsm.objects import Attributes, Key

ZERO_BLOCK = bytes(16)
KCV_BLOCK = b"\x01" * 16
"""GlobalPlatform Card Specification 2.3.1, B.6: an AES key's check value is the head of its encryption of 01 x 16."""
KCV_BYTES = 3
KDF_CHECK_KDD = b"\xff" * 10
"""No SIM has this diversification data: an EF.ICCID coding starts with digits."""


@contextmanager
def derived(
    session: TokenSession,
    parent: Any,
    role: Role,
    mechanism: Mechanism,
    data: bytes | tuple[bytes, bytes],
    bits: int,
) -> Iterator[Key]:
    """A session key derived from `parent`, read back against its role, destroyed at the end.

    An error of the module while it lives ends the session, and the key with it.

    Args:
        data: what is encrypted; for CBC with its IV in front.
    """
    key = session.derive(parent, mechanism, data, template(session, role, bits // 8))
    try:
        verify_attributes(session, role, key, length=bits // 8)
        yield key
    finally:
        session.destroy(key)


def kdf3(
    session: TokenSession, master: Any, k1: bytes, role: Role, constant: int, kdd: bytes, bits: int = 256
) -> AbstractContextManager[Key]:
    """`KDF3(master, constant, kdd, bits)` (sim-package.md, Keys) as a session key of this role."""
    blocks = derivation.ecb_input(derivation.kdf3_blocks(constant, kdd, bits), k1)
    return derived(session, master, role, Mechanism.AES_ECB_ENCRYPT_DATA, blocks, bits)


def encrypt_block(session: TokenSession, key: Any, block: bytes) -> bytes:
    """AES of one public 16-byte block under a deriving key, read through a throwaway key of that value."""
    with derived(session, key, Role.READABLE, Mechanism.AES_ECB_ENCRYPT_DATA, block, 128) as readable:
        return value(session, readable)


def value(session: TokenSession, key: Key) -> bytes:
    """The value of a readable throwaway key.

    Raises:
        ApplianceError: TOKEN_FAULT.
    """
    found = session.read(key, Attributes.asking([Attribute.VALUE])).get(Attribute.VALUE)
    if not found:
        raise ApplianceError(
            Reason.TOKEN_FAULT,
            "The HSM does not give the value of a throwaway key that it made readable.",
            hint="Look at the HSM: it must keep to the template of a key that it derives.",
        )
    return found


def cmac(session: TokenSession, key: Any, message: bytes) -> bytes:
    """AES-CMAC in the token, 16 bytes."""
    return session.sign(key, Mechanism.AES_CMAC, message, "mac")


def kcv(session: TokenSession, key: Any) -> bytes:
    """GlobalPlatform check value of a deriving key, 3 bytes."""
    return encrypt_block(session, key, KCV_BLOCK)[:KCV_BYTES]


def subkey_k1(session: TokenSession, key: Any) -> bytes:
    """CMAC's subkey K1 of a deriving key, 16 bytes; it needs no secrecy, but must be right."""
    return derivation.cmac_subkey_k1(encrypt_block(session, key, ZERO_BLOCK))


def kdf_check(session: TokenSession, master: Any, k1: bytes, role: Role) -> bytes:
    """First 3 bytes of `AES-CMAC(KDF3(master, c, FF x 10, 256), 00 x 16)`: shows that K1 is right.

    Args:
        role: of the master; c is 10 for KM-BIND, 01 for KM-CHAN.
    """
    constant = derivation.K_SIM if role is Role.KM_BIND else derivation.CHANNEL_ENC
    with kdf3(session, master, k1, Role.CMAC, constant, KDF_CHECK_KDD) as key:
        return cmac(session, key, ZERO_BLOCK)[:KCV_BYTES]
