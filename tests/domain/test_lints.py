"""Every lint, broken alone by one change to a certificate that keeps them all."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from asn1crypto import core
from asn1crypto import x509 as asn1
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.config import load
from appliance.domain import certificate as certificates
from appliance.domain.lints import LINTS, Examined, lint
from appliance.domain.profile import CertificateProfile
from appliance.errors import ApplianceError, Reason

SETTINGS = Path(__file__).parents[2] / "hsm_config" / "appliance.toml"
PROFILE = load(SETTINGS).profiles["jpki-user-authentication"]
NOW = datetime(2026, 10, 1, tzinfo=UTC)
END = NOW + timedelta(days=PROFILE.validity_max_days)
SERIAL = 1 << 126
CA_KEY = ec.generate_private_key(ec.SECP256R1())
SUBSCRIBER = ec.generate_private_key(ec.SECP256R1()).public_key()

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def spki(key: PublicKey) -> bytes:
    """DER SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def make_ca(not_before: datetime = NOW, not_after: datetime = END, **usage: bool) -> bytes:
    """A CA certificate for CA_KEY; its extensions can be spoilt by name."""
    tbs = certificates.build_self_signed_tbs(spki(CA_KEY.public_key()), SERIAL, "Example", "CA", not_before, not_after)
    fields = asn1.TbsCertificate.load(tbs)
    extensions = {extension["extn_id"].native: extension for extension in fields["extensions"]}
    if not usage.get("signs_certificates", True):
        extensions["key_usage"]["extn_value"] = asn1.KeyUsage({"crl_sign"})
    if not usage.get("is_ca", True):
        extensions["basic_constraints"]["extn_value"] = asn1.BasicConstraints({"ca": False})
    spoilt = dumped(fields)
    return certificates.assemble(spoilt, CA_KEY.sign(spoilt, ec.ECDSA(hashes.SHA256())))


def dumped(fields: Any) -> bytes:
    """DER of what was changed, at whatever depth."""
    return bytes(fields.dump(force=True))


CA = make_ca()


class Case(NamedTuple):
    """A certificate to be, and what it is linted against; the defaults keep every lint."""

    profile: CertificateProfile = PROFILE
    declared: CertificateProfile = PROFILE
    ca: bytes = CA
    key: PublicKey = SUBSCRIBER
    serial: int = SERIAL
    common_name: str = "997794E9AGCIEG13221003A"
    not_before: datetime = NOW
    not_after: datetime = END
    change: Callable[[Any], object] = lambda fields: fields
    change_assembled: Callable[[bytes], bytes] = lambda der: der

    def certificate(self) -> bytes:
        """Built under `profile`, then changed."""
        tbs = certificates.build_tbs(
            self.profile, CA, spki(self.key), self.serial, self.common_name, self.not_before, self.not_after
        )
        fields = asn1.TbsCertificate.load(tbs)
        self.change(fields)
        der = certificates.assemble(dumped(fields), certificates.placeholder_signature(CA))
        return self.change_assembled(der)


def extension(fields: Any, kind: str) -> Any:
    """The extension of this kind."""
    return next(it for it in fields["extensions"] if it["extn_id"].native == kind)


def set_value(kind: str, value: Any) -> Callable[[Any], None]:
    """A change of one extension's value."""

    def change(fields: Any) -> None:
        extension(fields, kind)["extn_value"] = value

    return change


def set_critical(kind: str, critical: bool) -> Callable[[Any], None]:
    """A change of one extension's criticality."""

    def change(fields: Any) -> None:
        extension(fields, kind)["critical"] = critical

    return change


def drop(kind: str) -> Callable[[Any], None]:
    """A change that leaves one extension out."""

    def change(fields: Any) -> None:
        fields["extensions"] = [it for it in fields["extensions"] if it["extn_id"].native != kind]

    return change


def add(kind: str, value: Any, *, critical: bool = False) -> Callable[[Any], None]:
    """A change that adds an extension."""

    def change(fields: Any) -> None:
        fields["extensions"].append(asn1.Extension({"extn_id": kind, "critical": critical, "extn_value": value}))

    return change


def set_field(name: str, value: Any) -> Callable[[Any], None]:
    """A change of one field of the TBSCertificate."""

    def change(fields: Any) -> None:
        fields[name] = value

    return change


def printable_issuer(fields: Any) -> None:
    """The CA's name in another encoding: the same for people, not for a byte comparison."""
    fields["issuer"] = asn1.Name.build(fields["issuer"].native, use_printable=True)


def outer_algorithm(der: bytes) -> bytes:
    """The outer signature algorithm differs from the signed one."""
    whole = asn1.Certificate.load(der)
    whole["signature_algorithm"] = {"algorithm": "sha384_ecdsa"}
    return dumped(whole)


