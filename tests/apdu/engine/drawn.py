"""Orders and sessions of every kind, for hypothesis."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from appliance.apdu.engine import Order, Route
from appliance.apdu.scp03 import LEVELS, Mode, SecureChannel, SessionKeys, capacity
from appliance.domain.package import KeyType
from tests.apdu.card import Card

aids = st.binary(min_size=5, max_size=16)
key_sizes = st.sampled_from([16, 24, 32])
levels = st.sampled_from(LEVELS)
modes = st.sampled_from(Mode)
counters = st.integers(1, 0xFFFFFF)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def package(seed: bytes, size: int) -> bytes:
    """So many bytes, the seed's over and over."""
    return (seed * (size // len(seed) + 1))[:size]


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Orders that are right, with packages from one byte to the limit of 256 blocks."""
    mode, level = draw(modes), draw(levels)
    block, size, static = capacity(level, mode), draw(key_sizes), draw(st.booleans())
    edges = st.sampled_from([block - 1, block, block + 1, 2 * block])
    long = st.sampled_from([128 * block, 255 * block + 1, 256 * block])
    length = draw(st.one_of(*[st.integers(1, 600), edges, st.integers(1, 3000)] * 8, long))
    return Order(
        Route(draw(aids), draw(aids), draw(st.integers(0x01, 0x7F)), level, mode, draw(st.sampled_from(KeyType))),
        package(draw(st.binary(min_size=1, max_size=40)), length),
        draw(exactly(mode)),
        draw(exactly(mode) | counters if static else exactly(mode)),
        draw(exactly(size)),
        draw(exactly(size)),
        static,
    )


_numbers = st.integers(-2, 0x110) | st.sampled_from([-(2**70), -(2**31), 2**16 + 8, 2**32 + 8, 2**63, 2**70])
_octets = st.binary(max_size=40) | st.sampled_from([bytes(255)])
WRONG: dict[str, st.SearchStrategy[Any]] = {
    "ssd_aid": _octets,
    "applet_aid": _octets,
    "kvn": _numbers,
    "level": st.integers(-2, 0x7FFF),  # of others the engine does not look at the bit that says how long a block is
    "mode": _numbers,
    "key_type": _numbers,
    "package": st.just(b"") | st.integers(256 * 247, 0xFFFF).map(bytes),
    "host_challenge": _octets,
    "opening": _octets | _numbers,
    "enc": _octets,
    "mac": _octets,
    "static": st.booleans(),
}
"""What one field of an order is replaced with; by chance it may be right."""


def replaced(order: Order, field: str, value: Any) -> Order:
    """The order with another value in one of its fields, or its route's."""
    if field in Route._fields:
        return order._replace(route=order.route._replace(**{field: value}))
    return order._replace(**{field: value})


@st.composite
def faulty_orders(draw: st.DrawFn) -> Order:
    """Orders with something else in one or two of their fields."""
    order = draw(orders())
    for _ in range(draw(st.integers(1, 2))):
        field = draw(st.sampled_from(sorted(WRONG)))
        order = replaced(order, field, draw(WRONG[field]))
    return order


class Talk(NamedTuple):
    """A session: EXTERNAL AUTHENTICATE and wrapped commands, and the responses to these."""

    keys: SessionKeys
    level: int
    mode: Mode
    challenge: bytes
    commands: Sequence[bytes]
    responses: Sequence[bytes]


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    """Sessions with a card that protects its responses; in half of them something is changed on the way."""
    size, level, mode = draw(key_sizes), draw(levels), draw(modes)
    keys = SessionKeys(*(draw(exactly(size)) for _ in range(3)))
    host, card, challenge = SecureChannel(keys, level, mode), Card(keys, level, mode), draw(exactly(mode))
    commands, responses = [host.external_authenticate(challenge, challenge)], []
    card.receive(commands[0])
    for _ in range(draw(st.integers(1, 4))):
        data = draw(st.binary(max_size=capacity(level, mode)))
        command = host.wrap(b"\x80\xe2\x00\x00" + (bytes((len(data),)) + data if data else b""))
        card.receive(command)
        commands.append(command + draw(st.sampled_from([b"", b"\x00"])))
        responses.append(draw(_responses(card)))
    return Talk(keys, level, mode, challenge, commands, responses)


@st.composite
def _responses(draw: st.DrawFn, card: Card) -> bytes:
    sw = draw(st.sampled_from([b"\x90\x00", b"\x90\x00", b"\x62\x83", b"\x63\x10", b"\x69\x85", b"\x90\x01"]))
    data = draw(st.binary(max_size=230) | st.integers(231, 290).map(bytes))
    if not card.level & 0x10:
        return data + sw
    padding = draw(st.none() | st.binary(min_size=1, max_size=40)) if card.level & 0x20 else None
    response = bytearray(card.answer(data, sw, padding if (len(data) + len(padding or b"")) % 16 == 0 else None))
    change = draw(st.sampled_from(["", "", "", "bit", "cut", "alone", "plain"]))
    if change == "bit":
        response[draw(st.integers(0, len(response) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif change == "cut":
        del response[draw(st.integers(0, len(response) - 1)) :]
    return {"alone": sw, "plain": data + sw}.get(change, bytes(response))
