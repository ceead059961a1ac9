"""What a module's attributes are worth, learned from throwaway keys: modules differ in what they know and say.

An attribute that the module does not know is left out of templates. One of those that show a key's origin counts only
if it reads differently for a key that was born on the token and for one that was brought.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass

DISPENSABLE = (Attribute.COPYABLE, Attribute.VALUE_LEN)
"""What can be done without: COPYABLE came with PKCS#11 v2.40, and lengths are shown by check values too."""
ORIGIN = (Attribute.LOCAL, Attribute.ALWAYS_SENSITIVE, Attribute.NEVER_EXTRACTABLE)
"""True for a sensitive key that was generated on the token, false for one made from a value (v2.40, 4.7 and 5.7)."""
_BYTES = 16
_KEY = {
    Attribute.CLASS: ObjectClass.SECRET_KEY,
    Attribute.KEY_TYPE: KeyType.AES,
    Attribute.TOKEN: False,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
}


@dataclass(frozen=True)
class Dialect:
    """How this module deviates from the standard.

    Args:
        unknown: of `DISPENSABLE`: it does not know them.
        mute: of `ORIGIN`: not even true for a key that was born on the token.
        telling: of `ORIGIN`: true for a key that was born on the token and false for one that was brought.
    """

    unknown: frozenset[Attribute]
    mute: frozenset[Attribute]
    telling: frozenset[Attribute]

    def known(self, attributes: Mapping[Attribute, Any]) -> dict[Attribute, Any]:
        """What a key can be made with on this module."""
        return {attribute: value for attribute, value in attributes.items() if attribute not in self.unknown}

    def readable(self, attributes: Mapping[Attribute, Any]) -> dict[Attribute, Any]:
        """What a key can be expected to read back on this module."""
        return {attribute: value for attribute, value in self.known(attributes).items() if attribute not in self.mute}

    @property
    def deviations(self) -> tuple[str, ...]:
        """A phrase for each; none for a module that keeps to the standard."""
        unknown = (f"does not know CKA_{a.name}" for a in DISPENSABLE if a in self.unknown)
        not_telling = (f"does not tell by CKA_{a.name} where a key was born" for a in ORIGIN if a not in self.telling)
        return (*unknown, *not_telling)


def learn(call: Callable[..., Any], session: Any) -> Dialect:
    """Make one key on the token and bring another, compare what they say, and destroy both.

    Args:
        call: of a TokenSession.
        session: of python-pkcs11.

    Raises:
        ApplianceError: TOKEN_FAULT, also where the module refuses to make such keys.
    """
    born = _told(call, session.generate_key, KeyType.AES, _BYTES * 8, capabilities=MechanismFlag(0), template=_KEY)
    brought = _told(call, session.create_object, {**_KEY, Attribute.VALUE: bytes(range(_BYTES))})
    return Dialect(
        unknown=frozenset(a for a in DISPENSABLE if a not in born or a not in brought),
        mute=frozenset(a for a in ORIGIN if born.get(a) is not True),
        telling=frozenset(a for a in ORIGIN if born.get(a) is True and brought.get(a) is False),
    )


def _told(call: Callable[..., Any], make: Callable[..., Any], *arguments: Any, **options: Any) -> dict[Attribute, Any]:
    key = call("learn", make, *arguments, **options)
    found: dict[Attribute, Any] = call("learn", key.get_attributes, (*DISPENSABLE, *ORIGIN))
    call("learn", key.destroy)
    return found
