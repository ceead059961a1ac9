"""Vaults that die, hang and stop, and a front that stops, with calls in work: what is begun is finished or told."""

import os
import signal
from collections.abc import Iterator

import grpc
import pytest

from appliance.api.v1 import issuance_pb2
from appliance.api.v1.issuance_pb2 import KEY_TYPE_EC_P256, KEY_TYPE_RSA_2048

from .callers import issue_request, issued, refusal
from .conftest import MakeSite
from .delivery import assert_issued_once
from .programs import Vaults, until
from .site import RSA_KEY_PAIR, WRAP, Site

VAULTS = 2
WRAP_SECONDS = 1.5


@pytest.fixture(scope="module")
def shared(make_site: MakeSite) -> Site:
    return make_site(count=VAULTS, limits=f"{{ wrap = {WRAP_SECONDS} }}")


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """Serving with all its vaults, whatever the test before left."""
    wait_for_vaults(shared.up())
    yield shared
    vaults_of(shared).signal(signal.SIGCONT)


def vaults_of(site: Site) -> Vaults:
    assert site.vaults
    return site.vaults


def wait_for_vaults(site: Site) -> None:
    """Returns when the front has all of them."""
    operator = site.caller("operator")
    until(lambda: len(operator.status().vaults) == VAULTS, "all vaults serve")


def test_a_request_that_kills_its_vault_every_time_fails_and_the_others_are_served(site: Site) -> None:
    issuer, request = site.caller("issuer"), issue_request(KEY_TYPE_RSA_2048)
    with site.shim.hold(RSA_KEY_PAIR) as hold:
        call = issuer.begin_issue(request)
        for attempt in (1, 2, 3):
            pid = hold.wait()
            wait_for_vaults(site)
            issuer.issue(issue_request(KEY_TYPE_EC_P256))
            if attempt < 3:
                hold.arm()
            vaults_of(site).kill_vault(pid)
        with pytest.raises(grpc.RpcError) as failed:
            call.result()
    said = refusal(failed.value)
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "ISSUANCE_FAILED")
    assert said.detail == "The issuance failed: TOKEN_FAULT. 3 attempts to make it lost their vault."
    assert "another request_id" in said.hint and said.metadata["end_reason"] == "TOKEN_FAULT"

    ended = issuer.get(said.metadata["issuance"])
    assert (ended.state, ended.end_reason) == (issuance_pb2.ISSUANCE_STATE_FAILED, "TOKEN_FAULT")
    assert site.query("SELECT count(*), sum(lost) FROM attempts WHERE iccid = ?", request.iccid) == [(3, 3)]
    with pytest.raises(grpc.RpcError) as again:
        issuer.issue(request)
    assert refusal(again.value) == said
    wait_for_vaults(site)
    issuer.issue(issue_request(KEY_TYPE_EC_P256, person_id=request.person_id, iccid=request.iccid))


def test_a_vault_that_hangs_in_a_call_is_ended_and_the_request_completes(site: Site) -> None:
    issuer, request = site.caller("issuer"), issue_request(KEY_TYPE_EC_P256)
    with site.shim.hold(WRAP) as hold:
        call = issuer.begin_issue(request)
        pid = hold.wait()
        answer = call.result()
    killed = vaults_of(site).next("vault killed")
    assert killed["why"] == f"wrap took longer than {WRAP_SECONDS} s"
    assert pid not in vaults_of(site).pids().values()
    assert_issued_once(site, issuer, request, answer, attempts=2)


def test_the_other_vault_takes_over_at_once_when_one_is_killed(site: Site) -> None:
    issuer, request = site.caller("issuer"), issue_request(KEY_TYPE_RSA_2048)
    with site.shim.hold(RSA_KEY_PAIR) as hold:
        call = issuer.begin_issue(request)
        pid = hold.wait()
        vaults_of(site).signal(signal.SIGSTOP)  # so that no vault can be started in its place
        os.kill(pid, signal.SIGKILL)
        answer = call.result()
    others = [issuer.issue(issue_request(KEY_TYPE_EC_P256)) for _ in range(VAULTS)]
    assert {issued(other).state for other in others} == {issuance_pb2.ISSUANCE_STATE_READY}
    assert_issued_once(site, issuer, request, answer, attempts=2)
    vaults_of(site).signal(signal.SIGCONT)
    wait_for_vaults(site)


def test_a_call_that_its_client_gave_up_goes_on_and_is_answered_when_repeated(site: Site) -> None:
    issuer, request = site.caller("issuer"), issue_request(KEY_TYPE_RSA_2048)
    with site.shim.hold(RSA_KEY_PAIR) as hold:
        call = issuer.begin_issue(request)
        hold.wait()
        call.cancel()
        again = issuer.begin_issue(request)
        hold.release()
        answer = again.result()
    assert_issued_once(site, issuer, request, answer, attempts=1)


def test_a_front_that_is_told_to_stop_answers_what_it_has_in_work(site: Site) -> None:
    front, request = site.front, issue_request(KEY_TYPE_RSA_2048)
    assert front
    issuer = site.caller("issuer")
    with site.shim.hold(RSA_KEY_PAIR) as hold:
        call = issuer.begin_issue(request)
        hold.wait()
        front.signal(signal.SIGTERM)
        front.next("front drains")
        with pytest.raises(grpc.RpcError) as refused:
            issuer.issue(issue_request(KEY_TYPE_EC_P256))
        assert refusal(refused.value).reason == "DRAINING"
        hold.release()
        answer = call.result()
    assert front.wait() == 0
    assert_issued_once(site, site.up().caller("issuer"), request, answer, attempts=1)


def test_vaults_that_are_told_to_stop_finish_what_they_have_in_hand(site: Site) -> None:
    vaults, request = vaults_of(site), issue_request(KEY_TYPE_RSA_2048)
    issuer = site.caller("issuer")
    with site.shim.hold(RSA_KEY_PAIR) as hold:
        call = issuer.begin_issue(request)
        hold.wait()
        vaults.signal(signal.SIGTERM)
        vaults.next("stopping")
        hold.release()
        answer = call.result()
    assert vaults.wait() == 0
    assert [event["code"] for event in vaults.events() if event["event"] == "vault ended"][-VAULTS:] == [0] * VAULTS
    assert not list(site.sockets.glob("v*.sock"))
    wait_for_vaults(site.up())
    assert_issued_once(site, issuer, request, answer, attempts=1)
