"""The APDU engine: what `scp03` and `script` specify, in C (core.c), for many SIMs at once.

Only this module imports the extension, and there is nothing to fall back on: where it cannot be loaded, this says so.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from appliance.apdu.scp03 import Mode, SessionKeys
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason

try:
    import appliance.apdu.engine._native as _native  # so that what is missing is said plainly
except ImportError as missing:
    raise ApplianceError(
        Reason.INTERNAL,
        f"The APDU engine cannot be loaded ({missing}).",
        hint="Install the appliance anew with pip, on a machine with gcc, python3-dev, libssl-dev and pkg-config.",
    ) from None


class Form(IntEnum):
    """How a script is written."""

    COMMANDS = 0
    """Field `commands` of FetchScriptResponse (delivery.proto), in wire format: other fields can be put behind it."""
    TEXT = 1
    """One APDU in hex a line, ASCII, as scriptor plays it."""
    EXPANDED_DEFINITE = 2
    """Field `remote_scripts` of FetchScriptResponse, in wire format: templates AA (TS 102 226, 5.2.1)."""
    EXPANDED_INDEFINITE = 3
    """The same with templates AE."""


class Route(NamedTuple):
    """What the scripts of many SIMs have in common.

    Args:
        ssd_aid: 5..16 bytes, the security domain of the applet.
        applet_aid: 5..16 bytes, the applet that is personalised.
        kvn: of the channel's key set on the SIM, 01..7F.
        level: one of `scp03.LEVELS`.
        mode: S8 or S16.
        key_type: of the packages' keys; it says how many parts a receipt has.
    """

    ssd_aid: bytes
    applet_aid: bytes
    kvn: int
    level: int
    mode: Mode
    key_type: KeyType


class Order(NamedTuple):
    """One script.

    Args:
        route: where it goes.
        package: the whole E0 TLV.
        host_challenge: 8 bytes (S16: 16), fresh for each rendering.
        opening: the card's challenge, of the same length; or, with static keys, the sequence counter of which it
            follows, 1 to FFFFFF.
        enc, mac: S-ENC and S-MAC; or, with static keys, K-ENC and K-MAC. 16, 24 or 32 bytes, both the same.
        static: whether they are static keys.
    """

    route: Route
    package: bytes
    host_challenge: bytes
    opening: bytes | int
    enc: bytes
    mac: bytes
    static: bool = False

    def __repr__(self) -> str:
        return f"Order({self.route}, package of {len(self.package)} bytes)"


class Refusal(NamedTuple):
    """What a problem is called outside; the field is the problem's own name where none is given."""

    reason: Reason
    detail: str
    hint: str
    field: str = ""


_DECLARED: Final = "Compare with what the SIM issuer's settings declare."
_SESSION: Final = "Compare with the key set's protocol parameters; after a refusal the card needs a new session."
_KEY: Final = "Give an AES key of 16, 24 or 32 bytes; the keys of one channel are of one length."


def _scp03(detail: str, hint: str = _SESSION, field: str = "") -> Refusal:
    return Refusal(Reason.SCP03_INVALID, detail, hint, field)


REFUSALS: Final[Mapping[str, Refusal]] = {
    "enc": _scp03("S-ENC or K-ENC is no AES key.", _KEY),
    "mac": _scp03("S-MAC or K-MAC is no AES key, or not as long as its other key.", _KEY),
    "key_type": Refusal(Reason.KEY_TYPE_INVALID, "There is no such key type.", "Use a value of KeyType."),
    "mode": _scp03("The mode is neither S8 nor S16.", "Use 8 or 16."),
    "sequence_counter": _scp03("The sequence counter lies outside 1 to FFFFFF.", "Use one more than the SIM's last."),
    "ssd_aid": Refusal(Reason.AID_INVALID, "The security domain's AID has not 5 to 16 bytes.", _DECLARED),
    "applet_aid": Refusal(Reason.AID_INVALID, "The applet's AID has not 5 to 16 bytes.", _DECLARED),
    "channel_kvn": Refusal(Reason.KVN_INVALID, "The channel's key version number is not 01 to 7F.", _DECLARED),
    "package": Refusal(
        Reason.FIELD_INVALID,
        "The package is empty, or too long for one script.",
        "Deliver one SIM package, which makes a dozen STORE DATA blocks at most; 256 are possible.",
    ),
    "security_level": _scp03("The security level is none of 01, 03, 11, 13, 33."),
    "host_challenge": _scp03("The host challenge has not the mode's 8 or 16 bytes."),
    "card_challenge": _scp03("The card's challenge is not as long as the mode says."),
    "card_cryptogram": _scp03("The card's cryptogram does not verify."),
    "command": _scp03("A command of the session is not a wrapped one."),
    "response_length": _scp03("The response has no status word, or more than 256 bytes before it.", field="response"),
    "response_data": _scp03("Data came with an error status.", field="response"),
    "r_mac_missing": _scp03("The response has no R-MAC.", field="response"),
    "r_mac": _scp03("The R-MAC of the response does not verify.", field="response"),
    "r_enc_length": _scp03("The encrypted response is not of whole blocks.", field="response"),
    "r_enc_padding": _scp03("The padding of the decrypted response is not right.", field="response"),
    "key": _scp03("This is no AES key.", _KEY),
    "bits": _scp03("An AES key has not so many bits.", "Use 128, 192 or 256."),
    "kdd": _scp03("Key diversification data has 10 bytes.", "Use the EF.ICCID coding."),
}
"""What the extension means when it names a problem (PROBLEMS in core.c)."""


