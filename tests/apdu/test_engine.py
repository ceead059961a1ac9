"""The engine against the specification: the recorded sessions, and orders of every kind."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.apdu import engine
from appliance.apdu.engine import Form, Order
from appliance.errors import ApplianceError
from tests.apdu.specified import orders, specified, written


@settings(max_examples=300)
@given(orders(faults=True), st.sampled_from(Form))
def test_what_the_specification_refuses_is_refused_alike(order: Order, form: Form) -> None:
    try:
        expected = written(specified(order), form)
    except ApplianceError as refusal:
        with pytest.raises(ApplianceError) as caught:
            engine.render_one(order, form)
        assert (caught.value.reason, caught.value.field) == (refusal.reason, refusal.field)
    else:
        assert engine.render_one(order, form) == expected