def subject(**attributes: str) -> Callable[[Any], None]:
    """Another subject."""
    return set_field("subject", asn1.Name.build(attributes))


def one_set_subject(fields: Any) -> None:
    """Both attributes in one relative distinguished name."""
    pairs = [pair for rdn in fields["subject"].chosen for pair in rdn]
    fields["subject"] = asn1.Name("", asn1.RDNSequence([asn1.RelativeDistinguishedName(pairs)]))


class Broken(NamedTuple):
    """One case and the lint that it breaks."""

    lint: str
    why: str
    case: Case


LONG_URL = replace(PROFILE, crl_url="http://crl.example.jp/" + "x" * 1600)
ONLY_RSA = replace(PROFILE, key_types=("RSA_2048",))
OTHER = "http://elsewhere.example.jp/"
CASES = (
    Broken("size", "2,049 bytes and more", Case(profile=LONG_URL, declared=LONG_URL)),
    Broken("version", "version 1", Case(change=set_field("version", "v1"))),
    Broken("serial_number", "63 bits", Case(serial=(1 << 63) - 1)),
    Broken("serial_number", "160 bits", Case(serial=1 << 159)),
    Broken("serial_number", "zero", Case(serial=0)),
    Broken("serial_number", "negative", Case(serial=-SERIAL)),
    Broken(
        "signature_algorithm", "of another hash", Case(change=set_field("signature", {"algorithm": "sha384_ecdsa"}))
    ),
    Broken("signature_algorithm", "of another key", Case(change=set_field("signature", {"algorithm": "sha256_rsa"}))),
    Broken("signature_algorithm", "two differ", Case(change_assembled=outer_algorithm)),
    Broken("issuer_name", "another encoding", Case(change=printable_issuer)),
    Broken("issuer_may_sign", "no keyCertSign", Case(ca=make_ca(signs_certificates=False))),
    Broken("issuer_may_sign", "no CA", Case(ca=make_ca(is_ca=False))),
    Broken("validity_order", "ends as it starts", Case(not_after=NOW)),
    Broken(
        "validity_cap",
        "one second too long",
        Case(ca=make_ca(not_after=END + timedelta(1)), not_after=END + timedelta(seconds=1)),
    ),
    Broken("validity_within_issuer", "ends after the CA", Case(ca=make_ca(not_after=END - timedelta(seconds=1)))),
    Broken("validity_within_issuer", "starts before the CA", Case(ca=make_ca(not_before=NOW + timedelta(seconds=1)))),
    Broken("subject", "common name of another form", Case(common_name="Yamada Taro")),
    Broken("subject", "another country", Case(change=subject(country_name="US", common_name="997794E9AGCIEG"))),
    Broken("subject", "no country", Case(change=subject(common_name="997794E9AGCIEG"))),
    Broken(
        "subject",
        "an organization as well",
        Case(change=subject(country_name="JP", organization_name="X", common_name="997794E9AGCIEG")),
    ),
    Broken("subject", "other attributes", Case(change=subject(country_name="JP", serial_number="997794E9AGCIEG"))),
    Broken("subject", "both attributes in one set", Case(change=one_set_subject)),
    Broken("public_key", "RSA-1024", Case(key=rsa.generate_private_key(65537, 1024).public_key())),  # noqa: S505 - weak on purpose
    Broken("public_key", "RSA-3072", Case(key=rsa.RSAPublicNumbers(65537, (1 << 3071) + 1).public_key())),
    Broken("public_key", "exponent 3", Case(key=rsa.RSAPublicNumbers(3, (1 << 2047) + 1).public_key())),
    Broken("public_key", "P-521", Case(key=ec.generate_private_key(ec.SECP521R1()).public_key())),
    Broken("public_key", "not in the profile", Case(profile=ONLY_RSA, declared=ONLY_RSA)),
    Broken("key_usage", "not critical", Case(change=set_critical("key_usage", False))),
    Broken("key_usage", "one more", Case(change=set_value("key_usage", {"digital_signature", "non_repudiation"}))),
    Broken("key_usage", "missing", Case(change=drop("key_usage"))),
    Broken("extended_key_usage", "missing", Case(change=drop("extended_key_usage"))),
    Broken("extended_key_usage", "another", Case(change=set_value("extended_key_usage", ["server_auth"]))),
    Broken("extended_key_usage", "undeclared", Case(declared=replace(PROFILE, extended_key_usage=()))),
    Broken("certificate_policies", "another", Case(profile=replace(PROFILE, policy_oid="1.2.392.200149.8.5.1.1.20"))),
    Broken(
        "certificate_policies",
        "one more",
        Case(
            change=lambda fields: extension(fields, "certificate_policies")["extn_value"].parsed.append(
                asn1.PolicyInformation({"policy_identifier": "2.5.29.32.0"})
            )
        ),
    ),
    Broken("certificate_policies", "no statement", Case(profile=replace(PROFILE, cps_url=""))),
    Broken("certificate_policies", "not critical", Case(change=set_critical("certificate_policies", False))),
    Broken("certificate_policies", "missing", Case(change=drop("certificate_policies"))),
    Broken("crl_distribution_points", "another", Case(profile=replace(PROFILE, crl_url=OTHER))),
    Broken("crl_distribution_points", "missing", Case(profile=replace(PROFILE, crl_url=""))),
    Broken("crl_distribution_points", "undeclared", Case(declared=replace(PROFILE, crl_url=""))),
    Broken("authority_information_access", "another OCSP", Case(profile=replace(PROFILE, ocsp_url=OTHER))),
    Broken("authority_information_access", "no CA issuers", Case(profile=replace(PROFILE, ca_issuers_url=""))),
    Broken(
        "authority_information_access", "undeclared", Case(declared=replace(PROFILE, ocsp_url="", ca_issuers_url=""))
    ),
    Broken(
        "authority_key_identifier",
        "another CA's",
        Case(change=set_value("authority_key_identifier", {"key_identifier": bytes(20)})),
    ),
    Broken("authority_key_identifier", "missing", Case(change=drop("authority_key_identifier"))),
    Broken("subject_key_identifier", "another key's", Case(change=set_value("key_identifier", bytes(20)))),
    Broken("subject_key_identifier", "missing", Case(change=drop("key_identifier"))),
    Broken("basic_constraints", "a CA", Case(change=add("basic_constraints", {"ca": True}, critical=True))),
    Broken("known_extensions", "critical", Case(change=add("1.2.3.4", core.Null().dump(), critical=True))),
    Broken(
        "known_extensions", "not critical", Case(change=add("subject_alt_name", [asn1.GeneralName("dns_name", "a")]))
    ),
)


