"""Calls of the engine as bytes, which call.c reads: for the driver (core.py), and as seeds of the fuzzer."""

from collections.abc import Iterable, Sequence
from enum import IntEnum

from appliance.apdu.engine import Form, Order
from appliance.apdu.scp03 import Mode, SessionKeys


class Kind(IntEnum):
    """The first byte of a call."""

    RENDER = 0
    CARD_CHALLENGE = 1
    SESSION_KEYS = 2
    CARD_CRYPTOGRAM = 3
    SESSION = 4
    KDF3 = 5
    KCV = 6


class Response(IntEnum):
    """What comes behind a command of a session: the bytes of a card; nothing; or what call.c protects as a card would,
    and spoils."""

    AS_IT_IS = 0
    NONE = 1
    SEALED = 2
    SPOILT = 3


_STATIC, _FROM_COUNTER = 0x01, 0x02
_NO_NUMBER = -1
"""What stands for a negative or large number, as in module.c."""


def render(order: Order, form: Form, pattern: bytes | None = None) -> bytes:
    """A script. With `pattern`, repeated as long as the package, in place of the package."""
    route, opening = order.route, order.opening
    flags = _STATIC * order.static | _FROM_COUNTER * isinstance(opening, int)
    repeated = order.package if pattern is None else pattern
    return b"".join(
        (
            bytes((Kind.RENDER, form, flags)),
            *map(_short, (route.ssd_aid, route.applet_aid)),
            *map(_number, (route.kvn, route.level, route.mode, route.key_type)),
            _short(order.host_challenge),
            _counter(opening) if isinstance(opening, int) else _short(opening),
            *map(_short, (order.enc, order.mac)),
            len(order.package).to_bytes(2, "big"),
            _long(repeated),
        )
    )


def card_challenge(k_enc: bytes, sequence_counter: int, aid: bytes, mode: int) -> bytes:
    return bytes((Kind.CARD_CHALLENGE,)) + _short(k_enc) + _counter(sequence_counter) + _short(aid) + _number(mode)


def session_keys(*four: bytes) -> bytes:
    """K-ENC, K-MAC, the host's challenge, the card's."""
    return bytes((Kind.SESSION_KEYS,)) + b"".join(map(_short, four))


def card_cryptogram(*four: bytes) -> bytes:
    """S-MAC, the host's challenge, the card's, its cryptogram."""
    return bytes((Kind.CARD_CRYPTOGRAM,)) + b"".join(map(_short, four))


def session(
    keys: SessionKeys, level: int, mode: int, authenticate: bytes, steps: Iterable[tuple[int, bytes, bytes]]
) -> bytes:
    """A session of EXTERNAL AUTHENTICATE and steps: a kind of response, the command, the response."""
    head = bytes((Kind.SESSION,)) + b"".join(map(_short, (keys.s_enc, keys.s_mac, keys.s_rmac)))
    said = b"".join(
        bytes((kind,)) + _long(command) + (b"" if kind == Response.NONE else _long(response))
        for kind, command, response in steps
    )
    return head + _number(level) + _number(mode) + _long(authenticate) + said


def unwrap(keys: SessionKeys, level: int, mode: Mode, commands: Sequence[bytes], responses: Sequence[bytes]) -> bytes:
    """A session as the engine's `unwrap` takes it."""
    steps = ((Response.AS_IT_IS, *pair) for pair in zip(commands[1:], responses, strict=False))
    return session(keys, level, mode, commands[0], steps)


def kdf3(master: bytes, constant: int, kdd: bytes, bits: int) -> bytes:
    return bytes((Kind.KDF3,)) + _short(master) + bytes((constant,)) + _short(kdd) + _number(bits)


def kcv(key: bytes) -> bytes:
    return bytes((Kind.KCV,)) + _short(key)


def _short(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def _long(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def _number(value: int, size: int = 2) -> bytes:
    fits = 0 <= value < 1 << 8 * size - 1
    return (value if fits else _NO_NUMBER).to_bytes(size, "big", signed=True)


def _counter(value: int) -> bytes:
    return _number(value, 8)
