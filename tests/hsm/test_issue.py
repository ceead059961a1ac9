"""Issue on the real module: what comes out is a SIM package that one SIM opens, with the certificate of its key."""

import hashlib
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from asn1crypto.parser import peek
from cryptography import x509
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from appliance.domain.keyset import KeySetState
from appliance.domain.package import KeyType, SimPackage
from appliance.errors import ApplianceError, Reason
from appliance.vsim.package import PackageError
from appliance.vsim.package import Reason as SimReason
from tests.hsm.site import (
    APPLET_AID,
    CODE,
    ICCID,
    KM_BIND,
    OTHER_ICCID,
    POLICY,
    PROFILES,
    Calls,
    Site,
    order,
    virtual_sim,
)

every_key_type = pytest.mark.parametrize("key_type", KeyType, ids=lambda key_type: key_type.name)


def cmac(key: bytes, message: bytes) -> bytes:
    mac = CMAC(AES(key))
    mac.update(message)
    return mac.finalize()


def kdf3(master: bytes, constant: int, kdd: bytes) -> bytes:
    return b"".join(cmac(master, bytes((i, 0, 0, 0, constant, 0)) + kdd) for i in (1, 2))


def public_der(key: Any) -> bytes:
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


@every_key_type
def test_package_says_what_was_ordered_and_opens_with_the_published_keys(site: Site, key_type: KeyType) -> None:
    wanted = order(key_type)
    with site.engine() as engine:
        package = SimPackage.decode(engine.issue(wanted))
    header, certificate = package.header, x509.load_der_x509_certificate(package.certificate)

    assert (header.suite, header.iccid, header.applet_aid, header.kvn) == (1, ICCID, APPLET_AID, 1)
    assert (header.counter, header.key_type) == (wanted.package_counter, key_type)
    assert header.spki_sha256 == hashlib.sha256(public_der(certificate.public_key())).digest()
    assert certificate.serial_number.to_bytes(16) == wanted.certificate_serial
    assert certificate.subject.rfc4514_string() == "CN=USER0123456789,C=JP"
    assert (certificate.not_valid_before_utc, certificate.not_valid_after_utc) == (wanted.not_before, wanted.not_after)

    k_sim, k_auth = kdf3(KM_BIND, 0x10, ICCID), kdf3(KM_BIND, 0x11, ICCID)
    assert header.activation_check == cmac(k_auth, b"ACTIVATION" + CODE.encode())[:8]
    between_e0_and_c3 = package.encode()[4:-18]
    assert package.mac == cmac(k_auth, b"PACKAGE" + between_e0_and_c3)

    encryptor = Cipher(AES(k_sim), CBC(bytes(16))).encryptor()
    der = aes_key_unwrap_with_padding(encryptor.update(header.digest()), package.wrapped)
    assert len(der) - peek(der) < 8
    assert not any(der[peek(der) :])
    private = load_der_private_key(der[: peek(der)], None)
    assert public_der(private.public_key()) == public_der(certificate.public_key())


@every_key_type
def test_virtual_sim_installs_the_package(site: Site, key_type: KeyType) -> None:
    with site.engine() as engine:
        package = engine.issue(order(key_type))
    sim = virtual_sim()
    sim.install(package)
    assert sim.state.installed is not None
    assert sim.state.installed.certificate == SimPackage.decode(package).certificate


@pytest.mark.parametrize("name", PROFILES)
def test_openssl_verifies_the_certificate(site: Site, tmp_path: Path, name: str) -> None:
    with site.engine() as engine:
        certificate = SimPackage.decode(engine.issue(order(profile=name))).certificate
    for file, der in (("ca.pem", site.authorities[name]), ("user.pem", certificate)):
        (tmp_path / file).write_bytes(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-explicit_policy",
        "-policy",
        POLICY,
        "-CAfile",
        "ca.pem",
        "user.pem",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "user.pem: OK\n"), done.stderr


def test_every_attempt_makes_another_key_even_for_the_same_order(site: Site) -> None:
    wanted = order()
    with site.engine() as engine:
        one, two = (SimPackage.decode(engine.issue(wanted)) for _ in range(2))
    assert one.header.spki_sha256 != two.header.spki_sha256


def test_issue_leaves_no_session_object(site: Site) -> None:
    with site.engine() as engine:
        assert site.session_objects() == 0
        engine.issue(order())
        assert site.session_objects() == 0


def test_refused_certificate_leaves_nothing_signed_and_no_session_object(site: Site, calls: Calls) -> None:
    with site.engine(calls=calls) as engine:
        calls.kinds.clear()
        with pytest.raises(ApplianceError) as refused:
            engine.issue(order(subject_common_name="lower case"))
        assert refused.value.reason is Reason.CERTIFICATE_REFUSED
        assert refused.value.facts["lints"] == "subject"
        assert "keypair_ec" in calls.kinds
        assert "sign" not in calls.kinds
        assert site.session_objects() == 0
        engine.issue(order())
        assert "login" not in calls.kinds


