"""Scripts against the specification: orders of every kind, right and wrong, in both builds of the engine."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.apdu import engine
from appliance.apdu.engine import Form, Order, Route
from appliance.apdu.scp03 import LEVELS, Mode, capacity
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from tests.apdu.engine.core import Build
from tests.apdu.engine.drawn import faulty_orders, orders, package, replaced
from tests.apdu.engine.specified import specified, written

Builds = tuple[Build, Build]
forms = st.sampled_from(Form)
GOOD = Order(
    Route(bytes(range(9)), bytes(range(16)), 0x30, 0x33, Mode.S8, KeyType.RSA_2048),
    package(b"package", 2480),
    bytes(range(8)),
    7,
    bytes(range(16)),
    bytes(range(16, 32)),
    static=True,
)


def rendered(order: Order, form: Form) -> bytes | ApplianceError:
    """What the specification answers."""
    try:
        return written(specified(order), form)
    except ApplianceError as refusal:
        return refusal


def told(answer: bytes | ApplianceError) -> object:
    """What can be compared: the script, or why there is none and which field is at fault."""
    return (answer.reason, answer.field) if isinstance(answer, ApplianceError) else answer


@settings(max_examples=200)
@given(order=orders())
def test_script_is_the_one_that_the_specification_renders(builds: Builds, order: Order) -> None:
    script = specified(order)
    for form in Form:
        expected = told(written(script, form))
        if not isinstance(expected, bytes):  # longer than the length in front of a template AA can be
            assert form is Form.EXPANDED_DEFINITE
            assert len(order.package) > 240 * capacity(order.route.level, order.route.mode)
        for build in builds:
            assert [told(answer) for answer in build.render((order,), form)] == [expected]


@settings(max_examples=200)
@given(order=faulty_orders())
def test_what_the_specification_refuses_is_refused_alike(builds: Builds, order: Order) -> None:
    for form in Form:
        expected = told(rendered(order, form))
        for build in builds:
            assert [told(answer) for answer in build.render((order,), form)] == [expected]


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("level", LEVELS)
def test_package_ends_at_256_blocks(build: Build, level: int, mode: Mode, form: Form) -> None:
    limit = 256 * capacity(level, mode)
    order = replaced(replaced(GOOD, "level", level), "mode", mode)._replace(host_challenge=bytes(mode))
    for size in (1, limit, limit + 1):
        order = order._replace(package=package(b"\x00\x80block", size))
        (answer,) = build.render((order,), form)
        assert told(answer) == told(rendered(order, form))
    assert isinstance(answer, ApplianceError)
    assert (answer.reason, answer.field) == (Reason.FIELD_INVALID, "package")


@pytest.mark.parametrize(
    ("field", "value", "reason", "named"),
    [
        ("enc", bytes(15), Reason.SCP03_INVALID, "enc"),
        ("mac", bytes(24), Reason.SCP03_INVALID, "mac"),
        ("key_type", 4, Reason.KEY_TYPE_INVALID, "key_type"),
        ("mode", 7, Reason.SCP03_INVALID, "mode"),
        ("opening", 0, Reason.SCP03_INVALID, "sequence_counter"),
        ("opening", 2**64, Reason.SCP03_INVALID, "sequence_counter"),
        ("opening", b"", Reason.SCP03_INVALID, "card_challenge"),
        ("static", False, Reason.SCP03_INVALID, "card_challenge"),
        ("ssd_aid", bytes(4), Reason.AID_INVALID, "ssd_aid"),
        ("applet_aid", bytes(17), Reason.AID_INVALID, "applet_aid"),
        ("kvn", 0x80, Reason.KVN_INVALID, "channel_kvn"),
        ("package", b"", Reason.FIELD_INVALID, "package"),
        ("level", 0x31, Reason.SCP03_INVALID, "security_level"),
        ("host_challenge", bytes(16), Reason.SCP03_INVALID, "host_challenge"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_refusal_names_the_field(build: Build, field: str, value: object, reason: Reason, named: str) -> None:
    with pytest.raises(ApplianceError) as refused:
        build.render_one(replaced(GOOD, field, value), Form.COMMANDS)
    assert (refused.value.reason, refused.value.field) == (reason, named)
    assert refused.value.hint


@settings(max_examples=25)
@given(batch=st.lists(orders() | faulty_orders(), max_size=12), form=forms)
def test_item_of_a_batch_is_what_it_is_alone(batch: list[Order], form: Form) -> None:
    assert list(map(told, engine.render(batch, form))) == [told(rendered(order, form)) for order in batch]


def test_fault_in_one_item_spoils_no_other(build: Build) -> None:
    batch = [GOOD, replaced(GOOD, "kvn", 0), GOOD._replace(opening=8), replaced(GOOD, "ssd_aid", b"")]
    first, bad, third, worse = build.render(batch, Form.TEXT)
    assert (first, third) == (rendered(batch[0], Form.TEXT), rendered(batch[2], Form.TEXT))
    assert [told(bad), told(worse)] == [(Reason.KVN_INVALID, "channel_kvn"), (Reason.AID_INVALID, "ssd_aid")]
    assert build.render([], Form.TEXT) == []
