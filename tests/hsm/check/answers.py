"""Sessions on a real token whose answers to an attack are replaced: no module at hand gives all of them."""

from collections.abc import Callable
from typing import Any

from pkcs11 import Attribute, exceptions

from appliance.hsm.check.bench import ATTACK_CALLS
from appliance.hsm.module import TokenSession
from tests.hsm.site import PIN, Calls, Site


class FakeAnswers(TokenSession):
    """Answers the calls that an attack consists of in its own way; set-up and everything else is real."""

    kinds: tuple[str, ...] = ATTACK_CALLS

    def __init__(self, site: Site) -> None:
        super().__init__(site.module, PIN, Calls())

    def call(self, kind: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if kind not in self.kinds:
            return super().call(kind, function, *arguments, **options)
        return super().call(kind, self.answer, function, *arguments, **options)

    def answer(self, *arguments: Any, **options: Any) -> Any:
        """What a call is answered: the function and its arguments."""
        raise NotImplementedError


class FakeRefusals(FakeAnswers):
    """Answers one error to calls of these kinds."""

    def __init__(self, site: Site, error: exceptions.PKCS11Error, kinds: tuple[str, ...] = ATTACK_CALLS) -> None:
        self._error = error
        self.kinds = kinds
        super().__init__(site)

    def answer(self, *_arguments: Any, **_options: Any) -> Any:
        raise self._error


class FakeNonsense(FakeAnswers):
    """Does everything, and answers other values than the true ones: an attack that is only told that it worked."""

    def answer(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        true = function(*arguments, **options)
        match true:
            case bool():
                return not true
            case int():
                return true + 1
            case bytes():
                return bytes(byte ^ 0x55 for byte in true)
        return true


class FakeObedience(FakeAnswers):
    """Says yes to every change of an attribute, and tells it from then on."""

    def __init__(self, site: Site) -> None:
        self._said: dict[tuple[int, Attribute], Any] = {}
        super().__init__(site)

    def answer(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        name = getattr(function, "__name__", "")
        if name == "__setitem__":
            attribute, value = arguments
            self._said[self._handle(function), attribute] = value
            return None
        if name == "__getitem__" and (told := (self._handle(function), arguments[0])) in self._said:
            return self._said[told]
        return function(*arguments, **options)

    @staticmethod
    def _handle(method: Any) -> int:
        return int(method.__self__.handle)


class FakeLogout(TokenSession):
    """Says that it has logged out, and has not."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.module, PIN, Calls())

    def call(self, kind: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return None if kind == "logout" else super().call(kind, function, *arguments, **options)
