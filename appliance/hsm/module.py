"""The module, its token and one session: opening, login, and the one place where PKCS#11 errors become ours.

python-pkcs11 initialises a module for a single thread, so everything here belongs to one thread of one process.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pkcs11
from pkcs11 import Attribute, Mechanism, exceptions

from appliance.errors import ApplianceError, Reason
from appliance.hsm import cryptoki, dialect
from appliance.hsm.dialect import Dialect
from appliance.hsm.objects import Attributes, Key, Objects
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
# Return values that python-pkcs11 has no exception for, by what it says of them.
_UNNAMED = {
    "Unmapped error code 0x1b": "ActionProhibited",
    "Unmapped error code 0x68": "KeyFunctionNotPermitted",
    "Unmapped error code 0x140": "CurveNotSupported",
    "Unmapped error code 0x150": "BufferTooSmall",
    "Unmapped error code 0x190": "CryptokiNotInitialized",
    "Unmapped error code 0x191": "CryptokiAlreadyInitialized",
    "Buffer was too small. Should never see this.": "BufferTooSmall",
    "Initialisation error (not initialized). Should never see this.": "CryptokiNotInitialized",
    "Initialisation error (already initialized). Should never see this.": "CryptokiAlreadyInitialized",
}


class TokenSession:
    """A logged-in read-write session that is renewed after every PKCS#11 error.

    An error can leave a session in the middle of an operation for ever, and a session's end destroys its session
    objects: so no session outlives an error, and no key outlives its session.
    """

    def __init__(self, parameters: ModuleParameters, pin: str, stamp: Callable[[str], None]) -> None:
        """Open and log in.

        Raises:
            ApplianceError: SETTINGS_INVALID, TOKEN_ABSENT, TOKEN_CHANGED, PIN_REJECTED, TOKEN_FAULT.
        """
        self._parameters = parameters
        self._pin: str | None = pin
        self._stamp = stamp
        self._session: pkcs11.Session | None = None
        self._objects: Objects | None = None
        self._dialect: Dialect | None = None
        self.broken = False
        self._library = self.call("load", load, parameters)
        try:
            self.open()
        except BaseException:
            self.close()
            raise

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
    def _calls(self) -> Objects:
        """The calls on keys."""
        if self._objects is None:
            session: Any = self.raw  # its stub leaves `handle` out
            self._objects = Objects(self._parameters.path, session.handle)
        return self._objects

    @property
    def dialect(self) -> Dialect:
        """What the module's attributes are worth; learned with throwaway keys when first asked for."""
        if self._dialect is None:
            self._dialect = dialect.learn(self.call, self.raw)
        return self._dialect

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

    def derive(self, base: Any, mechanism: Mechanism, data: bytes | tuple[bytes, bytes], template: Attributes) -> Key:
        """A key made of encrypted data; for CBC with its IV in front."""
        return self.call("derive", self._calls.derive, base.handle, mechanism, data, template)

    def read(self, key: Any, asked: Attributes) -> dict[Attribute, bytes]:
        """A key's attributes, as far as the module gives them."""
        return self.call("read", self._calls.read, key.handle, asked)

    def sign(self, key: Any, mechanism: Mechanism, message: bytes, kind: str = "sign") -> bytes:
        """A signature or MAC by a mechanism without parameters."""
        return self.call(kind, self._calls.sign, key.handle, mechanism, message)

    def wrap(self, wrapping_key: Any, key: Any, mechanism: Mechanism) -> bytes:
        """A key wrapped under another one, by a mechanism without parameters."""
        return self.call("wrap", self._calls.wrap, wrapping_key.handle, key.handle, mechanism)

    def destroy(self, key: Any) -> None:
        """Destroy a session object; a broken session destroys all of its own when it is closed."""
        if not self.broken:
            self.call("destroy", self._calls.destroy, key.handle)

    def renew(self) -> None:
        """Initialise the module again (one that lost its token answers from stale tables until then) and log in."""
        self.close()
        self.call("load", cryptoki.reinitialize, self._parameters.path, self._library)
        self.open()

    def close(self) -> None:
        """End the session, with it every session object, and the module: left open, another thread would end it."""
        session, self._session = self._session, None
        self._objects = self._dialect = None
        try:
            self.call("close", self._leave, session)
        except ApplianceError as fault:
            log.info("closing a broken session: %s", fault.detail)
        self.broken = False

    def _leave(self, session: pkcs11.Session | None) -> None:
        try:
            if session is not None:
                session.close()
        finally:
            self._library.finalize()

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


def load(parameters: ModuleParameters) -> Any:
    """The PKCS#11 module of these parameters, loaded and initialised once in a process.

    Raises:
        ApplianceError: TOKEN_ABSENT; SETTINGS_INVALID for a module that cannot be used from here.
    """
    path, arguments = parameters.path, parameters.arguments
    try:
        library: Any = cryptoki.argued(path, arguments) if arguments else pkcs11.lib(path)
        library.initialize()
    except RuntimeError as error:  # PKCS11Error is one
        raise ApplianceError(
            Reason.TOKEN_ABSENT,
            f"The PKCS#11 module {path} cannot be loaded ({type(error).__name__}).",
            hint="Check module.path and module.arguments in appliance.toml and install the vendor's client.",
            field="module.path",
        ) from None
    if cryptoki.has_a_state_for_each_caller(path):
        raise ApplianceError(
            Reason.SETTINGS_INVALID,
            f"The PKCS#11 module {path} stands for others, as p11-kit's proxy does.",
            hint="Name the HSM's own module; what it wants of C_Initialize goes to module.arguments.",
            field="module.path",
        )
    return library


def token_fault(kind: str, error: exceptions.PKCS11Error) -> ApplianceError:
    """TOKEN_FAULT for a PKCS#11 error; carries its name, never its arguments."""
    name = error_name(error)
    return ApplianceError(
        Reason.TOKEN_FAULT,
        f"The HSM answered {name} to a {kind} call.",
        hint="Repeat the call with the same request_id; if it persists, look at the HSM.",
        call=kind,
        error=name,
    )


def error_name(error: exceptions.PKCS11Error) -> str:
    """What python-pkcs11 calls the error; for those that it has no name for, the standard's name or the number."""
    if type(error) is not exceptions.PKCS11Error:
        return type(error).__name__
    told = str(error)
    return _UNNAMED.get(told) or told.partition("Unmapped error code ")[2] or type(error).__name__
