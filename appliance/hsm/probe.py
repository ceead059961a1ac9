"""Start-up probes: mechanisms are chosen by what they do, shown with throwaway keys, never by a module's name."""

import os
from collections.abc import Iterable, Iterator
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
from appliance.hsm.keys import Role, attributes, verify_attributes
from appliance.hsm.module import TokenSession

DERIVATIONS = (Mechanism.AES_ECB_ENCRYPT_DATA, Mechanism.AES_CBC_ENCRYPT_DATA)
WRAP_CANDIDATES = (Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_KEY_WRAP_PAD)
"""RFC 5649 stands behind different numbers on different modules, and the same number means different things."""
_MOST_PADDING = 7
"""Zero bytes behind the DER (sim-package.md, "Opening")."""
ABSENT = frozenset(
    {
        "CurveNotSupported",
        "DomainParamsInvalid",
        "FunctionNotSupported",
        "KeySizeRange",
        "KeyTypeInconsistent",
        "MechanismInvalid",
        "MechanismParamInvalid",
        "WrappingKeySizeRange",
        "WrappingKeyTypeInconsistent",
    }
)
"""Errors that mean that a mechanism is not there, or not for this function, key or parameter."""
_FORBIDDEN = frozenset(
    {
        "ActionProhibited",
        "AttributeReadOnly",
        "AttributeTypeInvalid",
        "AttributeValueInvalid",
        "KeyFunctionNotPermitted",
        "KeyNotWrappable",
        "KeyUnextractable",
        "TemplateIncomplete",
        "TemplateInconsistent",
    }
)
"""Errors that mean that a rule of the module forbids what a template permits, or the template. Those that stand in
neither set are faults, and may pass."""


def prove_mechanisms(session: TokenSession, key_types: Iterable[KeyType] = KeyType) -> Mechanism:
    """Try every mechanism that sealing needs with throwaway keys; answer the one that is RFC 5649 KWP.

    Args:
        key_types: to be sealed.

    Raises:
        ApplianceError: MECHANISM_MISSING, naming the mechanism; KEY_ATTRIBUTES_DIFFER; TOKEN_FAULT.
    """
    with needed(Mechanism.AES_KEY_GEN):
        session.dialect  # noqa: B018 - learned here, so that a refusal is told as one
    with known_key(session) as (probe, value):
        for mechanism in DERIVATIONS:
            prove_derivation(session, probe, value, mechanism)
        prove_mac(session, probe, value)
    for key_type in dict.fromkeys((KeyType.EC_P256, *key_types)):  # choose_wrap uses P-256
        prove_pairs(session, key_type)
    return choose_wrap(session)


@contextmanager
def known_key(session: TokenSession) -> Iterator[tuple[Any, bytes]]:
    """A throwaway key and its value, 32 bytes."""
    value = os.urandom(32)
    template = {**attributes(session, Role.PROBE), Attribute.VALUE: value}
    probe = session.call("probe", session.raw.create_object, template)
    try:
        verify_attributes(session, Role.PROBE, probe, length=len(value))
        yield probe, value
    finally:
        session.destroy(probe)


def prove_derivation(session: TokenSession, probe: Any, value: bytes, mechanism: Mechanism) -> None:
    """Return only if this one of `DERIVATIONS` derives the leading bytes of the ciphertext.

    Raises:
        ApplianceError: MECHANISM_MISSING, TOKEN_FAULT.
    """
    blocks = derivation.kdf3_blocks(derivation.K_SIM, derive.KDF_CHECK_KDD, 256)
    zeros = Cipher(algorithms.AES(value), modes.ECB()).encryptor().update(derive.ZERO_BLOCK)  # noqa: S305 - RFC 4493's L
    k1 = derivation.cmac_subkey_k1(zeros)
    cbc = Cipher(algorithms.AES(value), modes.CBC(derive.ZERO_BLOCK)).encryptor().update(b"".join(blocks))
    choices: dict[Mechanism, tuple[bytes | tuple[bytes, bytes], bytes]] = {
        Mechanism.AES_ECB_ENCRYPT_DATA: (derivation.ecb_input(blocks, k1), b"".join(_cmac(value, b) for b in blocks)),
        Mechanism.AES_CBC_ENCRYPT_DATA: ((derive.ZERO_BLOCK, b"".join(blocks)), cbc),
    }
    data, outcome = choices[mechanism]
    with needed(mechanism), derive.derived(session, probe, Role.READABLE, mechanism, data, 256) as key:
        found = derive.value(session, key)
    if found != outcome:
        raise _unusable(mechanism, "it derives another key than the leading bytes of the ciphertext")


