"""The module, its token and one session: opening, login, and the one place where PKCS#11 errors become ours.

python-pkcs11 initialises a module for a single thread, so everything here belongs to one thread of one process.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import pkcs11
from pkcs11 import Attribute, exceptions

from appliance.errors import ApplianceError, Reason
from appliance.hsm.orders import ModuleParameters, TokenDescription

log = logging.getLogger(__name__)
T = TypeVar("T")

_PIN_ERRORS = (
    exceptions.PinIncorrect,
    exceptions.PinLocked,
    exceptions.PinInvalid,
    exceptions.PinLenRange,
    exceptions.PinExpired,
    exceptions.UserPinNotInitialized,
)


class TokenSession:
    """A logged-in read-write session that is renewed after every PKCS#11 error.

    An error can leave a session in the middle of an operation for ever, and a session's end destroys its session
    objects: so no session outlives an error, and no key outlives its session.
    """

    def __init__(self, parameters: ModuleParameters, pin: str, stamp: Callable[[str], None]) -> None:
        """Open and log in.

        Raises:
            ApplianceError: TOKEN_ABSENT, TOKEN_CHANGED, PIN_REJECTED, TOKEN_FAULT.
        """
        self._parameters = parameters
        self._pin: str | None = pin
        self._stamp = stamp
        self._session: pkcs11.Session | None = None
        self.broken = False
        self._library = self.call("load", load, parameters.path)
        self.open()

    def __repr__(self) -> str:
        return f"TokenSession({self._parameters!r})"

    def open(self) -> None:
        """Find the token by its label, compare its serial number, and log in; a PIN once refused is forgotten."""
        if self._pin is None:
            raise self._pin_rejected("it was refused before and is not tried again")
        token = self.call("find", self._find_token)
        serial = token.serial.decode("ascii", "replace").strip()
        if self._parameters.token_serial and serial != self._parameters.token_serial:
            raise ApplianceError(
                Reason.TOKEN_CHANGED,
                f"Token {self._parameters.token_label} has serial number {serial}, "
                f"not {self._parameters.token_serial}.",
                hint="Set module.token_serial after a ceremony that replaced the token; otherwise find out who did.",
                field="module.token_serial",
                serial=serial,
            )
        self._stamp("login")
        try:
            self._session = token.open(rw=True, user_pin=self._pin)
        except _PIN_ERRORS as error:
            self._pin = None
            raise self._pin_rejected(type(error).__name__) from None
        except exceptions.PKCS11Error as error:
            raise token_fault("login", error) from None
        finally:
            self._stamp("")
        library = self._library
        self.description = TokenDescription(
            f"{library.manufacturer_id} {library.library_description} {'.'.join(map(str, library.library_version))}",
            self._parameters.token_label,
            serial,
        )

    def _find_token(self) -> pkcs11.Token:
        tokens: list[pkcs11.Token] = list(self._library.get_tokens(token_label=self._parameters.token_label))
        if len(tokens) != 1:
            raise ApplianceError(
                Reason.TOKEN_ABSENT,
                f"The module shows {len(tokens)} tokens labelled {self._parameters.token_label}; one is expected.",
                hint="Check module.token_label, the module's own settings, and that the HSM is reachable.",
                field="module.token_label",
            )
        return tokens[0]

    def _pin_rejected(self, why: str) -> ApplianceError:
        return ApplianceError(
            Reason.PIN_REJECTED,
            f"Token {self._parameters.token_label} refused the PIN ({why}).",
            hint="Find the right PIN before starting again: a token locks after a few wrong ones.",
        )

    @property
    def raw(self) -> pkcs11.Session:
        """The session itself; calls on it and its objects go through `call`."""
        if self._session is None:
            raise RuntimeError("the session is closed: renew() comes first")
        return self._session

    @property
    def is_open(self) -> bool:
        """Whether there is a session to work with."""
        return self._session is not None

    def call(self, kind: str, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """One piece of module work, stamped with its kind.

        Raises:
            ApplianceError: TOKEN_FAULT for a PKCS#11 error; the session is broken from then on.
        """
        self._stamp(kind)
        try:
            return function(*arguments, **options)
        except exceptions.PKCS11Error as error:
            self.broken = True
            fault = token_fault(kind, error)
        finally:
            self._stamp("")
        raise fault  # outside the handler: the error's frames, with their arguments and open searches, end here

    def destroy(self, key: Any) -> None:
        """Destroy a session object; a broken session destroys all of its own when it is closed."""
        if not self.broken:
            self.call("destroy", key.destroy)

    def renew(self) -> None:
        """Initialise the module again (one that lost its token answers from stale tables until then) and log in."""
        self.close()
        self.call("load", self._library.reinitialize)
        self.open()

    def close(self) -> None:
        """End the session and with it every session object; where that fails, end the module, and all with it."""
        session, self._session = self._session, None
        if session is not None:
            try:
                self.call("close", session.close)
            except ApplianceError as fault:
                log.info("closing a broken session: %s", fault.detail)
                with suppress(ApplianceError):
                    self.call("close", self._library.finalize)
        self.broken = False

    def find(self, template: Mapping[Attribute, Any], label: str, *, field: str = "") -> Any:
        """The one object of this class, type and label.

        Args:
            field: where the settings declare the label.

        Raises:
            ApplianceError: KEY_MISSING where there is none or more than one.
        """
        found = self.find_all({**template, Attribute.LABEL: label})
        if len(found) != 1:
            raise ApplianceError(
                Reason.KEY_MISSING,
                f"The token has {len(found)} keys labelled {label} of the expected type; one is needed.",
                hint="Make it in a ceremony, or correct the label in the settings.",
                field=field,
                label=label,
            )
        return found[0]

    def find_all(self, template: Mapping[Attribute, Any]) -> list[Any]:
        """Every object that matches."""
        return self.call("find", lambda: list(self.raw.get_objects(dict(template))))


def load(path: str) -> Any:
    """The PKCS#11 module of this path, loaded and initialised once in a process.

    Raises:
        ApplianceError: TOKEN_ABSENT.
    """
    try:
        return pkcs11.lib(path)
    except RuntimeError as error:  # PKCS11Error is one
        raise ApplianceError(
            Reason.TOKEN_ABSENT,
            f"The PKCS#11 module {path} cannot be loaded ({type(error).__name__}).",
            hint="Check module.path in appliance.toml and install the vendor's client.",
            field="module.path",
        ) from None


def token_fault(kind: str, error: exceptions.PKCS11Error) -> ApplianceError:
    """TOKEN_FAULT for a PKCS#11 error; carries its name, never its arguments."""
    return ApplianceError(
        Reason.TOKEN_FAULT,
        f"The HSM answered {type(error).__name__} to a {kind} call.",
        hint="Repeat the call with the same request_id; if it persists, look at the HSM.",
        call=kind,
        error=type(error).__name__,
    )