NOW = datetime.now(UTC).replace(microsecond=0)
MALFORMED: dict[str, tuple[dict[str, Any], Reason, str]] = {
    "ICCID of 9 bytes": ({"iccid": ICCID[:-1]}, Reason.ICCID_INVALID, "iccid"),
    "ICCID that is no number": ({"iccid": b"\xff" * 10}, Reason.ICCID_INVALID, "iccid"),
    "ICCID with another check digit": ({"iccid": ICCID[:-1] + b"\xf5"}, Reason.ICCID_INVALID, "iccid"),
    "empty ICCID": ({"iccid": b""}, Reason.ICCID_INVALID, "iccid"),
    "AID of 4 bytes": ({"applet_aid": bytes(4)}, Reason.AID_INVALID, "applet_aid"),
    "AID of 17 bytes": ({"applet_aid": bytes(17)}, Reason.AID_INVALID, "applet_aid"),
    "counter 0": ({"package_counter": 0}, Reason.FIELD_INVALID, "counter"),
    "counter of 5 bytes": ({"package_counter": 1 << 32}, Reason.FIELD_INVALID, "counter"),
    "key version 0": ({"kvn": 0}, Reason.KVN_INVALID, "kvn"),
    "unknown key version": ({"kvn": 2}, Reason.KEY_SET_UNKNOWN, "kvn"),
    "unknown SIM issuer": ({"sim_issuer": "other"}, Reason.SIM_ISSUER_UNKNOWN, "sim_issuer"),
    "unknown profile": ({"profile": "other"}, Reason.NODE_INCONSISTENT, ""),
    "short activation code": ({"activation_code": "SHORT77"}, Reason.ACTIVATION_CODE_INVALID, "activation_code"),
    "kana in the code": ({"activation_code": "カタカナカタカナ"}, Reason.ACTIVATION_CODE_INVALID, "activation_code"),
    "start six minutes ago": ({"not_before": NOW - timedelta(minutes=6)}, Reason.NODE_INCONSISTENT, ""),
    "start a day ahead": ({"not_before": NOW + timedelta(days=1)}, Reason.NODE_INCONSISTENT, ""),
    "end before the start": ({"not_after": NOW - timedelta(days=1)}, Reason.TIME_INVALID, "not_after_seconds"),
    "end in the year 1": ({"not_after": datetime(1, 1, 1, tzinfo=UTC)}, Reason.TIME_INVALID, "not_after_seconds"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_order_is_refused_before_anything_is_made(site: Site, calls: Calls, name: str) -> None:
    changes, reason, field = MALFORMED[name]
    with site.engine(profiles={"rsa-ca": site.authorities["rsa-ca"]}, calls=calls) as engine:
        calls.kinds.clear()
        with pytest.raises(ApplianceError) as refused:
            engine.issue(order(**changes))
    assert (refused.value.reason, refused.value.field) == (reason, field)
    assert calls.kinds == ["close"]


UNCERTIFIABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no serial number": ({"certificate_serial": b""}, "serial_number"),
    "serial number of 21 bytes": ({"certificate_serial": b"\x40" * 21}, "serial_number"),
    "empty name": ({"subject_common_name": ""}, "subject"),
    "name with a zero byte": ({"subject_common_name": "USER0123\x00"}, "subject"),
    "name of 1,000 characters": ({"subject_common_name": "A" * 1000}, "subject"),
    "end beyond the cap": ({"not_after": NOW + timedelta(days=1900)}, "validity_cap"),
    "end in the year 9999": ({"not_after": datetime(9999, 12, 31, tzinfo=UTC)}, "validity_cap"),
}


@pytest.mark.filterwarnings("ignore:Parsed a serial number", "ignore:Attribute's length")
@pytest.mark.parametrize("name", UNCERTIFIABLE)
def test_order_that_breaks_a_lint_is_refused_unsigned(site: Site, calls: Calls, name: str) -> None:
    changes, lint = UNCERTIFIABLE[name]
    with site.engine(profiles={"rsa-ca": site.authorities["rsa-ca"]}, calls=calls) as engine:
        calls.kinds.clear()
        with pytest.raises(ApplianceError) as refused:
            engine.issue(order(**changes))
        assert site.session_objects() == 0
    assert refused.value.reason is Reason.CERTIFICATE_REFUSED
    assert lint in str(refused.value.facts["lints"]).split(",")
    assert "sign" not in calls.kinds


def test_start_of_validity_is_held_against_the_vaults_own_clock(site: Site) -> None:
    with site.engine(clock=lambda: NOW - timedelta(hours=1)) as engine, pytest.raises(ApplianceError) as refused:
        engine.issue(order())
    assert refused.value.reason is Reason.NODE_INCONSISTENT


@pytest.mark.parametrize(
    ("state", "seals"),
    [(KeySetState.PREPARED, False), (KeySetState.ACTIVE, True), (KeySetState.OLD, True)],
)
def test_state_of_the_key_set_decides_whether_it_seals(site: Site, state: KeySetState, seals: bool) -> None:
    with site.engine(site.issuer(site.key_set(state=state))) as engine:
        if seals:
            assert engine.issue(order())
            return
        with pytest.raises(ApplianceError) as refused:
            engine.issue(order())
        assert (refused.value.reason, refused.value.field) == (Reason.KEY_SET_NOT_USABLE, "kvn")


def test_package_for_another_sim_has_other_keys(site: Site) -> None:
    with site.engine() as engine:
        package = SimPackage.decode(engine.issue(order(iccid=OTHER_ICCID)))
    moved = replace(package, header=replace(package.header, iccid=ICCID))
    assert package.header.activation_check != cmac(kdf3(KM_BIND, 0x11, ICCID), b"ACTIVATION" + CODE.encode())[:8]
    virtual_sim(OTHER_ICCID).install(package.encode())
    with pytest.raises(PackageError) as refused:
        virtual_sim().install(moved.encode())
    assert refused.value.reason is SimReason.MAC
