"""Making what lives long: tokens, master keys and CA keys. For ceremonies only, with the vaults drained."""

import ctypes
from collections.abc import Callable
from typing import Any, TypeVar

import pkcs11
from pkcs11 import Attribute, MechanismFlag, exceptions

from appliance.domain import derivation
from appliance.domain.keyset import MasterKey
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.hsm import derive, pairs
from appliance.hsm.authority import TokenSigner
from appliance.hsm.keys import TEMPLATES, Role, verify_attributes
from appliance.hsm.module import TokenSession, token_fault
from appliance.hsm.orders import ModuleParameters

T = TypeVar("T")

LABEL_BYTES = 32
"""CK_TOKEN_INFO.label, blank padded (PKCS#11 v2.40, 3.2)."""


def initialise_token(path: str, label: str, so_pin: str, pin: str) -> ModuleParameters:
    """Initialise the module's first token that is not initialised yet, and set the user PIN.

    Raises:
        ApplianceError: KEY_EXISTS where a token of this label exists; TOKEN_ABSENT where none is free; TOKEN_FAULT.
    """
    library = pkcs11.lib(path)
    library.reinitialize()
    if list(library.get_tokens(token_label=label)):
        raise ApplianceError(
            Reason.KEY_EXISTS,
            f"A token labelled {label} exists already.",
            hint="Choose another label: a token in use is never initialised again.",
            label=label,
        )
    try:
        slot = _free_slot(library)
        # python-pkcs11 has no C_InitToken; the module exports it under its own name.
        init_token = ctypes.CDLL(path).C_InitToken
        init_token.argtypes = (ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
        init_token.restype = ctypes.c_ulong
        secret = so_pin.encode()
        outcome = init_token(slot.slot_id, secret, len(secret), label.encode().ljust(LABEL_BYTES))
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


def _free_slot(library: pkcs11.lib) -> pkcs11.Slot:
    for slot in library.get_slots(token_present=True):
        if not slot.get_token().flags & pkcs11.TokenFlag.TOKEN_INITIALIZED:
            return slot
    raise ApplianceError(
        Reason.TOKEN_ABSENT,
        "The module shows no token that waits to be initialised.",
        hint="Add a slot or partition in the vendor's tool.",
    )


def import_master(session: TokenSession, role: Role, label: str, value: bytearray) -> MasterKey:
    """Put a formed master key (32 bytes) on the token, read it back, and answer its label and check values.

    The caller wipes `value`.

    Raises:
        ApplianceError: KEY_EXISTS, KEY_ATTRIBUTES_DIFFER (the key is destroyed again), TOKEN_FAULT.
    """
    _require_free(session, label)
    attributes = {**TEMPLATES[role].attributes, Attribute.LABEL: label, Attribute.VALUE: bytes(value)}
    key = session.call("create", session.raw.create_object, attributes)

    def describe() -> MasterKey:
        verify_attributes(session, role, key, VALUE_LEN=32)
        kcv = derive.encrypt_block(session, key, derive.KCV_BLOCK)[: derive.KCV_BYTES]
        k1 = derivation.cmac_subkey_k1(derive.encrypt_block(session, key, derive.ZERO_BLOCK))
        constant = derivation.K_SIM if role is Role.KM_BIND else derivation.CHANNEL_ENC
        return MasterKey(label, kcv.hex().upper(), derive.kdf_check(session, key, k1, constant).hex().upper())

    return _or_destroy(session, describe, key)


def generate_ca_key(session: TokenSession, label: str, key_type: KeyType) -> tuple[TokenSigner, bytes]:
    """Make an issuing CA's key pair on the token; answers its signer and SubjectPublicKeyInfo (DER).

    Raises:
        ApplianceError: KEY_EXISTS, KEY_ATTRIBUTES_DIFFER (the key is destroyed again), TOKEN_FAULT.
    """
    _require_free(session, label)
    options: dict[str, Any] = {
        "store": True,
        "label": label,
        "capabilities": MechanismFlag(0),
        # The certificate is the public key's home; this half leaves with the session.
        "public_template": {**TEMPLATES[Role.SUBSCRIBER_PUBLIC].attributes},
        "private_template": {**TEMPLATES[Role.ISSUING_CA].attributes},
    }
    if key_type is KeyType.RSA_2048:
        public, private = session.call(
            "keypair_rsa", session.raw.generate_keypair, pkcs11.KeyType.RSA, pairs.RSA_BITS, **options
        )
    else:
        parameters = session.raw.create_domain_parameters(
            pkcs11.KeyType.EC, {Attribute.EC_PARAMS: pairs.curve_parameters(key_type)}, local=True
        )
        public, private = session.call("keypair_ec", parameters.generate_keypair, **options)

    def describe() -> tuple[TokenSigner, bytes]:
        spki = pairs.spki(session, key_type, public)
        return TokenSigner(session, label, spki), spki

    made = _or_destroy(session, describe, private)
    session.destroy(public)
    return made


def _require_free(session: TokenSession, label: str) -> None:
    if session.find_all({Attribute.LABEL: label}):
        raise ApplianceError(
            Reason.KEY_EXISTS,
            f"The token has an object labelled {label} already.",
            hint="Choose another label, or destroy the old key in a ceremony.",
            label=label,
        )


def _or_destroy(session: TokenSession, describe: Callable[[], T], key: Any) -> T:
    try:
        return describe()
    except ApplianceError:
        session.destroy(key)
        raise
