"""Start-up probes: mechanisms are chosen by what they do, shown with throwaway keys, never by a module's name."""

import os
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from pkcs11 import Attribute, Mechanism

from appliance.domain import derivation
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.hsm import derive, pairs
from appliance.hsm.keys import TEMPLATES, Role
from appliance.hsm.module import TokenSession

WRAP_CANDIDATES = (Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_KEY_WRAP_PAD)
"""RFC 5649 stands behind different numbers on different modules, and the same number means different things."""


def prove_mechanisms(session: TokenSession) -> Mechanism:
    """Try every mechanism that sealing needs with a known throwaway key; answer the one that is RFC 5649 KWP.

    Raises:
        ApplianceError: MECHANISM_MISSING, naming the mechanism.
    """
    value = os.urandom(32)
    template = {**TEMPLATES[Role.PROBE].attributes, Attribute.VALUE: value}
    probe = session.call("probe", session.raw.create_object, template)
    try:
        _prove_derivation(session, probe, value)
        return _choose_wrap(session, probe, value)
    finally:
        session.destroy(probe)


def _prove_derivation(session: TokenSession, probe: Any, value: bytes) -> None:
    blocks = derivation.kdf3_blocks(derivation.K_SIM, derive.KDF_CHECK_KDD, 256)
    zeros = Cipher(algorithms.AES(value), modes.ECB()).encryptor().update(derive.ZERO_BLOCK)  # noqa: S305 - RFC 4493's L
    k1 = derivation.cmac_subkey_k1(zeros)
    cbc = Cipher(algorithms.AES(value), modes.CBC(derive.ZERO_BLOCK)).encryptor().update(b"".join(blocks))
    expected = {
        Mechanism.AES_ECB_ENCRYPT_DATA: (derivation.ecb_input(blocks, k1), b"".join(_cmac(value, b) for b in blocks)),
        Mechanism.AES_CBC_ENCRYPT_DATA: ((derive.ZERO_BLOCK, b"".join(blocks)), cbc),
    }
    for mechanism, (parameter, outcome) in expected.items():
        try:
            with derive.derived(session, probe, Role.READABLE, mechanism, parameter, 256) as key:
                found = session.call("read", key.__getitem__, Attribute.VALUE)
        except ApplianceError as error:
            raise _missing(mechanism, f"the module answered {error.facts.get('error', error.reason)}") from None
        if found != outcome:
            raise _missing(mechanism, "it derives another key than the leading bytes of the ciphertext")
    try:
        mac = derive.cmac(session, probe, value)
    except ApplianceError as error:
        raise _missing(Mechanism.AES_CMAC, f"the module answered {error.facts.get('error', error.reason)}") from None
    if mac != _cmac(value, value):
        raise _missing(Mechanism.AES_CMAC, "it gives another MAC than RFC 4493")


def _choose_wrap(session: TokenSession, probe: Any, value: bytes) -> Mechanism:
    offered = session.call("probe", session.raw.token.slot.get_mechanisms)
    with pairs.generated(session, KeyType.EC_P256) as (private, spki):
        for mechanism in WRAP_CANDIDATES:
            if mechanism in offered and _is_kwp(
                session.call("wrap", probe.wrap_key, private, mechanism=mechanism), value, spki
            ):
                return mechanism
    raise _missing(Mechanism.AES_KEY_WRAP_KWP, "neither 210B nor 210A is RFC 5649 over PKCS#8")


def _is_kwp(wrapped: bytes, value: bytes, spki: bytes) -> bool:
    try:
        padded = aes_key_unwrap_with_padding(value, wrapped)
        length = 2 + padded[1]  # a P-256 PrivateKeyInfo is shorter than 128 bytes; zeros may follow it
        key = load_der_private_key(padded[:length], password=None)
    except (InvalidUnwrap, ValueError, IndexError):
        return False
    same = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki
    return same and not any(padded[length:])


def _cmac(key: bytes, message: bytes) -> bytes:
    mac = CMAC(algorithms.AES(key))
    mac.update(message)
    return mac.finalize()


def _missing(mechanism: Mechanism, problem: str) -> ApplianceError:
    return ApplianceError(
        Reason.MECHANISM_MISSING,
        f"CKM_{mechanism.name} cannot be used: {problem}.",
        hint="Suite 01 needs it: enable it in the module's settings, or use another module.",
        mechanism=mechanism.name,
    )
