"""Ledger faults beneath a front that serves: full, read-only, failing and hanging disks, locks, files taken away.

An Issue call meets each fault in its reservation or in its completion. It is told LEDGER_UNAVAILABLE with what to do,
readiness falls and comes back, and the same call then ends in one package.
"""

import errno
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.api.v1.issuance_pb2 import KEY_TYPE_EC_P256
from tests.ledger.disk import LOG, Action, Disk, Fault

from .callers import ISSUANCE_SERVICE, Caller, issue_request, refusal
from .conftest import MakeSite
from .delivery import assert_delivered, assert_issued_once
from .programs import WAIT
from .site import WRAP, Site

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNAVAILABLE = ("UNAVAILABLE", "LEDGER_UNAVAILABLE", 2.0)


@pytest.fixture(scope="module")
def shared(make_site: MakeSite) -> Site:
    return make_site()


@pytest.fixture(scope="module")
def disk(shared: Site, disk_library: Path) -> Disk:
    return shared.on(disk_library)


@pytest.fixture
def site(shared: Site, disk: Disk) -> Iterator[Site]:
    yield shared.up()
    disk.disarm()


@pytest.fixture
def issuer(site: Site) -> Caller:
    return site.caller("issuer")


def wait_for(site: Site, status: int) -> None:
    """Returns when the health of IssuanceService is so."""
    stub = health_pb2_grpc.HealthStub(site.caller("operator").channel)
    for health in stub.Watch(health_pb2.HealthCheckRequest(service=ISSUANCE_SERVICE), timeout=WAIT):
        if health.status == status:
            return


@contextmanager
def failing(disk: Disk, error: int, kinds: str = "wsc") -> Iterator[str]:
    disk.arm(Fault(Action.FAIL_BEFORE, kinds=kinds, files=LOG, error=error))
    yield "Make room on the ledger's disk"
    disk.disarm()


@contextmanager
def locked(site: Site) -> Iterator[str]:
    with closing(sqlite3.connect(site.ledger, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield "Another process holds the ledger; only one front may write to it."


@contextmanager
def taken_away(site: Site, name: str) -> Iterator[str]:
    path = site.directory / name
    away = path.rename(path.with_name("away"))
    yield "put the ledger's own files back in place or restore a backup"
    away.rename(path)


FAULTS: dict[str, Callable[[Site, Disk], AbstractContextManager[str]]] = {
    "a full disk": lambda _, disk: failing(disk, errno.ENOSPC),
    "an exceeded quota": lambda _, disk: failing(disk, errno.EDQUOT),
    "a disk that became read-only": lambda _, disk: failing(disk, errno.EROFS),
    "a disk that does not write": lambda _, disk: failing(disk, errno.EIO),
    "a disk that does not keep": lambda _, disk: failing(disk, errno.EIO, kinds="sc"),
    "a lock": lambda site, _: locked(site),
    "a file that was taken away": lambda site, _: taken_away(site, "ledger.db"),
    "a log that was taken away": lambda site, _: taken_away(site, "ledger.db-wal"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_reservation_leaves_nothing_and_is_over_when_it_is_gone(
    site: Site, disk: Disk, issuer: Caller, fault: str
) -> None:
    before, request = issue_request(KEY_TYPE_EC_P256), issue_request(KEY_TYPE_EC_P256)
    answer = issuer.issue(before)
    with FAULTS[fault](site, disk) as hint:
        with pytest.raises(grpc.RpcError) as failed:
            issuer.issue(request)
        said = refusal(failed.value)
        assert (said.code, said.reason, said.retry_seconds) == UNAVAILABLE
        assert hint in said.hint
        wait_for(site, NOT_SERVING)
        assert issuer.issue(before) == answer, "what is stored is answered all the same"
        assert not site.caller("operator").status().ready
    wait_for(site, SERVING)
    assert_issued_once(site, issuer, request, issuer.issue(request), attempts=1)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "a lock"])  # it takes its time to be given up
def test_a_fault_in_the_completion_costs_another_attempt_and_no_second_package(
    site: Site, disk: Disk, issuer: Caller, fault: str
) -> None:
    request = issue_request(KEY_TYPE_EC_P256)
    with site.shim.hold(WRAP) as hold:
        call = issuer.begin_issue(request)
        hold.wait()
        with FAULTS[fault](site, disk) as hint:
            hold.release()
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            said = refusal(call.exception())
            assert (said.code, said.reason, said.retry_seconds) == UNAVAILABLE
            assert hint in said.hint
    wait_for(site, SERVING)
    issuance = assert_issued_once(site, issuer, request, issuer.issue(request), attempts=2)
    assert_delivered(site, request, issuance)


def test_a_front_that_ends_while_its_file_is_away_has_acknowledged_nothing_that_is_lost(
    site: Site, issuer: Caller
) -> None:
    before, after = issue_request(KEY_TYPE_EC_P256), issue_request(KEY_TYPE_EC_P256)
    answer = issuer.issue(before)
    front = site.front
    assert front
    with taken_away(site, "ledger.db"):
        with pytest.raises(grpc.RpcError):
            issuer.issue(after)
        front.signal(signal.SIGTERM)
        assert front.wait() == 0
    again = site.up().caller("issuer")
    assert_issued_once(site, again, before, answer, attempts=1)
    assert_issued_once(site, again, after, again.issue(after), attempts=1)


def test_the_log_tells_what_is_wrong_and_what_to_do(site: Site, disk: Disk, issuer: Caller) -> None:
    assert site.front
    with failing(disk, errno.ENOSPC), pytest.raises(grpc.RpcError):
        issuer.issue(issue_request(KEY_TYPE_EC_P256))
    assert site.front.next("not ready")["missing"] == ["ledger"]
    wait_for(site, SERVING)
    with failing(disk, errno.ENOSPC):
        with pytest.raises(grpc.RpcError):
            issuer.issue(issue_request(KEY_TYPE_EC_P256))
        told = site.front.next("ledger does not work")
    assert "SQLITE_FULL" in told["detail"] and "Make room" in told["detail"]


def test_the_ledger_is_whole_after_all_of_it(site: Site) -> None:
    check = site.run("ledger", "check")
    assert check.returncode == 0, check.stdout + check.stderr
