"""Start-up probes: mechanisms are chosen by what they do, shown with throwaway keys, never by a module's name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from asn1crypto.parser import peek
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from pkcs11 import Attribute, Mechanism

from appliance.domain import derivation
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.hsm import derive, pairs
from appliance.hsm.keys import TEMPLATES, Role, verify_attributes
from appliance.hsm.module import TokenSession

WRAP_CANDIDATES = (Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_KEY_WRAP_PAD)
"""RFC 5649 stands behind different numbers on different modules, and the same number means different things."""
_REFUSALS = ("FunctionNotSupported", "KeyTypeInconsistent", "MechanismInvalid", "MechanismParamInvalid")
"""Errors that mean that a mechanism is not there; others are faults, and may pass."""
_MOST_PADDING = 7
"""Zero bytes behind the DER (sim-package.md, "Opening")."""


def prove_mechanisms(session: TokenSession) -> Mechanism:
    """Try every mechanism that sealing needs with a known throwaway key; answer the one that is RFC 5649 KWP.

    Raises:
        ApplianceError: MECHANISM_MISSING, naming the mechanism; TOKEN_FAULT.
    """
    value = os.urandom(32)
    template = {**TEMPLATES[Role.PROBE].attributes, Attribute.VALUE: value}
    probe = session.call("probe", session.raw.create_object, template)
    try:
        verify_attributes(session, Role.PROBE, probe, length=len(value))
        _prove_derivation(session, probe, value)
        _prove_mac(session, probe, value)
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
        with _needed(mechanism), derive.derived(session, probe, Role.READABLE, mechanism, parameter, 256) as key:
            found = session.call("read", key.__getitem__, Attribute.VALUE)
        if found != outcome:
            raise _missing(mechanism, "it derives another key than the leading bytes of the ciphertext")


def _prove_mac(session: TokenSession, probe: Any, value: bytes) -> None:
    with _needed(Mechanism.AES_CMAC):
        mac = derive.cmac(session, probe, value)
    if mac != _cmac(value, value):
        raise _missing(Mechanism.AES_CMAC, "it gives another MAC than RFC 4493")


def _choose_wrap(session: TokenSession, probe: Any, value: bytes) -> Mechanism:
    offered = session.call("probe", session.raw.token.slot.get_mechanisms)
    with pairs.generated(session, KeyType.EC_P256) as (private, spki):
        for mechanism in WRAP_CANDIDATES:
            if mechanism in offered:
                with _needed(mechanism):
                    wrapped = session.call("wrap", probe.wrap_key, private, mechanism=mechanism)
                if _is_kwp(wrapped, value, spki):
                    return mechanism
    raise _missing(Mechanism.AES_KEY_WRAP_KWP, "neither 210B nor 210A is RFC 5649 over PKCS#8")


def _is_kwp(wrapped: bytes, value: bytes, spki: bytes) -> bool:
    try:
        padded = aes_key_unwrap_with_padding(value, wrapped)
        length = peek(padded)
        public = load_der_private_key(padded[:length], password=None).public_key()
    except (InvalidUnwrap, UnsupportedAlgorithm, ValueError):
        return False
    same = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki
    return same and not any(padded[length:]) and len(padded) - length <= _MOST_PADDING


@contextmanager
def _needed(mechanism: Mechanism) -> Iterator[None]:
    try:
        yield
    except ApplianceError as error:
        if error.facts.get("error") not in _REFUSALS:
            raise
        raise _missing(mechanism, f"the module answered {error.facts['error']}") from None


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
