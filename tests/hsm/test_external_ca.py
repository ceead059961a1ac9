"""External CA on the real module: the request is the sealed key's, and its own certificate alone completes it."""

import hashlib
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute, ObjectClass

from appliance.domain import tlv
from appliance.domain.package import Header, KeyType, PendingPackage, SimPackage
from appliance.errors import ApplianceError, Reason
from appliance.hsm.orders import CompletionOrder, SealOrder
from tests.foreign_ca import ForeignCa
from tests.hsm.site import ICCID, ISSUER, KM_BIND, OTHER_ICCID, Calls, Site, order, virtual_sim
from tests.hsm.test_issue import MALFORMED, cmac, kdf3

CA = ForeignCa()
NAME = "USER0123456789"
LATEST_END = datetime.now(UTC) + timedelta(days=1500)

every_key_type = pytest.mark.parametrize("key_type", KeyType, ids=lambda key_type: key_type.name)


def wanted(key_type: KeyType = KeyType.EC_P256, **changes: Any) -> SealOrder:
    return order(key_type, profile="external", **changes)


def issue(request: bytes, **changes: Any) -> bytes:
    """The CA's certificate; the test profile has no extended key usage and no critical policy."""
    return CA.issue(request, eku=(), policy_critical=False, **changes)


def completion(pending: PendingPackage, certificate: bytes, **changes: Any) -> CompletionOrder:
    values: dict[str, Any] = {
        "sim_issuer": ISSUER,
        "header": pending.header.encode(),
        "wrapped_key": pending.wrapped,
        "interim_mac": pending.interim_mac,
        "certificate": certificate,
        "profile": "external",
        "subject_common_name": NAME,
        "latest_end": LATEST_END,
    }
    return CompletionOrder(**{**values, **changes})


@every_key_type
def test_request_is_the_sealed_keys_and_the_completed_package_opens(
    site: Site, tmp_path: Path, key_type: KeyType
) -> None:
    asked = wanted(key_type)
    with site.engine(profiles={}, external={"external": CA.der}) as engine:
        assert engine.has_external_ca("external")
        pending = engine.request(asked)
        (tmp_path / "request.der").write_bytes(pending.certificate_request)
        verify = ["openssl", "req", "-inform", "DER", "-in", str(tmp_path / "request.der"), "-verify", "-noout"]
        assert "verify OK" in subprocess.run(verify, capture_output=True, text=True, check=True).stderr
        package = engine.complete(completion(pending, issue(pending.certificate_request)))
    request = x509.load_der_x509_csr(pending.certificate_request)
    assert request.subject.rfc4514_string() == f"CN={NAME},C=JP"
    spki = request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert pending.header.spki_sha256 == hashlib.sha256(spki).digest()
    assert (pending.header.counter, pending.header.key_type) == (asked.package_counter, key_type)
    parts = SimPackage.decode(package)
    assert (parts.header, parts.wrapped) == (pending.header, pending.wrapped)
    header_and_c1 = pending.header.encode() + tlv.encode(0xC1, pending.wrapped)
    assert pending.interim_mac == cmac(kdf3(KM_BIND, 0x11, ICCID), b"PENDING" + header_and_c1)
    sim = virtual_sim()
    sim.install(package)
    assert sim.state.installed is not None
    assert sim.state.installed.certificate == SimPackage.decode(package).certificate


def test_subscribers_key_signs_one_request_and_is_destroyed(site: Site, calls: Calls) -> None:
    with site.engine(profiles={}, external={"external": CA.der}, calls=calls) as engine:
        calls.kinds.clear()
        engine.request(wanted())
        assert [kind for kind in calls.kinds if kind in {"keypair_ec", "sign", "wrap"}] == [
            "keypair_ec",
            "sign",
            "wrap",
        ]
        assert site.session_objects() == 0


def test_subscribers_key_may_sign_only_under_an_external_ca(site: Site, calls: Calls) -> None:
    found: list[bool] = []

    def look() -> None:
        with site.backstage() as session:
            private = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.TOKEN: False})
            found.extend(key[Attribute.SIGN] for key in private)

    with site.engine(external={"external": CA.der}, calls=calls) as engine:
        calls.before("wrap", look)
        engine.issue(order())
        calls.before("wrap", look)
        engine.request(wanted())
    assert found == [False, True]


def test_what_waits_is_no_sim_package_and_no_sim_takes_its_mac(site: Site) -> None:
    with site.engine(profiles={}, external={"external": CA.der}) as engine:
        pending = engine.request(wanted())
    certificate = issue(pending.certificate_request)
    forged = SimPackage(pending.header, pending.wrapped, certificate, pending.interim_mac)
    with pytest.raises(Exception, match="MAC"):
        virtual_sim().install(forged.encode())


