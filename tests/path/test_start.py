"""What refuses to start, and says why; and what a client hears while no vault can take its request."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from appliance.api.v1.issuance_pb2 import KEY_TYPE_EC_P256, KEY_TYPE_RSA_2048, IssueRequest
from appliance.demo import published
from appliance.supervisor import FINAL

from .callers import Caller, issue_request, refusal
from .conftest import MakeSite
from .delivery import assert_issued_once
from .programs import Vaults
from .site import RSA_KEY_PAIR, Site

WRONG_PIN = "wrong-pin-7319"


@pytest.fixture
def site(make_site: MakeSite) -> Iterator[Site]:
    """Two vaults, of which the second starts when the first has logged in; nothing runs yet."""
    made = make_site(count=2)
    yield made
    made.end()


def ended_for(vaults: Vaults) -> str:
    """The reason for which the only vault that was started has ended, and the supervisor with it."""
    assert vaults.wait() == FINAL, vaults.log.read_text()
    events = vaults.events()
    assert [event["event"] for event in events].count("vault started") == 1
    [reason] = [event["reason"] for event in events if event["event"] == "vault cannot go on"]
    return str(reason)


def test_a_wrong_pin_is_tried_once(site: Site) -> None:
    assert ended_for(site.start_vaults(WRONG_PIN)) == "PIN_REJECTED"
    assert site.shim.logins() == 1
    assert WRONG_PIN.encode() not in site.logs()


def test_an_absent_token_is_waited_for_without_a_login(site: Site) -> None:
    tokens, away = site.directory / "token", site.directory / "away"
    tokens.rename(away)
    tokens.mkdir()
    vaults = site.start_vaults()
    for _ in range(2):
        vaults.next("vault cannot go on", reason="TOKEN_ABSENT")
    assert site.shim.logins() == 0
    tokens.rmdir()
    away.rename(tokens)
    vaults.next("vault ready")


def test_a_token_made_anew_under_the_same_label_gets_no_pin(site: Site) -> None:
    tokens = site.directory / "token"
    tokens.rename(site.directory / "away")
    tokens.mkdir()
    new = ["softhsm2-util", "--init-token", "--free", "--label", published.TOKEN_LABEL, "--so-pin", published.SO_PIN]
    subprocess.run(
        [*new, "--pin", published.PIN],
        env={**os.environ, "SOFTHSM2_CONF": str(site.directory / "softhsm2.conf")},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert ended_for(site.start_vaults()) == "TOKEN_CHANGED"
    assert site.shim.logins() == 0


def test_a_master_key_with_another_check_value_than_declared_is_not_used(site: Site) -> None:
    declared = Path("sim_issuers") / f"{published.SIM_ISSUER}.toml"
    bind = site.setting("bind", "", file=str(declared))
    label, kcv, kdf_kcv = bind.split(", ")
    site.setting("bind", ", ".join([label, 'kcv = "0A0B0C"', kdf_kcv]), file=str(declared))
    assert "0A0B0C" not in kcv
    assert ended_for(site.start_vaults()) == "KCV_MISMATCH"


def test_without_a_vault_a_request_is_refused_and_leaves_nothing(site: Site) -> None:
    site.start_front()
    issuer, request = site.caller("issuer"), issue_request(KEY_TYPE_EC_P256)
    said = refused(issuer, request)
    assert said == ("UNAVAILABLE", "VAULTS_UNAVAILABLE", 2.0)
    assert rows(site) == 0
    site.up()
    assert_issued_once(site, issuer, request, issuer.issue(request), attempts=1)


def test_when_all_vaults_are_full_a_request_is_refused_and_leaves_nothing(make_site: MakeSite) -> None:
    site = make_site(queue_capacity=1).up()
    issuer, request = site.caller("issuer"), issue_request(KEY_TYPE_EC_P256)
    with site.shim.hold(RSA_KEY_PAIR) as hold:
        call = issuer.begin_issue(issue_request(KEY_TYPE_RSA_2048))
        hold.wait()
        before = rows(site)
        assert refused(issuer, request) == ("RESOURCE_EXHAUSTED", "VAULTS_BUSY", 1.0)
        assert rows(site) == before
        hold.release()
        call.result()
    assert_issued_once(site, issuer, request, issuer.issue(request), attempts=1)
    site.end()


def refused(issuer: Caller, request: IssueRequest) -> tuple[str, str, float]:
    """Code, reason and time of the repeat that the server names."""
    with pytest.raises(grpc.RpcError) as error:
        issuer.issue(request)
    said = refusal(error.value)
    return said.code, said.reason, said.retry_seconds


def rows(site: Site) -> int:
    """How many there are in all tables that a request can leave something in."""
    tables = ("issuances", "attempts", "requests", "sims", "audit")
    return sum(site.query(f"SELECT count(*) FROM {table}")[0][0] for table in tables)  # noqa: S608 (our own names)
