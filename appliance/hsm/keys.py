"""Roles of keys and their templates, as one table; every key is made from its row and read back against it.

A template states every capability, so that a module's defaults never decide; what a module does not know is left out
(`dialect`). Source of the meanings: PKCS#11 v2.40 base specification, sections 4.4 to 4.9; why these and no others: the
SIM package design, "Sealing".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple

from pkcs11 import Attribute, KeyType, ObjectClass

from appliance.errors import ApplianceError, Reason
from appliance.hsm import objects
from appliance.hsm.dialect import Dialect
from appliance.hsm.module import TokenSession
from appliance.hsm.objects import Attributes


class Role(StrEnum):
    """What a key is for."""

    KM_BIND = "binding master"
    KM_CHAN = "channel master"
    ISSUING_CA = "issuing CA key"
    SUBSCRIBER = "subscriber's key"
    REQUESTING_SUBSCRIBER = "subscriber's key that signs its certificate request"
    PUBLIC = "public key"
    WRAP_DERIVER = "K_SIM"
    WRAP = "K_PKG"
    CMAC = "K_AUTH, K_RCPT, K-ENC or K-MAC"
    PROBE = "known throwaway key"
    READABLE = "readable throwaway key"


@dataclass(frozen=True, eq=False)
class Template:
    """Attributes that a key is made with, and those that show its origin (read back, never set)."""

    attributes: Mapping[Attribute, Any]
    origin: Mapping[Attribute, Any] = field(default_factory=dict)


_SECRET = (
    Attribute.ENCRYPT,
    Attribute.DECRYPT,
    Attribute.WRAP,
    Attribute.UNWRAP,
    Attribute.SIGN,
    Attribute.VERIFY,
    Attribute.DERIVE,
)
_PRIVATE = (Attribute.DECRYPT, Attribute.UNWRAP, Attribute.SIGN, Attribute.SIGN_RECOVER, Attribute.DERIVE)
_PUBLIC = (Attribute.ENCRYPT, Attribute.WRAP, Attribute.VERIFY, Attribute.VERIFY_RECOVER)


def _may(capabilities: tuple[Attribute, ...], *allowed: Attribute) -> dict[Attribute, Any]:
    return {capability: capability in allowed for capability in capabilities}


_AES = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES}
_HIDDEN = {Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
_READABLE = {Attribute.PRIVATE: True, Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True}
_ON_TOKEN = {Attribute.TOKEN: True, Attribute.MODIFIABLE: False, Attribute.COPYABLE: False}
# MODIFIABLE is not stated here: a module may refuse to derive into a key that is not.
_IN_SESSION = {Attribute.TOKEN: False, Attribute.COPYABLE: False}
_BORN_HERE = {Attribute.LOCAL: True, Attribute.ALWAYS_SENSITIVE: True}

_SUBSCRIBER = {
    Attribute.CLASS: ObjectClass.PRIVATE_KEY,
    **_IN_SESSION,
    **_HIDDEN,
    Attribute.EXTRACTABLE: True,
    Attribute.MODIFIABLE: False,
}
_MASTER = Template({**_AES, **_HIDDEN, **_ON_TOKEN, **_may(_SECRET, Attribute.DERIVE)})

TEMPLATES: dict[Role, Template] = {
    # Formed from components, so LOCAL is false; a master generated in the HSM is as good.
    Role.KM_BIND: _MASTER,
    Role.KM_CHAN: _MASTER,
    Role.ISSUING_CA: Template(
        {Attribute.CLASS: ObjectClass.PRIVATE_KEY, **_HIDDEN, **_ON_TOKEN, **_may(_PRIVATE, Attribute.SIGN)},
        {**_BORN_HERE, Attribute.NEVER_EXTRACTABLE: True},
    ),
    # EXTRACTABLE because wrapping is its only fate; it can do nothing else.
    Role.SUBSCRIBER: Template({**_SUBSCRIBER, **_may(_PRIVATE)}, _BORN_HERE),
    # With an external CA it signs one certificate request first.
    Role.REQUESTING_SUBSCRIBER: Template({**_SUBSCRIBER, **_may(_PRIVATE, Attribute.SIGN)}, _BORN_HERE),
    # VERIFY because some modules test a new pair that may sign: they sign and verify with it.
    Role.PUBLIC: Template(
        {
            Attribute.CLASS: ObjectClass.PUBLIC_KEY,
            **_IN_SESSION,
            Attribute.PRIVATE: False,
            **_may(_PUBLIC, Attribute.VERIFY),
        }
    ),
    Role.WRAP_DERIVER: Template({**_AES, **_IN_SESSION, **_HIDDEN, **_may(_SECRET, Attribute.DERIVE)}),
    Role.WRAP: Template({**_AES, **_IN_SESSION, **_HIDDEN, **_may(_SECRET, Attribute.WRAP)}),
    Role.CMAC: Template({**_AES, **_IN_SESSION, **_HIDDEN, **_may(_SECRET, Attribute.SIGN)}),
    Role.PROBE: Template(
        {**_AES, **_IN_SESSION, **_READABLE, **_may(_SECRET, Attribute.WRAP, Attribute.DERIVE, Attribute.SIGN)}
    ),
    # For K1, check values and probes: one encrypted public block, never a key that seals.
    Role.READABLE: Template({**_AES, **_IN_SESSION, **_READABLE, **_may(_SECRET)}),
}


def attributes(session: TokenSession, role: Role) -> dict[Attribute, Any]:
    """What a key of this role is made with on this session's module."""
    return session.dialect.known(TEMPLATES[role].attributes)


