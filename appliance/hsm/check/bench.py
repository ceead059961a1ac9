"""What one attempt works with: throwaway session keys of the real roles' templates, gone when it ends."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

import pkcs11
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.cmac import CMAC
from pkcs11 import Attribute, Mechanism, MechanismFlag, ObjectClass, _pkcs11
from pkcs11.constants import DEFAULT

from appliance.domain.package import KeyType
from appliance.errors import ApplianceError
from appliance.hsm import pairs
from appliance.hsm.check import foreign
from appliance.hsm.derive import ZERO_BLOCK
from appliance.hsm.keys import TEMPLATES, Role, attributes
from appliance.hsm.module import TokenSession

T = TypeVar("T")
ATTACK: Final = "attack"
ATTACK_CALLS: Final = (ATTACK, "wrap")
"""Kinds of the calls that make up an attack; an error in any other call is one of its set-up."""

PARAMETERS: Final = {Mechanism.AES_CBC: ZERO_BLOCK, Mechanism.AES_CBC_PAD: ZERO_BLOCK}
"""What mechanisms take that want a parameter."""


class Bench:
    """A session for one attempt. Every key made here is a session object; `value` is that of each secret key."""

    def __init__(self, session: TokenSession) -> None:
        self.session = session
        self.value = os.urandom(32)
        self._kept: list[Any] = []

    def clear(self) -> None:
        """Destroy what was made; after an error the end of the session does."""
        for key in reversed(self._kept):
            with suppress(ApplianceError):
                self.session.destroy(key)

    def log_out(self) -> None:
        """End this process's login, in every session; the next attempt's session is a new one."""
        self.session.call("logout", self.session.raw.close)
        self.session.broken = True

    def attack(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """A call that the attack consists of."""
        return self.session.call(ATTACK, function, *arguments, **options)

    def keep(self, key: Any) -> Any:
        """A key that the attempt made, to be destroyed with it."""
        self._kept.append(key)
        return key

    def secret(self, role: Role, *, value: bytes = b"", kind: str = "create", **changes: Any) -> Any:
        """A secret key of a role's template, but not on the token.

        Args:
            value: instead of the bench's own.
            kind: ATTACK where making it is part of the attack.
            changes: attributes by name that differ from the template.
        """
        template = self.template(role, **changes) | {Attribute.VALUE: value or self.value}
        return self.keep(self.session.call(kind, self.session.raw.create_object, template))

    def template(self, role: Role, **changes: Any) -> dict[Attribute, Any]:
        """A role's template as this module knows it, but not on the token."""
        return {**attributes(self.session, role), Attribute.TOKEN: False, **named(changes)}

    @property
    def key_type(self) -> KeyType:
        """Of private keys: the quick one, if the module has it."""
        offered = self.session.call("probe", self.session.raw.token.slot.get_mechanisms)
        return KeyType.EC_P256 if Mechanism.EC_KEY_PAIR_GEN in offered else KeyType.RSA_2048

    def pair(self, role: Role, key_type: KeyType | None = None, **changes: Any) -> tuple[Any, bytes]:
        """A private key of a role's template, but not on the token, and its SubjectPublicKeyInfo.

        One that is brought, if it is an RSA key; any other is made.
        """
        chosen = key_type or self.key_type
        if chosen is KeyType.RSA_2048:
            brought, spki = foreign.private_key(chosen)
            template = brought | self.template(role, **changes)
            return self.keep(self.session.call("create", self.session.raw.create_object, template)), spki
        differing = {Attribute.TOKEN: False, **named(changes)}
        public, private = pairs.generate(self.session, chosen, role, changes=differing)
        self.keep(public)
        return self.keep(private), pairs.spki(self.session, chosen, public)

    def key(self, role: Role) -> Any:
        """A key of a role's template, whatever class it is of."""
        private = TEMPLATES[role].attributes[Attribute.CLASS] is ObjectClass.PRIVATE_KEY
        return self.pair(role)[0] if private else self.secret(role)

    def derive(
        self,
        parent: Any,
        mechanism: Mechanism,
        parameter: Any,
        role: Role,
        bits: int,
        key_type: pkcs11.KeyType = pkcs11.KeyType.AES,
        **changes: Any,
    ) -> Any:
        """A key derived from `parent`, as part of the attack."""
        template = self.template(role, **changes) | {Attribute.KEY_TYPE: key_type}
        key = self.attack(
            unbound(parent).derive_key,
            key_type,
            bits,
            mechanism=mechanism,
            mechanism_param=parameter,
            capabilities=MechanismFlag(0),
            template=template,
        )
        return self.keep(key)

    def wrap(self, key: Any, target: Any, mechanism: Mechanism) -> bytes:
        """A key wrapped under another, as part of the attack."""
        if mechanism not in PARAMETERS:
            return self.session.wrap(key, target, mechanism)
        parameter = PARAMETERS[mechanism]
        return bytes(self.attack(unbound(key).wrap_key, target, mechanism=mechanism, mechanism_param=parameter))

    def unwrap(self, key: Any, wrapped: bytes, mechanism: Mechanism, template: Mapping[Attribute, Any]) -> Any:
        """A key unwrapped with just these attributes, as part of the attack."""
        stated = dict.fromkeys(_UNWRAP_DEFAULTS, DEFAULT) | {Attribute.TOKEN: False, **template}
        made = self.attack(
            unbound(key).unwrap_key,
            ObjectClass(template[Attribute.CLASS]),
            pkcs11.KeyType(template[Attribute.KEY_TYPE]),
            wrapped,
            mechanism=mechanism,
            mechanism_param=PARAMETERS.get(mechanism),
            capabilities=MechanismFlag(0),
            template=stated,
        )
        return self.keep(made)

    def encrypt(self, key: Any, data: bytes, mechanism: Mechanism) -> bytes:
        """As part of the attack."""
        parameter = PARAMETERS.get(mechanism)
        return bytes(self.attack(unbound(key).encrypt, data, mechanism=mechanism, mechanism_param=parameter))

    def decrypt(self, key: Any, data: bytes, mechanism: Mechanism) -> bytes:
        """As part of the attack."""
        parameter = PARAMETERS.get(mechanism)
        return bytes(self.attack(unbound(key).decrypt, data, mechanism=mechanism, mechanism_param=parameter))

    def sign(self, key: Any, message: bytes, mechanism: Mechanism) -> bytes:
        """As part of the attack."""
        return bytes(self.attack(unbound(key).sign, message, mechanism=mechanism))

    def read(self, key: Any, attribute: Attribute) -> Any:
        """An attribute's value, as part of the attack."""
        return self.attack(key.__getitem__, attribute)


_UNWRAP_DEFAULTS: Final = (
    Attribute.ENCRYPT,
    Attribute.DECRYPT,
    Attribute.WRAP,
    Attribute.UNWRAP,
    Attribute.SIGN,
    Attribute.VERIFY,
    Attribute.DERIVE,
    Attribute.ID,
    Attribute.LABEL,
)
"""What python-pkcs11 would state by itself, also where the class of key has no such attribute."""


def named(changes: dict[str, Any]) -> dict[Attribute, Any]:
    """Attributes by their names."""
    return {Attribute[name]: value for name, value in changes.items()}


def cmac(key: bytes, message: bytes) -> bytes:
    """AES-CMAC by software, to compare with."""
    mac = CMAC(algorithms.AES(key))
    mac.update(message)
    return mac.finalize()


def unbound(key: Any) -> Any:
    """The same key with every call there is: python-pkcs11 hides those that its attributes rule out."""
    return type("Unbound", (type(key), *_CALLS), {})(key.wrapper)


_native: Any = _pkcs11  # its stub leaves these out
_CALLS: Final = (
    _native.EncryptMixin,
    _native.DecryptMixin,
    _native.SignMixin,
    _native.WrapMixin,
    _native.UnwrapMixin,
    _native.DeriveMixin,
)
