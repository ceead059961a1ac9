"""SIGKILL of the front, of either vault, of both, and of their supervisor, at every moment of an issuance.

The moment is brought about: calls stand at the ledger's disk, at the vaults' doors and inside the PKCS#11 module when
the process is killed. Whatever dies: each request ends in one package and one answer, nothing is used twice, and what
the dead process did not have in hand goes on undisturbed.
"""

import itertools
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import grpc
import pytest

from appliance.api.status import parse
from appliance.api.v1.issuance_pb2 import KEY_TYPE_EC_P256, KEY_TYPE_RSA_2048
from appliance.domain.issuance import MAX_LOST_ATTEMPTS
from appliance.errors import Reason
from tests.ledger.disk import Disk

from .callers import Caller, issue_request, issued
from .conftest import MakeSite
from .delivery import assert_delivered, assert_issued_once
from .moments import Moment, Stage, Standing
from .programs import until
from .site import RSA_KEY_PAIR, Site

VAULTS = 2


class Victim(StrEnum):
    """What is killed, as seen from a call."""

    FRONT = "the front"
    ITS_VAULT = "its vault"
    OTHER_VAULT = "the other vault"
    BOTH_VAULTS = "both vaults"
    SUPERVISOR = "the supervisor"


ONCE, TWICE = frozenset({1}), frozenset({2})
IN_HAND = dict.fromkeys(Victim, TWICE) | {
    Victim.OTHER_VAULT: ONCE,
    # The second attempt may have gone to the other vault before that one died.
    Victim.BOTH_VAULTS: frozenset({2, 3}),
}
# A vault whose supervisor has died ends after the item in hand.
FINISHED = IN_HAND | {Victim.SUPERVISOR: ONCE}
ATTEMPTS = {
    Moment.RESERVATION: dict.fromkeys(Victim, ONCE),
    Moment.VAULT: IN_HAND,
    Moment.KEY_PAIR: FINISHED,
    Moment.WRAP: FINISHED,
    Moment.ANSWER: FINISHED,
    # The front has what it needs: only its own death costs another attempt.
    Moment.COMPLETION: dict.fromkeys(Victim, ONCE) | {Victim.FRONT: TWICE},
    Moment.CLIENT: dict.fromkeys(Victim, ONCE),
}
"""How many attempts the request takes in all."""
KEY_TYPES = {"EC": KEY_TYPE_EC_P256, "RSA": KEY_TYPE_RSA_2048}


@pytest.fixture(scope="module")
def shared(make_site: MakeSite) -> Site:
    return make_site(count=VAULTS, interposed=True)


@pytest.fixture(scope="module")
def disk(shared: Site, disk_library: Path) -> Disk:
    """Beneath the front's ledger."""
    return shared.on(disk_library)


@pytest.fixture
def site(shared: Site, disk: Disk) -> Site:  # noqa: ARG001 (before the front starts)
    """Serving with both vaults, whatever the test before left."""
    operator = shared.up().caller("operator")
    until(lambda: len(operator.status().vaults) == VAULTS, "both vaults serve")
    return shared


@pytest.fixture
def issuer(site: Site) -> Caller:
    return site.caller("issuer")


@pytest.fixture
def stage(site: Site, disk: Disk, issuer: Caller) -> Iterator[Stage]:
    with Stage(site, disk, issuer) as made:
        yield made


def test_the_table_has_every_moment_and_every_victim() -> None:
    assert list(ATTEMPTS) == list(Moment)
    assert all(list(attempts) == list(Victim) for attempts in ATTEMPTS.values())


def cases() -> Iterator[object]:
    """Every moment, victim and key type; what calls at every moment at once show too is left to the long run."""
    for moment, victim, key_type in itertools.product(Moment, Victim, KEY_TYPES):
        quick = key_type == "EC" and victim is Victim.ITS_VAULT
        yield pytest.param(moment, victim, key_type, marks=() if quick else pytest.mark.soak)


@pytest.mark.parametrize(("moment", "victim", "key_type"), list(cases()))
def test_a_call_beside_which_something_dies_ends_in_one_package(
    site: Site, stage: Stage, issuer: Caller, moment: Moment, victim: Victim, key_type: str
) -> None:
    standing = stage.place(moment, KEY_TYPES[key_type])
    its = standing.slot or 0
    slots = {Victim.ITS_VAULT: (its,), Victim.OTHER_VAULT: (1 - its,), Victim.BOTH_VAULTS: (0, 1)}
    kill_and_check(site, stage, issuer, victim, slots.get(victim, ()))


@pytest.mark.parametrize("rsa", [Moment.KEY_PAIR, Moment.WRAP])
@pytest.mark.parametrize(
    ("victim", "slots"),
    [
        (Victim.FRONT, ()),
        (Victim.ITS_VAULT, (0,)),
        (Victim.ITS_VAULT, (1,)),
        (Victim.BOTH_VAULTS, (0, 1)),
        (Victim.SUPERVISOR, ()),
    ],
)
def test_calls_at_every_moment_on_both_vaults_end_in_one_package_each(
    site: Site, stage: Stage, issuer: Caller, victim: Victim, slots: tuple[int, ...], rsa: Moment
) -> None:
    stage.place_all(rsa)
    assert {standing.moment for standing in stage.standing} == set(Moment)
    kill_and_check(site, stage, issuer, victim, slots)