def _moved(pending: PendingPackage) -> dict[str, Any]:
    return {"header": replace(pending.header, applet_aid=b"\xa0" * 7).encode()}


def _flipped(value: bytes) -> bytes:
    return bytes((*value[:-1], value[-1] ^ 1))


TAMPERED: dict[str, Callable[[PendingPackage, PendingPackage], dict[str, Any]]] = {
    "wrapped key": lambda mine, _: {"wrapped_key": _flipped(mine.wrapped)},
    "wrapped key of another issuance": lambda _, other: {"wrapped_key": other.wrapped},
    "wrapped key cut short": lambda mine, _: {"wrapped_key": mine.wrapped[:-8]},
    "interim MAC": lambda mine, _: {"interim_mac": _flipped(mine.interim_mac)},
    "interim MAC of another issuance": lambda _, other: {"interim_mac": other.interim_mac},
    "no interim MAC": lambda _mine, _other: {"interim_mac": b""},
    "applet in the header": lambda mine, _: _moved(mine),
    "counter in the header": lambda mine, _: {"header": replace(mine.header, counter=mine.header.counter + 1).encode()},
    "SIM in the header": lambda mine, _: {"header": replace(mine.header, iccid=OTHER_ICCID).encode()},
    "activation check in the header": lambda mine, other: {
        "header": replace(mine.header, activation_check=other.header.activation_check).encode()
    },
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_this_hsm_has_not_sealed_so_is_not_completed(site: Site, what: str) -> None:
    with site.engine(profiles={}, external={"external": CA.der}) as engine:
        mine, other = engine.request(wanted()), engine.request(wanted(activation_code="OTHER7CODE"))
        certificate = issue(mine.certificate_request)
        with pytest.raises(ApplianceError) as refused:
            engine.complete(completion(mine, certificate, **TAMPERED[what](mine, other)))
        assert refused.value.reason is Reason.SEAL_REJECTED
        assert site.session_objects() == 0
        assert engine.complete(completion(mine, certificate)), "what was sealed is completed still"


def test_package_mac_is_no_interim_mac(site: Site) -> None:
    """A package's C3 covers header, C1 and C2; taken for C1 and MAC of something that waits, it is refused."""
    with site.engine(profiles={}, external={"external": CA.der}) as engine:
        pending = engine.request(wanted())
        certificate = issue(pending.certificate_request)
        package = SimPackage.decode(engine.complete(completion(pending, certificate)))
        with pytest.raises(ApplianceError) as refused:
            engine.complete(completion(pending, certificate, interim_mac=package.mac))
    assert refused.value.reason is Reason.SEAL_REJECTED


REFUSED: dict[str, tuple[Callable[[PendingPackage, PendingPackage], bytes], str]] = {
    "another key": (
        lambda mine, _: issue(
            mine.certificate_request, public_key=ec.generate_private_key(ec.SECP256R1()).public_key()
        ),
        "key",
    ),
    "another issuance's": (lambda _, other: issue(other.certificate_request), "key"),
    "another CA of the same name": (
        lambda mine, _: ForeignCa().issue(mine.certificate_request, eku=(), policy_critical=False),
        "signature",
    ),
    "ends after the card certificate": (lambda mine, _: issue(mine.certificate_request, days=1501), "latest_end"),
    "is a CA": (
        lambda mine, _: issue(
            mine.certificate_request, extensions={"constraints": (x509.BasicConstraints(True, None), True)}
        ),
        "basic_constraints",
    ),
    "something behind it": (lambda mine, _: issue(mine.certificate_request) + b"\x00", "form"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_certificate_that_cannot_be_taken_derives_no_key(site: Site, calls: Calls, what: str) -> None:
    make, lint = REFUSED[what]
    with site.engine(profiles={}, external={"external": CA.der}, calls=calls) as engine:
        mine, other = engine.request(wanted()), engine.request(wanted())
        calls.kinds.clear()
        with pytest.raises(ApplianceError) as refused:
            engine.complete(completion(mine, make(mine, other)))
        assert (refused.value.reason, refused.value.facts["lints"]) == (Reason.CERTIFICATE_REFUSED, lint)
        assert calls.kinds == []


def test_certificate_under_another_name_than_asked_is_refused(site: Site) -> None:
    with site.engine(profiles={}, external={"external": CA.der}) as engine:
        pending = engine.request(wanted())
        certificate = issue(pending.certificate_request)
        with pytest.raises(ApplianceError) as refused:
            engine.complete(completion(pending, certificate, subject_common_name="USER0000000000"))
    assert refused.value.facts["lints"] == "subject"


def test_ca_that_has_ended_by_the_vaults_clock_completes_nothing(site: Site) -> None:
    short = ForeignCa(days=30)
    later = datetime.now(UTC) + timedelta(days=31)
    with site.engine(profiles={}, external={"external": short.der}, clock=lambda: later) as engine:
        pending = engine.request(wanted())
        certificate = short.issue(pending.certificate_request, days=20, eku=(), policy_critical=False)
        with pytest.raises(ApplianceError) as refused:
            engine.complete(completion(pending, certificate))
    assert refused.value.facts["lints"] == "issuer_valid"


def test_profiles_of_both_kinds_stand_side_by_side_and_are_not_mixed_up(site: Site) -> None:
    with site.engine(external={"external": CA.der}) as engine:
        assert not engine.has_external_ca("rsa-ca")
        pending = engine.request(wanted())
        certificate = issue(pending.certificate_request)
        for call in (
            lambda: engine.issue(wanted()),
            lambda: engine.request(order()),
            lambda: engine.complete(completion(pending, certificate, profile="rsa-ca")),
            lambda: engine.complete(completion(pending, certificate, profile="nowhere")),
            lambda: engine.has_external_ca("nowhere"),
        ):
            with pytest.raises(ApplianceError) as refused:
                call()
            assert refused.value.reason is Reason.NODE_INCONSISTENT
        assert engine.issue(order())


NOT_READ = {"start six minutes ago", "start a day ahead", "end before the start", "end in the year 1"}
"""Times are the CA's."""


@pytest.mark.parametrize("what", sorted(MALFORMED.keys() - NOT_READ - {"unknown profile"}))
def test_malformed_order_is_refused_before_anything_is_made(site: Site, calls: Calls, what: str) -> None:
    changes, reason, field = MALFORMED[what]
    with site.engine(profiles={}, external={"external": CA.der}, calls=calls) as engine:
        calls.kinds.clear()
        with pytest.raises(ApplianceError) as refused:
            engine.request(wanted(**changes))
        assert (refused.value.reason, refused.value.field) == (reason, field)
        assert calls.kinds == []


@pytest.mark.parametrize("common_name", ["lower case", "", "A" * 65])
def test_name_outside_the_profile_is_not_asked_for(site: Site, calls: Calls, common_name: str) -> None:
    with site.engine(profiles={}, external={"external": CA.der}, calls=calls) as engine:
        calls.kinds.clear()
        with pytest.raises(ApplianceError) as refused:
            engine.request(wanted(subject_common_name=common_name))
        assert (refused.value.reason, refused.value.facts["lints"]) == (Reason.CERTIFICATE_REFUSED, "subject")
        assert calls.kinds == []


@pytest.mark.parametrize("kind", ["keypair_ec", "sign", "derive", "wrap", "mac"])
def test_fault_in_the_middle_leaves_no_key_and_the_next_request_works(site: Site, calls: Calls, kind: str) -> None:
    with site.engine(profiles={}, external={"external": CA.der}, calls=calls) as engine:
        calls.before(kind, site.close_all_sessions)
        with pytest.raises(ApplianceError) as refused:
            engine.request(wanted())
        assert refused.value.reason is Reason.TOKEN_FAULT
        pending = engine.request(wanted())
        calls.before("mac", site.close_all_sessions)
        certificate = issue(pending.certificate_request)
        with pytest.raises(ApplianceError) as refused:
            engine.complete(completion(pending, certificate))
        assert refused.value.reason is Reason.TOKEN_FAULT
        assert engine.complete(completion(pending, certificate))
        assert site.session_objects() == 0


@pytest.mark.parametrize("header", [b"", b"\xe1\x00", bytes(200)])
def test_header_that_is_none_is_refused(site: Site, header: bytes) -> None:
    with site.engine(profiles={}, external={"external": CA.der}) as engine:
        pending = engine.request(wanted())
        with pytest.raises(ApplianceError) as refused:
            engine.complete(completion(pending, issue(pending.certificate_request), header=header))
    assert refused.value.reason is Reason.TLV_INVALID


def test_header_of_a_key_set_that_is_gone_is_named(site: Site) -> None:
    with site.engine(profiles={}, external={"external": CA.der}) as engine:
        pending = engine.request(wanted())
        header = replace(Header.decode(pending.header.encode()), kvn=9).encode()
        with pytest.raises(ApplianceError) as refused:
            engine.complete(completion(pending, issue(pending.certificate_request), header=header))
    assert refused.value.reason is Reason.KEY_SET_UNKNOWN


def test_settings_that_name_no_ca_keep_the_vault_from_starting(site: Site) -> None:
    subscriber = issue(_request(site))
    with pytest.raises(ApplianceError) as refused, site.engine(profiles={}, external={"external": subscriber}):
        pass
    assert (refused.value.reason, refused.value.field) == (
        Reason.SETTINGS_INVALID,
        "profiles/external.toml: ca_certificate",
    )


def _request(site: Site) -> bytes:
    with site.engine(profiles={}, external={"external": CA.der}) as engine:
        return engine.request(wanted()).certificate_request
