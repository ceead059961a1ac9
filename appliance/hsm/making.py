"""Making what lives long: tokens, master keys and CA keys. For ceremonies only, with the vaults drained."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from pkcs11 import Attribute, TokenFlag, exceptions

from appliance.domain.keyset import MasterKey
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.hsm import derive, pairs
from appliance.hsm.authority import TokenSigner
from appliance.hsm.keys import TEMPLATES, Role, verify_attributes
from appliance.hsm.masters import MASTER_BYTES
from appliance.hsm.module import TokenSession, load, token_fault
from appliance.hsm.orders import ModuleParameters

LABEL_BYTES = 32
"""CK_TOKEN_INFO.label, blank padded (PKCS#11 v2.40, 3.2)."""


def initialise_token(path: str, label: str, so_pin: str, pin: str) -> ModuleParameters:
    """Initialise the module's first token that is not initialised yet, and set the user PIN.

    Raises:
        ApplianceError: FIELD_INVALID for a label that no token can have; KEY_EXISTS where a token of this label
            exists; TOKEN_ABSENT where none is free; TOKEN_FAULT.
    """
    if not 1 <= len(label.encode()) <= LABEL_BYTES:
        raise ApplianceError(
            Reason.FIELD_INVALID,
            f"A token's label has 1 to {LABEL_BYTES} bytes, not {len(label.encode())}.",
            hint="Choose a shorter label.",
            field="token_label",
        )
    library = load(path)
    try:
        library.reinitialize()
        if list(library.get_tokens(token_label=label)):
            raise ApplianceError(
                Reason.KEY_EXISTS,
                f"A token labelled {label} exists already.",
                hint="Choose another label: a token in use is never initialised again.",
                field="token_label",
                label=label,
            )
        slots = library.get_slots(token_present=True)
        free = [slot for slot in slots if not slot.get_token().flags & TokenFlag.TOKEN_INITIALIZED]
        if not free:
            raise ApplianceError(
                Reason.TOKEN_ABSENT,
                "The module shows no token that waits to be initialised.",
                hint="Add a slot or partition in the vendor's tool.",
                field="module.path",
            )
        # python-pkcs11 has no C_InitToken; the module exports it under its own name.
        init_token = ctypes.CDLL(path).C_InitToken
        init_token.argtypes = (ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
        init_token.restype = ctypes.c_ulong
        secret = so_pin.encode()
        outcome = init_token(free[0].slot_id, secret, len(secret), label.encode().ljust(LABEL_BYTES))
        if outcome:
            raise ApplianceError(
                Reason.TOKEN_FAULT,
                f"C_InitToken answered {outcome:#x}.",
                hint="Check the SO PIN's length and the module's write permission.",
                call="init_token",
            )
        library.reinitialize()
        token = library.get_token(token_label=label)
        with token.open(rw=True, so_pin=so_pin) as session:
            session.init_pin(pin)
    except exceptions.PKCS11Error as error:
        raise token_fault("init_token", error) from None
    return ModuleParameters(path, label, token.serial.decode("ascii").strip())


def import_master(session: TokenSession, role: Role, label: str, value: bytearray) -> MasterKey:
    """Put a formed master key (32 bytes) on the token, read it back, and answer its label and check values.

    The caller wipes `value`.

    Raises:
        ApplianceError: KEY_EXISTS, KEY_ATTRIBUTES_DIFFER (the key is destroyed again), TOKEN_FAULT.
    """
    with _complete_or_gone(session, label):
        attributes = {**TEMPLATES[role].attributes, Attribute.LABEL: label, Attribute.VALUE: value}
        key = session.call("create", session.raw.create_object, attributes)
        verify_attributes(session, role, key, length=MASTER_BYTES)
        kdf_kcv = derive.kdf_check(session, key, derive.subkey_k1(session, key), role)
        return MasterKey(label, derive.kcv(session, key).hex().upper(), kdf_kcv.hex().upper())


def generate_ca_key(session: TokenSession, label: str, key_type: KeyType) -> tuple[TokenSigner, bytes]:
    """Make an issuing CA's key pair on the token; answers its signer and SubjectPublicKeyInfo (DER).

    Raises:
        ApplianceError: KEY_EXISTS, KEY_ATTRIBUTES_DIFFER (the key is destroyed again), TOKEN_FAULT.
    """
    with _complete_or_gone(session, label):
        public, _ = pairs.generate(session, key_type, Role.ISSUING_CA, label)
        spki = pairs.spki(session, key_type, public)
        session.destroy(public)
        return TokenSigner(session, label, spki), spki


def require_free(session: TokenSession, *labels: str) -> None:
    """Refuse a label that an object on the token has already: KEY_EXISTS."""
    for label in labels:
        if session.find_all({Attribute.LABEL: label}):
            raise ApplianceError(
                Reason.KEY_EXISTS,
                f"The token has an object labelled {label} already.",
                hint="Choose another label, or destroy the old key in a ceremony.",
                field="label",
                label=label,
            )


@contextmanager
def _complete_or_gone(session: TokenSession, label: str) -> Iterator[None]:
    """A label that was free before: what is made under it passes every check, or nothing of it stays on the token."""
    require_free(session, label)
    try:
        yield
    except BaseException:
        if session.broken:
            session.renew()
        for made in session.find_all({Attribute.LABEL: label}):
            session.destroy(made)
        raise
