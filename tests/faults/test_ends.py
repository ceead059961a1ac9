"""Vaults that die and hang in a call: some of the matrix that `python -m tests.faults` runs as a whole."""

from collections.abc import Iterator, Sequence

import pytest

from tests.path.conftest import MakeSite
from tests.path.site import Site
from tests.shim import Call, End, Fault, When, Which

from .codes import CODES
from .ends import CALLS, SETTINGS, Appliance, Started, calls_of, end_is_final, start_calls

EVERY = {"issue P-256": 2, "session keys": 4, "receipt": 3, "false receipt": 3}
"""Each how manieth call kills its vault here."""
PARTS = {"issue P-256": 4, "session keys": 1, "receipt": 1, "false receipt": 1}
"""Tests among which these calls are divided."""


@pytest.fixture(scope="module")
def appliance(make_site: MakeSite) -> Iterator[Appliance]:
    """At the end nothing has grown, and the ledger is whole."""
    made = Appliance(make_site(**SETTINGS))
    made.waiting()
    before = made.resources()
    yield made
    made.assert_nothing_has_grown(before)
    check = made.site.run("ledger", "check")
    assert check.returncode == 0, check.stdout + check.stderr


def test_every_call_has_its_way_here() -> None:
    assert EVERY.keys() == PARTS.keys() == CALLS.keys()


@pytest.mark.parametrize(("name", "part"), [(name, part) for name, parts in PARTS.items() for part in range(parts)])
def test_a_call_that_kills_the_vault_is_made_up_for_by_the_next_vault(
    appliance: Appliance, name: str, part: int
) -> None:
    for n in range(1, calls_of(appliance, name) + 1, EVERY[name])[part :: PARTS[name]]:
        end = (End.KILL, End.SEGV)[n % 2]
        CALLS[name](appliance, Fault(end, When.BEFORE, Which(n)))


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_hangs_is_ended_and_made_up_for(appliance: Appliance, name: str) -> None:
    n = calls_of(appliance, name) // 2
    CALLS[name](appliance, Fault(End.HANG, When.AFTER, Which(n)))


@pytest.mark.parametrize("when", When)
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_fails_is_told_and_made_up_for_when_repeated(appliance: Appliance, name: str, when: When) -> None:
    for n in range(1, calls_of(appliance, name) + 1, 5):
        CALLS[name](appliance, Fault(CODES["DeviceError"], when, Which(n)))


# --- start-up


@pytest.fixture(scope="module")
def site(make_site: MakeSite) -> Site:
    return make_site(**SETTINGS)


@pytest.fixture(scope="module")
def starting(site: Site) -> Sequence[Call]:
    return start_calls(site)


def place(calls: Sequence[Call], function: str) -> int:
    """Number of the first call of this function."""
    return [call.function for call in calls].index(function) + 1


START_FAULTS: dict[str, tuple[int | End, str, When]] = {
    "killed before the login": (End.KILL, "C_Login", When.BEFORE),
    "killed after the login": (End.SEGV, "C_Login", When.AFTER),
    "hanging in the login": (End.HANG, "C_Login", When.BEFORE),
    "hanging while it proves mechanisms": (End.HANG, "C_WrapKey", When.AFTER),
    "failing before the login": (CODES["DeviceError"], "C_Initialize", When.AFTER),
    "failing in the login": (CODES["DeviceError"], "C_Login", When.AFTER),
    "failing in the search for keys": (CODES["DeviceError"], "C_FindObjects", When.BEFORE),
}


@pytest.mark.parametrize("name", START_FAULTS)
def test_a_first_vault_is_started_again_only_if_it_has_spent_no_pin_try_unheard(
    site: Site, starting: Sequence[Call], name: str
) -> None:
    what, function, when = START_FAULTS[name]
    fault = Fault(what, when, Which(place(starting, function)))
    started = Started(site, fault)
    assert started.final == end_is_final(starting, fault)
    login = place(starting, "C_Login")
    assert started.logins == (fault.which.n >= login) + (not started.final)
