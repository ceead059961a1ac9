"""The life of an issuance is its table; the counter never goes back."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.domain.issuance import (
    COUNTER_EPOCH,
    LIVE,
    TRANSITIONS,
    Move,
    State,
    next_counter,
    next_state,
    not_ready,
)
from appliance.errors import ApplianceError, Reason

EVERY = [(state, move) for state in State for move in Move]


@pytest.mark.parametrize(("state", "move"), EVERY)
def test_every_move_is_in_the_table_or_refused(state: State, move: Move) -> None:
    if (state, move) in TRANSITIONS:
        assert next_state(state, move) is TRANSITIONS[state, move]
        return
    with pytest.raises(ApplianceError) as caught:
        next_state(state, move)
    early_receipt = (state, move) == (State.RESERVED, Move.ACTIVATE)
    assert caught.value.reason is (Reason.ISSUANCE_NOT_READY if early_receipt else Reason.ISSUANCE_ENDED)
    assert caught.value.facts["state"] == state


def test_what_has_ended_never_moves_again() -> None:
    ended = set(State) - LIVE
    assert ended == {State.ABANDONED, State.FAILED}
    assert not any(state in ended for state, _ in TRANSITIONS)


def test_a_package_is_completed_once_and_delivered_only_from_ready() -> None:
    assert [state for (state, move) in TRANSITIONS if move is Move.COMPLETE] == [State.RESERVED]
    into_active = [state for (state, _), after in TRANSITIONS.items() if after is State.ACTIVE and state is not after]
    assert into_active == [State.READY]


def test_a_script_for_what_is_not_ready_names_the_state() -> None:
    refusal = not_ready(State.ACTIVE)
    assert (refusal.reason, refusal.facts["state"]) == (Reason.ISSUANCE_NOT_READY, "ACTIVE")


@given(last=st.integers(0, 2**32 - 2), seconds=st.integers(-(10**9), 2**32 - 1))
def test_counter_rises_and_is_no_lower_than_the_clock(last: int, seconds: int) -> None:
    counter = next_counter(last, COUNTER_EPOCH + timedelta(seconds=seconds))
    assert counter > last
    assert counter >= seconds
    assert counter in (last + 1, seconds)


def test_first_counter_of_a_clock_before_the_epoch_is_one() -> None:
    assert next_counter(0, datetime(2025, 1, 1, tzinfo=UTC)) == 1


def test_counter_that_four_bytes_do_not_hold_is_refused() -> None:
    assert next_counter(0xFFFFFFFE, COUNTER_EPOCH) == 0xFFFFFFFF
    with pytest.raises(ApplianceError) as caught:
        next_counter(0xFFFFFFFF, COUNTER_EPOCH)
    assert caught.value.reason is Reason.INTERNAL
