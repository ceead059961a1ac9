"""The path of an issuance over the appliance's own processes, and what those processes hold, load and leave behind."""

import os
import secrets
import subprocess
from pathlib import Path

import pytest

from appliance.api.v1.issuance_pb2 import (
    ISSUANCE_STATE_ACTIVE,
    KEY_TYPE_EC_P256,
    KEY_TYPE_EC_P384,
    KEY_TYPE_RSA_2048,
)
from appliance.demo import published
from appliance.demo.setup import SOFTHSM
from appliance.ledger.schema import SCHEMA_VERSION
from appliance.vsim.phone import PhoneApp

from .callers import issue_request
from .conftest import MakeSite
from .delivery import assert_delivered, assert_issued_once
from .programs import until
from .site import Site

KEY_TYPES = {"RSA_2048": KEY_TYPE_RSA_2048, "EC_P256": KEY_TYPE_EC_P256, "EC_P384": KEY_TYPE_EC_P384}
DIGESTS = {"RSA_2048": "-sha256", "EC_P256": "-sha256", "EC_P384": "-sha384"}


@pytest.fixture(scope="module")
def site(make_site: MakeSite) -> Site:
    made = make_site(count=2).up()
    operator = made.caller("operator")
    until(lambda: len(operator.status().vaults) == 2, "both vaults serve")
    return made


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_a_key_born_in_the_hsm_reaches_a_sim_and_signs(site: Site, tmp_path: Path, key_type: str) -> None:
    issuer, request = site.caller("issuer"), issue_request(KEY_TYPES[key_type])
    issuance = assert_issued_once(site, issuer, request, issuer.issue(request), attempts=1)
    sim = assert_delivered(site, request, issuance)
    assert issuer.get(issuance.name).state == ISSUANCE_STATE_ACTIVE

    phone, message = PhoneApp(sim), secrets.token_bytes(100)
    phone.set_pin(request.activation_code.encode(), b"4711")
    signed, signature, der, pem, public = (tmp_path / name for name in ("signed", "signature", "der", "pem", "public"))
    signed.write_bytes(message)
    signature.write_bytes(phone.sign(b"4711", message))
    der.write_bytes(phone.certificate())
    openssl("x509", "-inform", "der", "-in", der, "-out", pem)
    openssl("verify", "-x509_strict", "-CAfile", site.demo.ca_certificate, pem)
    public.write_text(openssl("x509", "-in", pem, "-noout", "-pubkey"))
    verified = openssl("dgst", DIGESTS[key_type], "-verify", public, "-signature", signature, signed)
    assert verified == "Verified OK\n"


def test_operators_see_vaults_token_key_sets_and_ledger(site: Site) -> None:
    issuer, request = site.caller("issuer"), issue_request(KEY_TYPE_EC_P256)
    issuer.issue(request)
    status = site.caller("operator").status()
    assert status.ready and not status.draining
    assert [vault.vault.partition("-")[0] for vault in status.vaults] == ["v0", "v1"]
    declared = (site.directory / f"sim_issuers/{published.SIM_ISSUER}.toml").read_text()
    for vault in status.vaults:
        assert vault.token_label == published.TOKEN_LABEL and "SoftHSM" in vault.module
        [key_set] = vault.key_sets
        assert key_set.name == f"simIssuers/{published.SIM_ISSUER}/keySets/{published.KVN}"
        assert key_set.state == "ACTIVE"
        assert f'kcv = "{key_set.bind_kcv}"' in declared and f'kcv = "{key_set.chan_kcv}"' in declared
    [(entries,)] = site.query("SELECT count(*) FROM audit")
    assert (status.ledger.schema_version, status.ledger.audit_entries) == (SCHEMA_VERSION, entries)
    assert status.ledger.issuances["READY"] >= 1


def test_the_ledger_passes_its_check(site: Site) -> None:
    check = site.run("ledger", "check")
    assert check.returncode == 0, check.stdout + check.stderr


def test_the_front_has_not_loaded_pkcs11(site: Site) -> None:
    assert site.front
    front = loaded(site.front.process.pid)
    assert "sqlite" in front, "what is looked for shows where it is loaded"
    assert "pkcs11" not in front and "softhsm" not in front


def test_vaults_have_not_loaded_the_database_and_their_supervisor_nothing_foreign(site: Site) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may look into processes that are not dumpable")
    assert site.vaults
    vaults = [loaded(pid) for pid in site.vaults.pids().values()]
    assert len(vaults) == 2
    for vault in vaults:
        assert "_pkcs11" in vault and SOFTHSM.name in vault
        assert "sqlite" not in vault and "sqlalchemy" not in vault
    supervisor = loaded(site.vaults.process.pid)
    assert not any(name in supervisor for name in ("pkcs11", "softhsm", "sqlite", "site-packages"))


def loaded(pid: int) -> str:
    """The files that a process has mapped, in lower case."""
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").lower()


def test_logs_name_no_person(site: Site) -> None:
    issuer, request = site.caller("issuer"), issue_request(KEY_TYPE_EC_P256)
    issuer.issue(request)
    for value in (request.person_id, request.subject_common_name, request.iccid):
        assert value.encode() not in site.logs()