def render(orders: Sequence[Order], form: Form) -> list[bytes | ApplianceError]:
    """The scripts of a batch, in order; what is wrong with one order stands in its place and spoils no other.

    Other threads run meanwhile. A batch needs about 4 KB (TEXT: 9 KB) for each script.
    """
    return [answer if isinstance(answer, bytes) else _refused(answer) for answer in _native.render(orders, form)]


def render_one(order: Order, form: Form) -> bytes:
    """The script of one order.

    Raises:
        ApplianceError: what is wrong with it (`REFUSALS`).
    """
    return _made(_native.render((order,), form)[0])


def card_challenge(k_enc: bytes, sequence_counter: int, aid: bytes, mode: Mode) -> bytes:
    """As `scp03.card_challenge`.

    Raises:
        ApplianceError: SCP03_INVALID, AID_INVALID.
    """
    return _made(_native.card_challenge(k_enc, sequence_counter, aid, mode))


def derive_session_keys(k_enc: bytes, k_mac: bytes, host_challenge: bytes, card_challenge: bytes) -> SessionKeys:
    """As `scp03.derive_session_keys`.

    Raises:
        ApplianceError: SCP03_INVALID.
    """
    keys = _native.session_keys(k_enc, k_mac, host_challenge, card_challenge)
    if isinstance(keys, str):
        raise _refused(keys)
    return SessionKeys(*keys)


def verify_card_cryptogram(s_mac: bytes, host_challenge: bytes, card_challenge: bytes, cryptogram: bytes) -> None:
    """Returns only if the card's cryptogram is the one of `scp03.card_cryptogram`; compared in constant time.

    Raises:
        ApplianceError: SCP03_INVALID.
    """
    _made(_native.verify_card_cryptogram(s_mac, host_challenge, card_challenge, cryptogram))


def unwrap(
    keys: SessionKeys, level: int, mode: Mode, commands: Sequence[bytes], responses: Sequence[bytes]
) -> list[bytes | ApplianceError]:
    """Responses in plain, verified and decrypted as `scp03.SecureChannel.unwrap` does.

    Args:
        keys, level, mode: of the session.
        commands: EXTERNAL AUTHENTICATE and every wrapped command behind it, as they were sent.
        responses: to the commands behind EXTERNAL AUTHENTICATE, data and status word; as many as there are.

    Returns:
        The responses in plain; the first that is not right is an error, and the last of the list.
    """
    plain = _native.unwrap(keys.s_enc, keys.s_mac, keys.s_rmac, level, mode, commands, responses)
    return [answer if isinstance(answer, bytes) else _refused(answer) for answer in plain]


def kdf3(master: bytes, constant: int, kdd: bytes, bits: int) -> bytes:
    """As `scp03.kdf3`.

    Raises:
        ApplianceError: SCP03_INVALID.
    """
    return _made(_native.kdf3(master, constant, kdd, bits))


def kcv(key: bytes) -> bytes:
    """As `scp03.kcv`.

    Raises:
        ApplianceError: SCP03_INVALID.
    """
    return _made(_native.kcv(key))


def _made(answer: bytes | str) -> bytes:
    if isinstance(answer, str):
        raise _refused(answer)
    return answer


def _refused(problem: str) -> ApplianceError:
    refusal = REFUSALS[problem]
    return ApplianceError(refusal.reason, refusal.detail, hint=refusal.hint, field=refusal.field or problem)
