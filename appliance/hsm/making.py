"""Making what lives long: tokens, master keys and CA keys. For ceremonies only, with the vaults drained."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from pkcs11 import Attribute, TokenFlag, exceptions

from appliance.domain.keyset import MasterKey
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.hsm import cryptoki, derive, pairs
from appliance.hsm.authority import TokenSigner
from appliance.hsm.cryptoki import LABEL_BYTES
from appliance.hsm.keys import Role, attributes, verify_attributes
from appliance.hsm.masters import MASTER_BYTES
from appliance.hsm.module import TokenSession, load, token_fault
from appliance.hsm.orders import ModuleParameters
from appliance.hsm.probe import needed


def initialise_token(path: str, label: str, so_pin: str, pin: str, *, arguments: str = "") -> ModuleParameters:
    """Initialise the module's first token that is not initialised yet, and set the user PIN.

    Args:
        arguments: what the module wants of C_Initialize.

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
    parameters = ModuleParameters(path, label, "", arguments)
    library = load(parameters)
    try:
        library.reinitialize()
        # Before it is initialised a token may have a label of the module's own.
        tokens = [slot.get_token() for slot in library.get_slots(token_present=True)]
        in_use = [token for token in tokens if token.flags & TokenFlag.TOKEN_INITIALIZED]
        if any(token.label == label for token in in_use):
            raise ApplianceError(
                Reason.KEY_EXISTS,
                f"A token labelled {label} exists already.",
                hint="Choose another label: a token in use is never initialised again.",
                field="token_label",
                label=label,
            )
        free = [token for token in tokens if token not in in_use]
        if not free:
            raise ApplianceError(
                Reason.TOKEN_ABSENT,
                "The module shows no token that waits to be initialised.",
                hint="Add a slot or partition in the vendor's tool.",
                field="module.path",
            )
        cryptoki.init_token(path, free[0].slot.slot_id, so_pin, label)
        library.reinitialize()
        token = library.get_token(token_label=label)
        with token.open(rw=True, so_pin=so_pin) as session:
            session.init_pin(pin)
    except exceptions.PKCS11Error as error:
        raise token_fault("init_token", error) from None
    return replace(parameters, token_serial=token.serial.decode("ascii").strip())


def import_master(session: TokenSession, role: Role, label: str, value: bytearray) -> MasterKey:
    """Put a formed master key (32 bytes) on the token, read it back, and answer its label and check values.

    The caller wipes `value`.

    Raises:
        ApplianceError: KEY_EXISTS, KEY_ATTRIBUTES_DIFFER (the key is destroyed again), TOKEN_FAULT.
    """
    with complete_or_gone(session, label):
        template = {**attributes(session, role), Attribute.LABEL: label, Attribute.VALUE: value}
        key = session.call("create", session.raw.create_object, template)
        verify_attributes(session, role, key, length=MASTER_BYTES)
        kdf_kcv = derive.kdf_check(session, key, derive.subkey_k1(session, key), role)
        return MasterKey(label, derive.kcv(session, key).hex().upper(), kdf_kcv.hex().upper())


def generate_ca_key(session: TokenSession, label: str, key_type: KeyType) -> tuple[TokenSigner, bytes]:
    """Make an issuing CA's key pair on the token; answers its signer and SubjectPublicKeyInfo (DER).

    Raises:
        ApplianceError: KEY_EXISTS, MECHANISM_MISSING, KEY_ATTRIBUTES_DIFFER (the key is destroyed again), TOKEN_FAULT.
    """
    with complete_or_gone(session, label):
        with needed(pairs.mechanism(key_type)):
            public, _ = pairs.generate(session, key_type, Role.ISSUING_CA, label)
        spki = pairs.spki(session, key_type, public)
        session.destroy(public)
        return TokenSigner(session, label, spki), spki


@contextmanager
def complete_or_gone(session: TokenSession, *labels: str) -> Iterator[None]:
    """Labels that must be free: what is made under them passes every check, or nothing of it stays on the token.

    Raises:
        ApplianceError: KEY_EXISTS.
    """
    for label in labels:
        _require_free(session, label)
    try:
        yield
    except BaseException as error:
        try:
            _destroy(session, labels)
        except ApplianceError as fault:
            raise ApplianceError(
                fault.reason,
                f"{fault.detail} What was begun may have stayed on the token: {', '.join(labels)}.",
                hint="Destroy what has these labels before you repeat the ceremony.",
                field=fault.field,
            ) from error
        raise


def _require_free(session: TokenSession, label: str) -> None:
    if session.find_all({Attribute.LABEL: label}):
        raise ApplianceError(
            Reason.KEY_EXISTS,
            f"The token has an object labelled {label} already.",
            hint="Choose another label, or destroy the old key in a ceremony.",
            field="label",
            label=label,
        )


def _destroy(session: TokenSession, labels: Iterable[str]) -> None:
    if session.broken or not session.is_open:
        session.renew()
    for label in labels:
        for made in session.find_all({Attribute.LABEL: label}):
            session.destroy(made)