def test_a_certificate_that_keeps_every_lint_is_accepted() -> None:
    lint(Case().certificate(), PROFILE, CA)


def test_basic_constraints_that_say_no_ca_are_accepted() -> None:
    lint(Case(change=add("basic_constraints", {"ca": False}, critical=True)).certificate(), PROFILE, CA)


@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")  # two of the cases
@pytest.mark.parametrize("broken", CASES, ids=lambda broken: f"{broken.lint}: {broken.why}")
def test_one_wrong_thing_breaks_exactly_one_lint(broken: Broken) -> None:
    case = broken.case
    with pytest.raises(ApplianceError) as refused:
        lint(case.certificate(), case.declared, case.ca)
    assert refused.value.reason is Reason.CERTIFICATE_REFUSED
    assert refused.value.facts == {"lints": broken.lint}
    assert broken.lint in refused.value.detail


def test_every_lint_is_broken_by_a_case_and_names_its_source() -> None:
    assert [it.name for it in LINTS] == list(dict.fromkeys(broken.lint for broken in CASES))
    assert all(it.source and it.rule.endswith(".") for it in LINTS)


@pytest.mark.parametrize(("length", "keeps"), [(255, False), (256, True), (2048, True), (2049, False)])
def test_a_certificate_has_256_to_2048_bytes(length: int, keeps: bool) -> None:
    size = next(it for it in LINTS if it.name == "size")
    assert size.keeps(Examined(bytes(length), PROFILE, CA)) is keeps


def test_all_broken_lints_are_named_at_once() -> None:
    with pytest.raises(ApplianceError) as refused:
        lint(Case(serial=1, common_name="Yamada Taro").certificate(), PROFILE, CA)
    assert refused.value.facts == {"lints": "serial_number,subject"}


@pytest.mark.parametrize("der", [b"", b"\x30\x00", CA[:-1], b"\xff" * 300])
def test_what_is_no_certificate_is_refused_and_raises_nothing_else(der: bytes) -> None:
    with pytest.raises(ApplianceError) as refused:
        lint(der, PROFILE, CA)
    assert refused.value.reason is Reason.CERTIFICATE_REFUSED


def test_an_extension_given_twice_is_refused() -> None:
    def double(fields: Any) -> None:
        fields["extensions"].append(extension(fields, "key_usage").copy())

    with pytest.raises(ApplianceError) as refused:
        lint(Case(change=double).certificate(), PROFILE, CA)
    assert "key_usage" in str(refused.value.facts["lints"])


def test_a_ca_without_a_key_identifier_is_refused() -> None:
    name = x509.Name.from_rfc4514_string("CN=CA,O=Example,C=JP")
    bare = (
        x509.CertificateBuilder(name, name, CA_KEY.public_key(), SERIAL, NOW, END)
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .sign(CA_KEY, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    with pytest.raises(ApplianceError) as refused:
        lint(Case().certificate(), PROFILE, bare)
    assert "authority_key_identifier" in str(refused.value.facts["lints"])
