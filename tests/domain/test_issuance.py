"""The life of an issuance is its table; the counter never goes back, nor far ahead of the clock."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.domain.issuance import (
    COUNTER_EPOCH,
    COUNTER_LEAD,
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
    early = {
        (State.RESERVED, Move.ACTIVATE): Reason.ISSUANCE_NOT_READY,
        (State.AWAITING_CERTIFICATE, Move.ACTIVATE): Reason.ISSUANCE_NOT_READY,
        (State.RESERVED, Move.CERTIFY): Reason.CERTIFICATE_NOT_AWAITED,
    }
    assert caught.value.reason is early.get((state, move), Reason.ISSUANCE_ENDED)
    assert caught.value.facts["state"] == state


def test_what_has_ended_never_moves_again() -> None:
    ended = set(State) - LIVE
    assert ended == {State.ABANDONED, State.FAILED}
    assert not any(state in ended for state, _ in TRANSITIONS)


def test_a_package_is_completed_once_and_delivered_only_from_ready() -> None:
    assert [state for (state, move) in TRANSITIONS if move is Move.COMPLETE] == [State.RESERVED]
    into_active = [state for (state, _), after in TRANSITIONS.items() if after is State.ACTIVE and state is not after]
    assert into_active == [State.READY]


def test_a_certificate_is_awaited_only_after_the_key_was_made_and_comes_once() -> None:
    assert [state for (state, move) in TRANSITIONS if move is Move.REQUEST_CERTIFICATE] == [State.RESERVED]
    certified = {state: after for (state, move), after in TRANSITIONS.items() if move is Move.CERTIFY}
    assert {state for state, after in certified.items() if state is not after} == {State.AWAITING_CERTIFICATE}
    assert [state for (state, move) in TRANSITIONS if move is Move.EXPIRE] == [State.AWAITING_CERTIFICATE]


@pytest.mark.parametrize(
    ("state", "way_out"),
    [(State.RESERVED, "Issue"), (State.AWAITING_CERTIFICATE, "SubmitCertificate"), (State.ACTIVE, "new request")],
)
def test_a_script_for_what_is_not_ready_names_the_state_and_the_way_out(state: State, way_out: str) -> None:
    refusal = not_ready(state)
    assert (refusal.reason, refusal.facts["state"]) == (Reason.ISSUANCE_NOT_READY, state)
    assert way_out in refusal.hint


def after(seconds: float) -> datetime:
    """The moment so long after the clock's share of the counter was 0."""
    return COUNTER_EPOCH + timedelta(seconds=seconds)


def busy(last: int, now: datetime) -> int:
    """How many seconds a SIM that has had this counter must wait."""
    with pytest.raises(ApplianceError) as caught:
        next_counter(last, now)
    assert caught.value.reason is Reason.SIM_BUSY
    return int(caught.value.facts["wait_seconds"])


@given(last=st.integers(0, 2 * COUNTER_LEAD), seconds=st.integers(0, 2 * COUNTER_LEAD))
def test_counter_rises_and_is_no_lower_than_the_clock(last: int, seconds: int) -> None:
    if last + 1 < seconds + COUNTER_LEAD:
        assert next_counter(last, after(seconds)) == max(last + 1, seconds)
    else:
        wait = busy(last, after(seconds))
        assert next_counter(last, after(seconds + wait)) == last + 1
        assert busy(last, after(seconds + wait - 1)) == 1


@given(st.integers(0, 10**15))
def test_after_the_lead_has_passed_the_clock_alone_is_above_every_counter(microseconds: int) -> None:
    last_write, highest = COUNTER_EPOCH + timedelta(microseconds=microseconds), 0
    with suppress(ApplianceError):
        for _ in range(2 * COUNTER_LEAD):
            highest = next_counter(highest, last_write)
    assert highest == microseconds // 10**6 + COUNTER_LEAD - 1
    assert next_counter(0, last_write + timedelta(seconds=COUNTER_LEAD)) == highest + 1


def test_clock_before_the_epoch_gives_no_counter() -> None:
    assert busy(0, datetime(2025, 1, 1, tzinfo=UTC)) > 300 * 24 * 3600


def test_counter_that_four_bytes_do_not_hold_is_refused() -> None:
    assert next_counter(0xFFFFFFFE, after(0xFFFFFFFF)) == 0xFFFFFFFF
    with pytest.raises(ApplianceError) as caught:
        next_counter(0xFFFFFFFF, after(0xFFFFFFFF))
    assert caught.value.reason is Reason.INTERNAL
