"""Every call of every operation fails; the codes are a few, `python -m tests.faults` has all."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from pkcs11 import Attribute

from appliance.hsm.keys import TEMPLATES, Role
from tests.shim import When

from .bench import Bench, bench
from .calls import Case, count, every, in_turn, run
from .codes import FEW
from .operations import OPERATIONS

WITH_EVERY_CODE = ("issue P-256", "session keys", "receipt", "false receipt")
WITH_CODES_IN_TURN = ("start-up", "renewal", "certificate request", "completion", "false completion")
"""What has too many calls, or the same as others."""


@pytest.fixture(scope="module")
def made(shim_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("bench"), shim_module) as made:
        yield made


@pytest.fixture
def of(made: Bench) -> Iterator[Bench]:
    """When its test is over nothing has grown."""
    made.ready()
    before = made.resources()
    yield made
    made.ready()
    assert made.resources() == before


def wrong(made: Bench, name: str, cases: Iterable[Case]) -> dict[Case, list[str]]:
    """What should not have happened, by case."""
    outcomes = {case: run(made, OPERATIONS[name], case).wrong for case in cases}
    assert outcomes
    return {case: found for case, found in outcomes.items() if found}


@pytest.mark.parametrize("code", FEW)
@pytest.mark.parametrize("name", WITH_EVERY_CODE)
def test_order_with_a_failing_call_ends_right_or_with_its_error_and_leaves_nothing(
    of: Bench, name: str, code: str
) -> None:
    calls = count(of, OPERATIONS[name])
    assert wrong(of, name, every(calls, [code])) == {}


@pytest.mark.parametrize("when", When)
@pytest.mark.parametrize("name", WITH_CODES_IN_TURN)
def test_longer_work_with_a_failing_call_ends_right_or_with_its_error_and_leaves_nothing(
    of: Bench, name: str, when: When
) -> None:
    calls = count(of, OPERATIONS[name])
    assert wrong(of, name, in_turn(calls, FEW, when)) == {}
    assert count(of, OPERATIONS[name]) == calls


@pytest.mark.parametrize("name", WITH_EVERY_CODE)
def test_order_from_a_call_on_without_an_hsm_ends_with_an_error_and_the_next_one_works(of: Bench, name: str) -> None:
    calls = count(of, OPERATIONS[name])
    assert wrong(of, name, every(calls, ["SessionHandleInvalid"], lasting=True)) == {}


NEEDED = {
    "session keys": {"C_DeriveKey": 2, "C_GetAttributeValue": 2, "C_SignInit": 4, "C_Sign": 4, "C_DestroyObject": 2},
    "receipt": {"C_DeriveKey": 1, "C_GetAttributeValue": 1, "C_SignInit": 1, "C_Sign": 1, "C_DestroyObject": 1},
    "completion": {"C_DeriveKey": 1, "C_GetAttributeValue": 1, "C_SignInit": 2, "C_Sign": 2, "C_DestroyObject": 1},
}
"""For each key one call that makes it, one that reads it back, one that ends it; for each MAC two."""


@pytest.mark.parametrize("name", NEEDED)
def test_order_makes_no_call_that_it_does_not_need(of: Bench, name: str) -> None:
    count(of, OPERATIONS[name])
    calls = of.shim.log()
    assert Counter(call.function for call in calls) == NEEDED[name]
    assert not any(call.query for call in calls)
    for read in (call for call in calls if call.function == "C_GetAttributeValue"):
        asked = {Attribute(attribute.type) for attribute in read.asked}
        assert asked == {*TEMPLATES[Role.CMAC].attributes, Attribute.VALUE_LEN}, "all that the key was made with"


@pytest.mark.parametrize("code", ["PinIncorrect", "PinLocked"])
def test_pin_that_is_refused_at_a_renewal_is_not_tried_again(of: Bench, code: str) -> None:
    renewal = OPERATIONS["renewal"]
    renewal.prepare(of)
    of.shim.clear_log()
    renewal.act(of)
    [login] = [n for n, call in enumerate(of.shim.log(), 1) if call.function == "C_Login"]
    outcome = run(of, renewal, Case(login, When.BEFORE, code))
    assert (outcome.told, outcome.wrong) == ("PIN_REJECTED", [])
