"""What the engine must answer, by the readable Python of `scp03`, `script` and `expanded`; and orders for it."""

from hypothesis import strategies as st

from appliance.apdu import scp03, script
from appliance.apdu.engine import Form, Order, Route
from appliance.apdu.expanded import Coding, command_template
from appliance.apdu.scp03 import LEVELS, Mode, SessionKeys, capacity
from appliance.api.v1 import delivery_pb2
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason

CODINGS = {Form.EXPANDED_DEFINITE: Coding.DEFINITE, Form.EXPANDED_INDEFINITE: Coding.INDEFINITE}


def specified(order: Order) -> script.Script:
    """The script of an order.

    Raises:
        ApplianceError: what is wrong with it.
    """
    route, keys, card = order.route, SessionKeys(order.enc, order.mac, b""), order.opening
    _check_keys(order)
    if order.static:
        if isinstance(card, int):
            card = scp03.card_challenge(order.enc, card, route.ssd_aid, route.mode)
        keys = scp03.derive_session_keys(order.enc, order.mac, order.host_challenge, card)
    assert isinstance(card, bytes)
    channel = script.Channel(route.ssd_aid, route.kvn, keys, order.host_challenge, card, route.level, route.mode)
    return script.render(order.package, route.key_type, route.applet_aid, channel)


def written(rendered: script.Script, form: Form) -> bytes:
    """A script in one of the forms."""
    if form is Form.TEXT:
        return rendered.text().encode()
    answer = delivery_pb2.FetchScriptResponse()
    if form is Form.COMMANDS:
        for command in rendered.commands:
            answer.commands.add(apdu=command.apdu, expected_status_words=command.expected_sw, purpose=command.purpose)
    else:
        for part in rendered.parts:
            try:
                template = command_template((command.apdu for command in part.addressed), CODINGS[form])
            except ValueError:  # longer than a TLV can be
                raise ApplianceError(Reason.FIELD_INVALID, "too long", hint="", field="package") from None
            answer.remote_scripts.add(application_aid=part.aid, template=template)
    return answer.SerializeToString(deterministic=True)


def _check_keys(order: Order) -> None:
    """What the specification leaves to its cipher library, and what its types leave out."""
    for field, key, other in (("enc", order.enc, order.enc), ("mac", order.mac, order.enc)):
        if len(key) not in (16, 24, 32) or len(key) != len(other):
            raise ApplianceError(Reason.SCP03_INVALID, "a key", hint="", field=field)
    if order.static and isinstance(order.opening, int) and not 1 <= order.opening <= 0xFFFFFF:
        raise ApplianceError(Reason.SCP03_INVALID, "a counter", hint="", field="sequence_counter")


aids = st.binary(min_size=5, max_size=16)


@st.composite
def orders(draw: st.DrawFn, *, faults: bool = False) -> Order:
    """Orders of every kind, with packages from one byte to the limit; with `faults`, wrong lengths and numbers too."""
    mode = draw(st.sampled_from(Mode))
    level = draw(st.sampled_from([*LEVELS, 0x00, 0x02, 0x31] if faults else LEVELS))
    limit = 256 * capacity(level, mode)
    edges = st.sampled_from([0, 1, capacity(level, mode), capacity(level, mode) + 1, limit, limit + 1])
    size = draw(st.integers(0 if faults else 1, 3000) | edges)
    if not faults:
        size = max(1, min(size, limit))
    seed = draw(st.binary(min_size=1, max_size=16))
    wrong = st.binary(max_size=40)
    challenge = st.binary(min_size=mode, max_size=mode)
    length = draw(st.sampled_from([16, 24, 32]))
    key = st.binary(min_size=length, max_size=length)
    any_aid, any_challenge, any_key = ((kind | wrong if faults else kind) for kind in (aids, challenge, key))
    static = draw(st.booleans())
    counter = st.integers(-1, 2**70) | st.integers(1, 0xFFFFFF) if faults else st.integers(1, 0xFFFFFF)
    return Order(
        Route(
            draw(any_aid),
            draw(any_aid),
            draw(st.integers(-1, 300) if faults else st.integers(1, 0x7F)),
            level,
            mode,
            draw(st.sampled_from(KeyType)),
        ),
        (seed * (size // len(seed) + 1))[:size],
        draw(any_challenge),
        draw(any_challenge | counter if static else any_challenge),
        draw(any_key),
        draw(any_key),
        static,
    )