def prove_mac(session: TokenSession, probe: Any, value: bytes) -> None:
    """Return only if AES_CMAC is RFC 4493's.

    Raises:
        ApplianceError: MECHANISM_MISSING, TOKEN_FAULT.
    """
    with needed(Mechanism.AES_CMAC):
        mac = derive.cmac(session, probe, value)
    if mac != _cmac(value, value):
        raise _unusable(Mechanism.AES_CMAC, "it gives another MAC than RFC 4493")


def prove_pairs(session: TokenSession, key_type: KeyType) -> None:
    """Return only if key pairs of this type can be made; for RSA, which takes long, the module's word is enough.

    Raises:
        ApplianceError: MECHANISM_MISSING, KEY_ATTRIBUTES_DIFFER, TOKEN_FAULT.
    """
    mechanism = pairs.mechanism(key_type)
    if key_type is KeyType.RSA_2048 and session.call("list", _lists, session.raw.token.slot, mechanism):
        return
    with needed(mechanism), pairs.generated(session, key_type):
        pass


def _lists(slot: Any, mechanism: Mechanism) -> bool:
    if mechanism not in slot.get_mechanisms():
        return False
    sizes = slot.get_mechanism_info(mechanism)
    return bool(sizes.min_key_length <= pairs.RSA_BITS <= sizes.max_key_length)


def choose_wrap(session: TokenSession) -> Mechanism:
    """The mechanism that is RFC 5649, those that the module lists first; each is tried, whatever the others said.

    Raises:
        ApplianceError: MECHANISM_MISSING, KEY_ATTRIBUTES_DIFFER, TOKEN_FAULT.
    """
    listed = session.call("list", session.raw.token.slot.get_mechanisms)
    failures: list[ApplianceError] = []
    for mechanism in sorted(WRAP_CANDIDATES, key=lambda candidate: candidate not in listed):
        if session.broken:
            session.renew()
        try:
            prove_wrap(session, mechanism)
        except ApplianceError as error:
            failures.append(error)
        else:
            return mechanism
    for failure in failures:
        if failure.reason is not Reason.MECHANISM_MISSING:
            raise failure
    raise _missing(WRAP_CANDIDATES[0], " ".join(failure.detail for failure in failures))


def prove_wrap(session: TokenSession, mechanism: Mechanism) -> None:
    """Return only if a private key wrapped by this mechanism is RFC 5649 over PKCS#8.

    Raises:
        ApplianceError: MECHANISM_MISSING, KEY_ATTRIBUTES_DIFFER, TOKEN_FAULT.
    """
    with (
        known_key(session) as (probe, value),
        needed(pairs.mechanism(KeyType.EC_P256)),
        pairs.generated(session, KeyType.EC_P256) as (private, spki),
        needed(mechanism),
    ):
        wrapped = session.wrap(probe, private, mechanism)
    if not _is_kwp(wrapped, value, spki):
        raise _unusable(mechanism, "it is not RFC 5649 over PKCS#8")


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
def needed(mechanism: Mechanism) -> Iterator[None]:
    """Within it an error that this mechanism would get again, however often it is tried, means MECHANISM_MISSING."""
    try:
        yield
    except ApplianceError as error:
        if error.facts.get("error") not in ABSENT | _FORBIDDEN:
            raise
        raise _unusable(mechanism, f"the module answered {error.facts['error']}") from None


def _cmac(key: bytes, message: bytes) -> bytes:
    mac = CMAC(algorithms.AES(key))
    mac.update(message)
    return mac.finalize()


def _missing(mechanism: Mechanism, detail: str) -> ApplianceError:
    return ApplianceError(
        Reason.MECHANISM_MISSING,
        detail,
        hint="Suite 01 needs it: enable it in the module's settings, or use another module.",
        mechanism=mechanism.name,
    )


def _unusable(mechanism: Mechanism, problem: str) -> ApplianceError:
    return _missing(mechanism, f"CKM_{mechanism.name} (0x{mechanism:X}) cannot be used: {problem}.")
