"""SIGKILL of the front and of the vault at every moment of an issuance.

The moment is brought about: the Issue call is stopped on its way to the vault, inside the PKCS#11 module, on its way
back, or before a locked ledger, and stands there when the process is killed.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import NamedTuple, Protocol

import grpc
import pytest

from appliance.api.v1.issuance_pb2 import KEY_TYPE_EC_P256, KEY_TYPE_RSA_2048, IssueRequest
from appliance.domain.issuance import MAX_LOST_ATTEMPTS

from .callers import issue_request
from .conftest import MakeSite
from .delivery import assert_delivered, assert_issued_once
from .hold import RSA_KEY_PAIR, WRAP
from .interposer import Interposer
from .programs import until
from .site import Site


class Stopped(Protocol):
    """A call that is stopped at a moment."""

    def wait(self) -> object:
        """Returns when it stands there."""


def _interposer(site: Site) -> Interposer:
    assert site.interposer
    return site.interposer


@contextmanager
def _committing(site: Site) -> Iterator[Stopped]:
    """The front has the vault's answer and cannot commit: the ledger is locked until the context ends."""
    interposer = _interposer(site)
    answered = interposer.answered
    with site.hold.armed(WRAP) as hold, closing(sqlite3.connect(site.ledger, isolation_level=None)) as ledger:

        class Committing:
            def wait(self) -> None:
                hold.wait()
                ledger.execute("BEGIN IMMEDIATE")
                hold.release()
                until(lambda: interposer.answered > answered, "the front has the answer")

        yield Committing()


class Moment(NamedTuple):
    """How an Issue call is stopped there, and how far it has come."""

    stopped: Callable[[Site], AbstractContextManager[Stopped]]
    reached_the_vault: bool = True
    answered: bool = False
    """Whether the front has what it needs from the vault, so that the vault's death costs no attempt."""


MOMENTS = {
    "between reserve and vault": Moment(lambda site: _interposer(site).before.armed(), reached_the_vault=False),
    "inside the vault": Moment(lambda site: site.hold.armed(WRAP)),
    "between vault and front": Moment(lambda site: _interposer(site).after.armed()),
    "between vault and commit": Moment(_committing, answered=True),
}

every_moment = pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
each_key_type = pytest.mark.parametrize("key_type", [KEY_TYPE_EC_P256, KEY_TYPE_RSA_2048], ids=["EC", "RSA"])


@pytest.fixture(scope="module")
def shared(make_site: MakeSite) -> Site:
    return make_site(interposed=True)


@pytest.fixture
def site(shared: Site) -> Site:
    """Serving, whatever the test before left."""
    return shared.up()


@each_key_type
@every_moment
def test_a_killed_front_completes_the_request_when_it_is_repeated(site: Site, moment: Moment, key_type: int) -> None:
    request, spent = issue_request(key_type), forwarded(site)
    with moment.stopped(site) as stopped:
        call = site.caller("issuer").begin_issue(request)
        stopped.wait()
        assert_reserved(site, request)
        vault = running_vaults(site)
        site.kill_front()
        assert call.code() is grpc.StatusCode.UNAVAILABLE
    issuer = site.up().caller("issuer")
    assert running_vaults(site) == vault
    answer = issuer.issue(request)
    issuance = assert_issued_once(site, issuer, request, answer, attempts=2)
    assert_none_reached_the_vault_twice(site, spent + moment.reached_the_vault + 1)
    assert_delivered(site, request, issuance)


@each_key_type
@every_moment
def test_a_killed_vault_costs_the_client_nothing(site: Site, moment: Moment, key_type: int) -> None:
    request, spent = issue_request(key_type), forwarded(site)
    issuer = site.caller("issuer")
    connection = issuer.watch_connection()
    with moment.stopped(site) as stopped:
        call = issuer.begin_issue(request)
        stopped.wait()
        assert_reserved(site, request)
        site.kill_vault()
    site.up()
    repeated = not moment.answered
    issuance = assert_issued_once(site, issuer, request, call.result(), attempts=1 + repeated)
    assert_none_reached_the_vault_twice(site, spent + moment.reached_the_vault + repeated)
    assert_delivered(site, request, issuance)
    first_ready = connection.index(grpc.ChannelConnectivity.READY)
    assert connection[first_ready:] == [grpc.ChannelConnectivity.READY], "the connection has never broken"


def test_requests_that_wait_behind_one_that_kills_every_vault_are_served(site: Site) -> None:
    issuer, operator = site.caller("issuer"), site.caller("operator")
    with site.hold.armed(RSA_KEY_PAIR) as hold:
        killing = issuer.begin_issue(issue_request(KEY_TYPE_RSA_2048))
        hold.wait()
        others = [issue_request(KEY_TYPE_EC_P256) for _ in range(3)]
        waiting = [issuer.begin_issue(other) for other in others]
        until(lambda: operator.status().vaults[0].queue_length == len(others), "they wait in the vault")
        for _ in range(MAX_LOST_ATTEMPTS - 1):
            hold.arm(RSA_KEY_PAIR)
            site.kill_vault()
            site.up()
            hold.wait()
        site.kill_vault()
        site.up()
        assert killing.code() is grpc.StatusCode.FAILED_PRECONDITION
    for other, call in zip(others, waiting, strict=True):
        answer = call.result()
        of_request = "SELECT attempt FROM issuances WHERE request_id = ?"
        [(attempts,)] = site.query(of_request, other.request_id)
        assert attempts in {2, 3}, "lost with one vault or two, then tried alone"
        assert_issued_once(site, issuer, other, answer, attempts=attempts)


def test_the_ledger_is_whole_after_all_of_it(site: Site) -> None:
    check = site.run("ledger", "check")
    assert check.returncode == 0, check.stdout + check.stderr


def assert_reserved(site: Site, request: IssueRequest) -> None:
    """The request's first attempt is committed, and nothing else."""
    found = site.query("SELECT state, attempt FROM issuances WHERE request_id = ?", request.request_id)
    assert found == [("RESERVED", 1)]


def running_vaults(site: Site) -> dict[int, int]:
    """Process ids by slot."""
    assert site.vaults
    return site.vaults.pids()


def forwarded(site: Site) -> int:
    """How many items have reached the vault."""
    return sum(len(interposer.forwarded) for interposer in (*site.past, _interposer(site)))


def assert_none_reached_the_vault_twice(site: Site, count: int) -> None:
    """So many items have reached the vault, each with a serial, and a counter for its SIM, of its own."""
    items = [item for interposer in (*site.past, _interposer(site)) for item in interposer.forwarded]
    assert len(items) == count
    assert len({item.certificate_serial for item in items}) == count
    assert len({(item.iccid, item.package_counter) for item in items}) == count