def template(session: TokenSession, role: Role, length: int) -> Attributes:
    """The same for a secret key of so many bytes, as C takes it."""
    return _template(TEMPLATES[role], session.dialect, length)


def verify_attributes(session: TokenSession, role: Role, key: Any, *, length: int = 0, field: str = "") -> None:
    """Read a key's attributes back and compare them with its role's template.

    Args:
        length: of a secret key, bytes.
        field: where the settings declare the key.

    Raises:
        ApplianceError: KEY_ATTRIBUTES_DIFFER, naming the attributes.
    """
    wrong = sorted(attribute.name for attribute in differences(session, role, key, length=length))
    if wrong:
        raise ApplianceError(
            Reason.KEY_ATTRIBUTES_DIFFER,
            f"The {role} reads back with other attributes than its template: {', '.join(wrong)}.",
            hint="Use a module or token profile that honours the template; make the key anew in a ceremony.",
            field=field,
            role=role.name,
            attributes=",".join(wrong),
        )


def differences(session: TokenSession, role: Role, key: Any, *, length: int = 0) -> dict[Attribute, tuple[Any, Any]]:
    """What a key reads back otherwise than its role's template, as (found, expected); found is None where not told."""
    row, dialect = TEMPLATES[role], session.dialect
    expected = _expected(row, dialect, length)
    found = session.read(key, expected.asked)
    wrong = {}
    if found != expected.packed:
        for attribute, value in expected.values.items():
            told = objects.unpacked(attribute, found[attribute]) if attribute in found else None
            if told != value:
                wrong[attribute] = (told, value)
    if row.origin and dialect.telling.isdisjoint(row.origin):  # nothing shows where it was born
        wrong.update((attribute, (None, value)) for attribute, value in row.origin.items())
    return wrong


class _Expected(NamedTuple):
    """What a key is to read back, and the room for it."""

    values: Mapping[Attribute, Any]
    packed: Mapping[Attribute, bytes]
    asked: Attributes


# Rows and dialects stay the same for every order, and so does what C takes of them.


@cache
def _expected(row: Template, dialect: Dialect, length: int) -> _Expected:
    values = dialect.readable({**row.attributes, **row.origin, **_length(length)})
    packed = {attribute: objects.packed(attribute, value) for attribute, value in values.items()}
    return _Expected(values, packed, Attributes.asking(values, max(map(len, packed.values()))))


@cache
def _template(row: Template, dialect: Dialect, length: int) -> Attributes:
    return Attributes.stating({**dialect.known(row.attributes), **_length(length)})


def _length(length: int) -> dict[Attribute, Any]:
    return {Attribute.VALUE_LEN: length} if length else {}
