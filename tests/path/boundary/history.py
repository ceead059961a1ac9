"""The life of every key of a call log: how it was made, what it was used for, how it ended."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from pkcs11 import Attribute, ObjectClass

from tests.shim import AttributeIn, Call

MAKING: Final = {
    # Function: the answered handles, each with the template that it was made from.
    "C_CreateObject": {"object": "templ"},
    "C_GenerateKey": {"key": "templ"},
    "C_GenerateKeyPair": {"public_key": "public_key_template", "private_key": "private_key_template"},
    "C_DeriveKey": {"key": "templ"},
    "C_UnwrapKey": {"key": "templ"},
    "C_CopyObject": {"new_object": "templ"},
}
"""Every function of PKCS#11 v2.40 that makes an object."""
CAPABILITIES: Final = (
    Attribute.ENCRYPT,
    Attribute.DECRYPT,
    Attribute.WRAP,
    Attribute.UNWRAP,
    Attribute.SIGN,
    Attribute.SIGN_RECOVER,
    Attribute.VERIFY,
    Attribute.VERIFY_RECOVER,
    Attribute.DERIVE,
)
SECRET_VALUES: Final = frozenset(
    {
        Attribute.VALUE,
        Attribute.PRIVATE_EXPONENT,
        Attribute.PRIME_1,
        Attribute.PRIME_2,
        Attribute.EXPONENT_1,
        Attribute.EXPONENT_2,
        Attribute.COEFFICIENT,
    }
)


@dataclass(eq=False)
class Key:
    """One object of one process.

    Attributes:
        made: the call that made it, or the one that found it on the token.
        template: what it was made from, or what was looked for.
        base: what it was derived from.
        uses: calls that named it, each with the parameter that did.
        ended: the call that destroyed it, closed its session or ended the module.
    """

    made: Call
    template: Mapping[int, AttributeIn]
    base: "Key | None" = None
    uses: list[tuple[Call, str]] = field(default_factory=list)
    ended: Call | None = None

    @property
    def found(self) -> bool:
        """It was on the token before."""
        return self.made.function == "C_FindObjects"

    @property
    def label(self) -> str:
        """Under which it was looked for or made."""
        stated = self.template.get(Attribute.LABEL)
        return (stated.value or b"").decode() if stated else ""

    @property
    def kind(self) -> ObjectClass:
        """CKA_CLASS."""
        return ObjectClass(int.from_bytes(self.template[Attribute.CLASS].value or b"", "little"))

    def states(self, attribute: Attribute, value: bool) -> bool:
        """Whether the template states this value."""
        stated = self.template.get(attribute)
        return stated is not None and stated.value == bytes([value])

    @property
    def may(self) -> set[Attribute]:
        """The capabilities that the template gives."""
        return {capability for capability in CAPABILITIES if self.states(capability, True)}

    @property
    def wrappings(self) -> list[Call]:
        """The calls that took it out of the token, or tried."""
        return [call for call, parameter in self.uses if (call.function, parameter) == ("C_WrapKey", "key")]

    def __str__(self) -> str:
        return f"{self.made.function} {self.made.sequence} of process {self.made.pid}"


class History:
    """What every process did, call by call, and every key of it."""

    def __init__(self, log: Iterable[Call]) -> None:
        self.calls: tuple[Call, ...] = tuple(log)
        self.keys: list[Key] = []
        self._named: dict[tuple[int, str], Key] = {}
        self._alive: dict[tuple[int, int], Key] = {}
        self._sought: dict[tuple[int, int | None], Mapping[int, AttributeIn]] = {}
        for call in self.calls:
            self._take(call)

    def made(self) -> Iterator[Key]:
        """Every key that was not on the token before."""
        return (key for key in self.keys if not key.found)

    def by_process(self) -> dict[int, list[Call]]:
        """The calls of each process, in their order."""
        calls: dict[int, list[Call]] = defaultdict(list)
        for call in self.calls:
            calls[call.pid].append(call)
        return calls

    def key(self, call: Call, parameter: str) -> Key | None:
        """The key that a call named so."""
        return self._named.get((id(call), parameter))

    def _take(self, call: Call) -> None:
        for parameter, handle in call.objects.items():
            if key := self._alive.get((call.pid, handle)):
                key.uses.append((call, parameter))
                self._named[id(call), parameter] = key
        if call.function == "C_FindObjectsInit":
            self._sought[call.pid, call.session] = _template(call, "templ")
        for handle in call.found:
            if (call.pid, handle) not in self._alive:
                self._add(call, handle, self._sought[call.pid, call.session])
        for parameter, template in MAKING.get(call.function, {}).items():
            if handle := call.made.get(parameter, 0):
                base = self._alive.get((call.pid, call.objects.get("base_key", 0)))
                self._add(call, handle, _template(call, template), base)
        if call.real == 0:
            self._end(call)

    def _add(self, call: Call, handle: int, template: Mapping[int, AttributeIn], base: Key | None = None) -> None:
        key = self._alive[call.pid, handle] = Key(call, template, base)
        self.keys.append(key)

    def _end(self, call: Call) -> None:
        match call.function:
            case "C_DestroyObject":
                ended = {(call.pid, call.objects["object"])}
            case "C_CloseSession":
                ended = {at for at, key in self._alive.items() if _of(key, call) and key.made.session == call.session}
            case "C_CloseAllSessions" | "C_Finalize":
                ended = {at for at, key in self._alive.items() if _of(key, call)}
            case _:
                return
        for at in ended:
            if key := self._alive.pop(at, None):
                key.ended = call


def _of(key: Key, call: Call) -> bool:
    return key.made.pid == call.pid


def _template(call: Call, parameter: str) -> dict[int, AttributeIn]:
    return {attribute.type: attribute for attribute in call.templates.get(parameter, ())}
