"""An external CA over the appliance's own processes: the whole path, and SIGKILL while a certificate is awaited."""

import sqlite3
import subprocess
import uuid
from contextlib import closing
from pathlib import Path
from typing import Final

import grpc
import pytest
from pkcs11 import Mechanism

from appliance.api.v1 import issuance_pb2 as pb
from appliance.api.v1.issuance_pb2_grpc import IssuanceServiceStub
from appliance.demo import published
from tests.foreign_ca import ForeignCa
from tests.shim import Which

from .callers import issue_request, issued, refusal
from .conftest import MakeSite
from .delivery import assert_delivered
from .external_ca import begin_submit, submission
from .programs import WAIT, until
from .site import Site

CA: Final = ForeignCa()
CMAC: Final = Which(function="C_SignInit", mechanism=Mechanism.AES_CMAC)
KEY_TYPES = {"RSA": pb.KEY_TYPE_RSA_2048, "P-256": pb.KEY_TYPE_EC_P256, "P-384": pb.KEY_TYPE_EC_P384}


@pytest.fixture(scope="module")
def shared(make_site: MakeSite) -> Site:
    """A demo whose profile names another CA."""
    site = make_site()
    path = site.directory / "profiles" / f"{published.PROFILE}.toml"
    replaced = ("ca_mode", "ca_label", "ca_certificate")
    kept = [line for line in path.read_text("utf-8").splitlines() if not line.startswith(replaced)]
    ca = site.directory / "j-lis.pem"
    ca.write_bytes(CA.pem)
    path.write_text("\n".join([*kept, 'ca_mode = "external"', f'ca_certificate = "{ca}"', ""]), "utf-8")
    return site


@pytest.fixture
def site(shared: Site) -> Site:
    """Serving, whatever the test before left."""
    return shared.up()


def awaiting(site: Site, request: pb.IssueRequest) -> pb.Issuance:
    waiting = issued(site.caller("issuer").issue(request))
    assert waiting.state == pb.ISSUANCE_STATE_AWAITING_CERTIFICATE
    return waiting