def test_requests_that_wait_behind_one_that_kills_every_vault_are_served(make_site: MakeSite) -> None:
    site = make_site().up()
    issuer, operator = site.caller("issuer"), site.caller("operator")
    with site.shim.hold(RSA_KEY_PAIR) as hold:
        killing = issuer.begin_issue(issue_request(KEY_TYPE_RSA_2048))
        hold.wait()
        others = [issue_request(KEY_TYPE_EC_P256) for _ in range(3)]
        waiting = [issuer.begin_issue(other) for other in others]
        until(lambda: operator.status().vaults[0].queue_length == len(others), "they wait in the vault")
        for _ in range(MAX_LOST_ATTEMPTS - 1):
            hold.arm()
            site.kill_vault()
            hold.wait()
        site.kill_vault()
        assert killing.code() is grpc.StatusCode.FAILED_PRECONDITION
    for other, call in zip(others, waiting, strict=True):
        answer = call.result()
        [(attempts,)] = site.query("SELECT attempt FROM issuances WHERE request_id = ?", other.request_id)
        assert attempts in {2, 3}, "lost with one vault or two, then tried alone"
        assert_issued_once(site, issuer, other, answer, attempts=attempts)
    site.end()


def kill_and_check(site: Site, stage: Stage, issuer: Caller, victim: Victim, slots: tuple[int, ...]) -> None:
    connection = issuer.watch_connection()
    answers = kill(site, stage, victim, slots)
    if victim is not Victim.FRONT:
        first_ready = connection.index(grpc.ChannelConnectivity.READY)
        assert connection[first_ready:] == [grpc.ChannelConnectivity.READY], "the connection has never broken"
    again = site.caller("issuer")
    for standing, answer in zip(stage.standing, answers, strict=True):
        seen_from_here = Victim.OTHER_VAULT if slots and standing.slot not in slots else victim
        [(attempts,)] = site.query("SELECT attempt FROM issuances WHERE id = ?", issued(answer).name.split("/")[1])
        assert attempts in ATTEMPTS[standing.moment][seen_from_here], (standing.moment, seen_from_here)
        issuance = assert_issued_once(site, again, standing.request, answer, attempts=attempts)
        assert_delivered(site, standing.request, issuance)
    assert_nothing_reached_a_vault_twice(site)


def kill(site: Site, stage: Stage, victim: Victim, slots: tuple[int, ...]) -> list[bytes]:
    """Kills, lets everything go on, and answers what the requests were answered in the end."""
    vaults, front = site.vaults, site.front
    assert vaults and front
    match victim:
        case Victim.FRONT:
            serving = vaults.pids()
            site.kill_front()
            for standing in stage.standing:
                assert standing.call.code() is grpc.StatusCode.UNAVAILABLE
            stage.let_go()
            again = site.up().caller("issuer")
            assert vaults.pids() == serving, "the vaults go on"
            calls = [again.begin_issue(standing.request) for standing in stage.standing]
        case Victim.SUPERVISOR:
            site.kill_supervisor()
            stage.let_vaults_go()
            until(lambda: not vaults.orphans(), "the vaults have ended by themselves")
            stage.let_go()
            site.up()
            calls = [standing.call for standing in stage.standing]
        case _:
            site.kill_vault(*slots)
            stage.let_go()
            site.up()
            calls = [standing.call for standing in stage.standing]
    return [answer_to(site, standing, call) for standing, call in zip(stage.standing, calls, strict=True)]


def answer_to(site: Site, standing: Standing, call: Any) -> bytes:
    """The call's answer, or, where it may have come to a front without a vault, that of the same call sent again."""
    if not standing.surely_begun and call.code() is grpc.StatusCode.UNAVAILABLE:
        assert parse(call.exception()).reason == Reason.VAULTS_UNAVAILABLE
        assert site.query("SELECT id FROM issuances WHERE request_id = ?", standing.request.request_id) == []
        call = site.caller("issuer").begin_issue(standing.request)
    return bytes(call.result())


def assert_nothing_reached_a_vault_twice(site: Site) -> None:
    """Each item that has reached a vault had a serial, and a counter for its SIM, of its own."""
    items = [item for interposer in (*site.past, *site.interposers.values()) for item in interposer.forwarded]
    assert len({item.certificate_serial for item in items}) == len(items)
    assert len({(item.iccid, item.package_counter) for item in items}) == len(items)


def test_the_ledger_is_whole_after_all_of_it(site: Site) -> None:
    check = site.run("ledger", "check")
    assert check.returncode == 0, check.stdout + check.stderr
