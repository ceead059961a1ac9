"""The path of an issuance over the appliance's own processes, and what those processes hold, load and leave behind."""

import os
import secrets
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.api.v1.issuance_pb2 import (
    ISSUANCE_STATE_ACTIVE,
    KEY_TYPE_EC_P256,
    KEY_TYPE_EC_P384,
    KEY_TYPE_RSA_2048,
)
from appliance.demo import published
from appliance.demo.setup import SOFTHSM
from appliance.domain.package import SimPackage
from appliance.vsim.kdf import scp03_kdf
from appliance.vsim.phone import PhoneApp

from .callers import issue_request
from .conftest import MakeSite
from .delivery import assert_delivered, assert_issued_once, new_sim, play, receipt_in
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
    assert (status.ledger.schema_version, status.ledger.audit_entries) == ("0001", entries)
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


def test_the_pin_is_in_no_environment_and_on_no_command_line(site: Site) -> None:
    assert site.front and site.vaults
    pids = [site.front.process.pid, site.vaults.process.pid, *site.vaults.pids().values()]
    assert len(pids) == 4
    for pid in pids:
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert str(site.directory).encode() in command_line and published.PIN.encode() not in command_line
        try:
            assert published.PIN.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        except PermissionError:  # not dumpable, and this is not root
            assert os.geteuid() != 0


def test_logs_and_ledger_hold_no_secret_and_the_wrapped_key_is_erased(site: Site) -> None:
    issuer, tsm, request = site.caller("issuer"), site.caller("tsm"), issue_request(KEY_TYPE_EC_P256)
    issuance = assert_issued_once(site, issuer, request, issuer.issue(request), attempts=1)
    wrapped = SimPackage.decode(issuer.get(issuance.name, with_package=True).package).wrapped
    assert wrapped in ledger_files(site)

    sim = new_sim(site, request)
    script = tsm.fetch_script(issuance.name)
    responses = play(sim, script)
    tsm.report_receipt(issuance.name, receipt_in(script, responses))
    until(lambda: wrapped not in ledger_files(site), "the wrapped key is gone")

    # GPC Amendment D, 6.2.2: host challenge of the second command, card challenge of its response.
    initialize_update = script.commands[1].apdu
    assert initialize_update[:2] == b"\x80\x50"
    context = initialize_update[5:13] + responses[1][13:21]
    channel = sim.state.sim.channel
    keys = [scp03_kdf(channel.k_enc, 0x04, context, 128), *(scp03_kdf(channel.k_mac, c, context, 128) for c in (6, 7))]
    assert script.commands[2].apdu[5:13] == scp03_kdf(keys[1], 0x01, context, 64), "these are the session's keys"
    binding, installed = sim.state.sim.binding, sim.state.installed
    assert installed
    key = installed.key()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    private = key.private_numbers().private_value.to_bytes(32)
    secret = [private, *keys, channel.k_enc, channel.k_mac, binding.k_sim, binding.k_auth, binding.k_rcpt]
    texts = [request.activation_code.encode(), published.PIN.encode()]
    everything = site.logs() + ledger_files(site)
    assert request.request_id.encode() in site.logs() and request.person_id.encode() in everything
    for value in (*texts, *secret):
        for form in (value, value.hex().encode(), value.hex().upper().encode(), repr(value)[2:-1].encode()):
            assert form not in everything


def ledger_files(site: Site) -> bytes:
    """The ledger and what lies beside it."""
    return b"".join(path.read_bytes() for path in sorted(site.directory.glob(f"{site.ledger.name}*")))


def test_logs_name_no_person(site: Site) -> None:
    issuer, request = site.caller("issuer"), issue_request(KEY_TYPE_EC_P256)
    issuer.issue(request)
    for value in (request.person_id, request.subject_common_name, request.iccid):
        assert value.encode() not in site.logs()
