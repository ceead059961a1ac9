"""Every check of a submitted certificate, broken alone by one change to a certificate that can be taken."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from asn1crypto import x509 as asn1
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.config import load
from appliance.domain.certificate_request import assemble_request, build_request_info
from appliance.domain.profile import CaMode
from appliance.domain.submission import SUBMITTED_LINTS, ExternalCa, Wanted, identify
from appliance.errors import ApplianceError, Reason
from tests.foreign_ca import POLICY, SIGNATURE_ALONE, SIGNS_CERTIFICATES, ForeignCa, now

PROFILE = replace(
    load(Path(__file__).parents[2] / "hsm_config" / "appliance.toml").profiles["jpki-user-authentication"],
    ca_mode=CaMode.EXTERNAL,
    ca_label="",
)
COMMON_NAME = "997794E9AGCIEG13221003A"
KEY = ec.generate_private_key(ec.SECP256R1())
CA = ForeignCa()
KEY_AGREEMENT_TOO = x509.KeyUsage(True, False, False, False, True, False, False, False, False)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def spki(key: Any) -> bytes:
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _request() -> bytes:
    info = build_request_info(PROFILE, spki(KEY.public_key()), COMMON_NAME)
    return assemble_request(info, KEY.sign(info, ec.ECDSA(hashes.SHA256())))


REQUEST = _request()
WANTED = Wanted(hashlib.sha256(spki(KEY.public_key())).digest(), COMMON_NAME, now() + timedelta(days=1200))


def name(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


COUNTRY, COMMON, CITY = NameOID.COUNTRY_NAME, NameOID.COMMON_NAME, NameOID.LOCALITY_NAME


@cache
def p384_ca() -> ForeignCa:
    return ForeignCa(key=ec.generate_private_key(ec.SECP384R1()))


@cache
def rsa_ca() -> ForeignCa:
    return ForeignCa(key=rsa.generate_private_key(65537, 2048))


@cache
def ended_ca() -> ForeignCa:
    return ForeignCa(days=900)


@dataclass
class Case:
    """A certificate, and what it is held against; the defaults can be taken."""

    certificate: Callable[[], bytes] = lambda: CA.issue(REQUEST)
    ca: Callable[[], ForeignCa] = lambda: CA
    profile: Any = PROFILE
    wanted: Wanted = WANTED
    at: Callable[[], datetime] = now

    def examine(self) -> None:
        ExternalCa(self.profile, self.ca().der).examine(self.certificate(), self.wanted, self.at())


def issued(**changes: Any) -> Callable[[], bytes]:
    return lambda: CA.issue(REQUEST, **changes)


def with_extension(**extensions: Any) -> Callable[[], bytes]:
    return issued(extensions=extensions)


def policies(*oids: str) -> x509.CertificatePolicies:
    return x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier(oid), None) for oid in oids])


def tampered(at: int = -1) -> bytes:
    der = bytearray(CA.issue(REQUEST))
    der[at] ^= 1
    return bytes(der)


def with_other_inner_algorithm() -> bytes:
    """Signed by the CA over a TBSCertificate that names another algorithm than the certificate."""
    fields = asn1.Certificate.load(CA.issue(REQUEST))
    fields["tbs_certificate"]["signature"] = {"algorithm": "sha384_ecdsa"}
    tbs = fields["tbs_certificate"].dump(force=True)
    fields["signature_value"] = CA.resign(tbs)
    return bytes(fields.dump(force=True))


def compressed() -> bytes:
    """The right key, but its point compressed: a SIM hashes what stands there."""
    fields = asn1.Certificate.load(CA.issue(REQUEST))
    key = fields["tbs_certificate"]["subject_public_key_info"]
    key["public_key"] = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    tbs = fields["tbs_certificate"].dump(force=True)
    fields["signature_value"] = CA.resign(tbs)
    return bytes(fields.dump(force=True))


def weak_ca() -> ForeignCa:
    made = ForeignCa()
    made.certificate = (
        x509.CertificateBuilder(made.name, made.name, made.key.public_key(), 1, now() - DAY, now() + 2000 * DAY)
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(SIGNS_CERTIFICATES, critical=True)
        .sign(made.key, hashes.SHA256())
    )
    return made


_WEAK = weak_ca()

BROKEN: dict[str, tuple[Case, str]] = {
    "trailing byte": (Case(lambda: CA.issue(REQUEST) + b"\x00"), "form"),
    "nothing": (Case(lambda: b""), "form"),
    "PEM": (Case(lambda: CA.pem), "form"),
    "a request": (Case(lambda: REQUEST), "form"),
    "2,049 bytes": (
        Case(with_extension(fill=(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), bytes(1700)), False))),
        "form",
    ),
    "issuer's name is no text": (Case(lambda: CA.issue(REQUEST).replace(b"J-LIS", b"\xff-LIS", 1)), "form"),
    "another key": (Case(issued(public_key=ec.generate_private_key(ec.SECP256R1()).public_key())), "key"),
    "another type of key": (Case(issued(public_key=ec.generate_private_key(ec.SECP384R1()).public_key())), "key"),
    "compressed point": (Case(compressed), "key"),
    "another issuer": (Case(lambda: ForeignCa("OTHER").issue(REQUEST)), "issuer_name,signature"),
    "another issuer of the same name": (Case(lambda: ForeignCa().issue(REQUEST)), "signature"),
    "tampered signature": (Case(tampered), "signature"),
    "tampered content": (Case(lambda: CA.issue(REQUEST).replace(b"crl.jp", b"crl.jq")), "signature"),
    "algorithm named twice otherwise": (Case(with_other_inner_algorithm), "signature"),
    "CA has ended": (Case(lambda: ended_ca().issue(REQUEST, days=800), ended_ca, at=lambda: now() + 900 * DAY),
                     "issuer_valid"),
    "CA has not begun": (Case(at=lambda: now() - 2 * DAY), "issuer_valid"),
    "serial number of 21 octets": (Case(issued(serial=1 << 159 | 1)), "serial_number"),
    "hash of another family": (Case(issued(hash_algorithm=hashes.SHA3_256())), "signature_algorithm"),
    "ends beyond the profile": (
        Case(issued(days=1829), wanted=WANTED._replace(latest_end=now() + 3000 * DAY)), "validity_cap"
    ),
    "outlives its CA": (Case(lambda: ended_ca().issue(REQUEST, days=1000), ended_ca), "validity_within_issuer"),
    "has ended": (Case(issued(not_before=now() - 20 * HOUR, not_after=now() - HOUR)), "valid_now"),
    "ends now": (Case(issued(not_after=now() + DAY), at=lambda: now() + DAY), "valid_now"),
    "has not begun": (Case(issued(not_before=now() + HOUR)), "valid_now"),
    "ends after the card certificate": (Case(issued(days=1201)), "latest_end"),
    "another common name": (
        Case(issued(subject=name((COUNTRY, "JP"), (COMMON, "997794E9AGCIEG13221003B")))), "subject"
    ),
    "another country": (Case(issued(subject=name((COUNTRY, "KR"), (COMMON, COMMON_NAME)))), "subject"),
    "an address beside the name": (
        Case(issued(subject=name((COUNTRY, "JP"), (CITY, "Tokyo"), (COMMON, COMMON_NAME)))), "subject"
    ),
    "two common names": (
        Case(issued(subject=name((COUNTRY, "JP"), (COMMON, COMMON_NAME), (COMMON, COMMON_NAME)))), "subject"
    ),
    "key of a type that the profile leaves out": (
        Case(profile=replace(PROFILE, key_types=("RSA_2048",))), "public_key"
    ),
    "key agreement": (
        Case(with_extension(key_usage=(KEY_AGREEMENT_TOO, True))), "key_usage"
    ),
    "key usage not critical": (Case(with_extension(key_usage=(SIGNATURE_ALONE, False))), "key_usage"),
    "signs certificates": (Case(with_extension(key_usage=(SIGNS_CERTIFICATES, True))), "key_usage"),
    "another extended key usage": (Case(issued(eku=(ExtendedKeyUsageOID.SERVER_AUTH,))), "extended_key_usage"),
    "one extended key usage more": (
        Case(issued(eku=(ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH))), "extended_key_usage"
    ),
    "no extended key usage": (Case(issued(eku=())), "extended_key_usage"),
    "an extended key usage though the profile has none": (
        Case(profile=replace(PROFILE, extended_key_usage=())), "extended_key_usage"
    ),
    "another policy": (Case(with_extension(policies=(policies("1.2.3"), True))), "certificate_policies"),
    "any policy": (Case(with_extension(policies=(policies("2.5.29.32.0"), True))), "certificate_policies"),
    "a policy more": (Case(with_extension(policies=(policies(POLICY, "1.2.3"), True))), "certificate_policies"),
    "policy not critical": (Case(issued(policy_critical=False)), "certificate_policies"),
    "no authority key identifier": (Case(with_extension(authority=None)), "authority_key_identifier"),
    "authority key identifier of another CA": (
        Case(with_extension(authority=(x509.AuthorityKeyIdentifier(bytes(20), None, None), False))),
        "authority_key_identifier",
    ),
    "authority key identifier with another serial number": (
        Case(
            with_extension(
                authority=(
                    x509.AuthorityKeyIdentifier(
                        x509.SubjectKeyIdentifier.from_public_key(CA.key.public_key()).digest,
                        [x509.DirectoryName(CA.name)],
                        1,
                    ),
                    False,
                )
            )
        ),
        "authority_key_identifier",
    ),
    "CA certificate without key identifier": (
        Case(lambda: _WEAK.issue(REQUEST), lambda: _WEAK), "authority_key_identifier"
    ),
    "CA bit": (Case(with_extension(constraints=(x509.BasicConstraints(True, None), True))), "basic_constraints"),
    "unknown critical extension": (
        Case(with_extension(other=(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), True))),
        "critical_extensions",
    ),
    "subject alternative name": (
        Case(with_extension(other=(x509.SubjectAlternativeName([x509.RFC822Name("a@example.jp")]), False))),
        "subject_alternative_name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_certificate_that_cannot_be_taken_is_refused_by_name_with_the_way_out(case: str) -> None:
    broken, lints = BROKEN[case]
    with pytest.raises(ApplianceError) as refused:
        broken.examine()
    error = refused.value
    assert (error.reason, error.field, error.facts["lints"]) == (Reason.CERTIFICATE_REFUSED, "certificate", lints)
    assert all(lint.rule in error.detail for lint in SUBMITTED_LINTS if lint.name in lints.split(","))
    assert error.hint.endswith("Nothing has changed.")
    assert COMMON_NAME not in str(error)


ALTERNATIVES: dict[str, Case] = {
    "as it is": Case(),
    "P-384 CA": Case(lambda: p384_ca().issue(REQUEST, hash_algorithm=hashes.SHA384()), p384_ca),
    "RSA CA": Case(lambda: rsa_ca().issue(REQUEST), rsa_ca),
    "names the other way round": Case(issued(subject=name((COMMON, COMMON_NAME), (COUNTRY, "JP")))),
    "serial number 1": Case(issued(serial=1)),
    "serial number of 20 octets": Case(issued(serial=(1 << 159) - 1)),
    "CA's clock a little ahead": Case(issued(not_before=now() + timedelta(minutes=4))),
    "ends with the card certificate": Case(issued(not_after=WANTED.latest_end)),
    "an extension of the CA's own": Case(
        with_extension(other=(x509.IssuerAlternativeName([x509.DNSName("ca.example.jp")]), False))
    ),
    "says that it is no CA": Case(with_extension(constraints=(x509.BasicConstraints(False, None), True))),
    "issuer and serial number beside the key identifier": Case(
        with_extension(
            authority=(
                x509.AuthorityKeyIdentifier(
                    x509.SubjectKeyIdentifier.from_public_key(CA.key.public_key()).digest,
                    [x509.DirectoryName(CA.name)],
                    CA.certificate.serial_number,
                ),
                False,
            )
        )
    ),
}


@pytest.mark.parametrize("case", ALTERNATIVES)
def test_certificate_that_another_ca_makes_otherwise_is_taken(case: str) -> None:
    ALTERNATIVES[case].examine()


def test_every_lint_is_broken_alone_or_holds_by_construction() -> None:
    alone = {lints for _, lints in BROKEN.values() if "," not in lints}
    never_alone = {
        "issuer_name",  # then the signature is another CA's too
        "issuer_may_sign",  # such a CA is refused with the settings
        "version",  # extensions need version 3
        "validity_order",  # what ends before it begins is never valid now
    }
    assert alone | never_alone == {lint.name for lint in SUBMITTED_LINTS}


def test_negative_serial_number_is_refused() -> None:
    fields = asn1.Certificate.load(CA.issue(REQUEST))
    fields["tbs_certificate"]["serial_number"] = -5
    tbs = fields["tbs_certificate"].dump(force=True)
    fields["signature_value"] = CA.resign(tbs)
    with pytest.raises(ApplianceError) as refused, pytest.warns(Warning):
        Case(lambda: bytes(fields.dump(force=True))).examine()
    assert refused.value.facts["lints"] == "serial_number"


def test_certificate_is_known_by_issuer_and_serial_number() -> None:
    assert identify(CA.issue(REQUEST, serial=0x80)) == (CA.name.public_bytes(), b"\x80")
    assert identify(CA.issue(REQUEST, serial=0x0100)) == (CA.name.public_bytes(), b"\x01\x00")


@pytest.mark.parametrize("what", ["no certificate", "no CA", "weak key", "Ed25519"])
def test_settings_that_name_no_usable_ca_are_refused(what: str) -> None:
    key: Any = {
        "weak key": lambda: rsa.generate_private_key(65537, 1024),  # noqa: S505 (that is the point)
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
    }.get(what, lambda: KEY)()
    der = b"x"
    if what != "no certificate":
        builder = x509.CertificateBuilder(CA.name, CA.name, key.public_key(), 1, now() - DAY, now() + DAY)
        builder = builder.add_extension(x509.BasicConstraints(what != "no CA", None), critical=True)
        builder = builder.add_extension(SIGNS_CERTIFICATES, critical=True)
        der = builder.sign(key, None if what == "Ed25519" else hashes.SHA256()).public_bytes(Encoding.DER)
    with pytest.raises(ApplianceError) as refused:
        ExternalCa(PROFILE, der)
    assert (refused.value.reason, refused.value.field) == (
        Reason.SETTINGS_INVALID,
        "profiles/jpki-user-authentication.toml: ca_certificate",
    )