def assert_completed_once(site: Site, request: pb.IssueRequest, wanted: pb.SubmitCertificateRequest) -> pb.Issuance:
    """The certificate is taken, once, its repeat gets the same bytes, and the SIM opens the package."""
    issuer = site.caller("issuer")
    answer = begin_submit(issuer, wanted).result()
    ready = pb.SubmitCertificateResponse.FromString(answer).issuance
    assert (ready.state, ready.certificate) == (pb.ISSUANCE_STATE_READY, wanted.certificate)
    told = "SELECT count(*) FROM audit WHERE issuance = ? AND instr(entry, '\"COMPLETED\"')"
    assert site.query(told, wanted.name.removeprefix("issuances/")) == [(1,)]
    assert_delivered(site, request, ready)
    assert begin_submit(issuer, wanted).result() == answer
    return ready


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_a_key_certified_by_another_ca_reaches_its_sim(site: Site, tmp_path: Path, key_type: str) -> None:
    request = issue_request(KEY_TYPES[key_type])
    waiting = awaiting(site, request)
    (tmp_path / "request.der").write_bytes(waiting.certificate_request)
    verify = ["openssl", "req", "-inform", "DER", "-in", "request.der", "-verify", "-noout", "-subject"]
    done = subprocess.run(verify, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "verify OK" in done.stderr
    assert done.stdout == f"subject=C = JP, CN = {request.subject_common_name}\n"
    ready = assert_completed_once(site, request, submission(CA, waiting))
    (tmp_path / "ca.pem").write_bytes(CA.pem)
    (tmp_path / "user.der").write_bytes(ready.certificate)
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", "ca.pem", "user.der"]
    done = subprocess.run(verify, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "user.der: OK\n", done.stderr


def test_what_waits_survives_the_death_of_its_front_and_its_vault(site: Site) -> None:
    request, operator = issue_request(pb.KEY_TYPE_EC_P256), site.caller("operator")
    waiting = awaiting(site, request)
    [dead] = [vault.vault for vault in operator.status().vaults]
    site.kill_vault()
    site.kill_front()
    site.up()
    until(lambda: [vault.vault for vault in operator.status().vaults] not in ([], [dead]), "another vault serves")
    assert issued(site.caller("issuer").issue(request)) == waiting
    assert_completed_once(site, request, submission(CA, waiting))


def test_a_vault_killed_over_a_certificate_costs_the_client_nothing(site: Site) -> None:
    request = issue_request(pb.KEY_TYPE_EC_P256)
    wanted = submission(CA, awaiting(site, request))
    with site.shim.hold(CMAC) as hold:
        call = begin_submit(site.caller("issuer"), wanted)
        hold.wait()
        site.kill_vault()
    site.up()
    assert pb.SubmitCertificateResponse.FromString(call.result()).issuance.state == pb.ISSUANCE_STATE_READY
    assert_completed_once(site, request, wanted)


@pytest.mark.parametrize("committing", [False, True], ids=["in the vault", "before the commit"])
def test_a_front_killed_over_a_certificate_takes_it_when_it_comes_again(site: Site, committing: bool) -> None:
    request = issue_request(pb.KEY_TYPE_EC_P256)
    wanted = submission(CA, awaiting(site, request))
    operator = site.caller("operator")
    done = operator.status().vaults[0].items_done
    with site.shim.hold(CMAC) as hold, closing(sqlite3.connect(site.ledger, isolation_level=None)) as ledger:
        call = begin_submit(site.caller("issuer"), wanted)
        hold.wait()
        if committing:
            ledger.execute("BEGIN IMMEDIATE")
            hold.release()
            until(lambda: operator.status().vaults[0].items_done > done, "the vault has answered")
        site.kill_front()
        assert call.code() is grpc.StatusCode.UNAVAILABLE
    state = "SELECT state FROM issuances WHERE id = ?"
    assert site.query(state, wanted.name.removeprefix("issuances/")) == [("AWAITING_CERTIFICATE",)]
    site.up()
    assert_completed_once(site, request, wanted)


def test_a_certificate_of_another_issuance_or_ca_completes_nothing(site: Site) -> None:
    request, issuer = issue_request(pb.KEY_TYPE_EC_P256), site.caller("issuer")
    mine, other = awaiting(site, request), awaiting(site, issue_request(pb.KEY_TYPE_EC_P256))
    good = submission(CA, mine)
    for certificate, lints in (
        (CA.issue(other.certificate_request), "key"),
        (ForeignCa().issue(mine.certificate_request), "signature"),
        (good.certificate + b"\x00", "form"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            begin_submit(issuer, submission(CA, mine, certificate)).result()
        said = refusal(caught.value)
        assert (said.reason, said.field, said.metadata["lints"]) == ("CERTIFICATE_REFUSED", "certificate", lints)
    assert issuer.get(mine.name) == mine, "nothing has changed"
    assert_completed_once(site, request, good)
    with pytest.raises(grpc.RpcError) as caught:
        begin_submit(issuer, submission(CA, other, good.certificate)).result()
    assert refusal(caught.value).metadata["lints"] == "key"


def test_a_ledger_that_somebody_changed_completes_nothing(site: Site) -> None:
    request, issuer = issue_request(pb.KEY_TYPE_EC_P256), site.caller("issuer")
    mine, other = awaiting(site, request), awaiting(site, issue_request(pb.KEY_TYPE_EC_P256))
    swap = "UPDATE issuances SET wrapped_key = (SELECT wrapped_key FROM issuances WHERE id = ?) WHERE id = ?"
    with closing(sqlite3.connect(site.ledger, timeout=WAIT)) as ledger, ledger:
        ledger.execute(swap, [name.removeprefix("issuances/") for name in (other.name, mine.name)])
    with pytest.raises(grpc.RpcError) as caught:
        begin_submit(issuer, submission(CA, mine)).result()
    said = refusal(caught.value)
    assert (said.code, said.reason) == ("INTERNAL", "SEAL_REJECTED")
    assert "abandons" in said.hint
    IssuanceServiceStub(issuer.channel).Abandon(pb.AbandonRequest(request_id=str(uuid.uuid4()), name=mine.name))
    again = issue_request(pb.KEY_TYPE_EC_P256, person_id=request.person_id, iccid=request.iccid)
    assert_completed_once(site, again, submission(CA, awaiting(site, again)))


def test_the_ledger_is_whole_after_all_of_it(site: Site) -> None:
    check = site.run("ledger", "check")
    assert check.returncode == 0, check.stdout + check.stderr
