"""pkilint's RFC 5280 linters read what a real token issues, and its CAs: another reading of the standard than ours.

Its other linters are for certificates that these are not: TLS servers, S/MIME (CA/Browser Forum), eIDAS (ETSI).
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from asn1crypto import core, x509
from pkilint.bin import lint_pkix_signer_signee_cert_chain as chain
from pkilint.loader import RFC5280CertificateDocumentLoader
from pkilint.pkix import certificate as pkix
from pkilint.pkix.extension import EXTENSION_MAPPINGS
from pkilint.pkix.name import ATTRIBUTE_TYPE_MAPPINGS

from appliance.ceremony.authority import make_issuing_ca
from appliance.config import load
from appliance.domain.package import KeyType, SimPackage
from appliance.domain.profile import CertificateProfile
from appliance.hsm.engine import Engine
from tests.hsm.site import PIN, Calls, Site, order
from tests.hsm.site import PROFILES as AUTHORITIES
from tests.hsm.site import profile as profile_of_tests

DECLARED = load(Path(__file__).parents[2] / "hsm_config" / "appliance.toml").profiles
BARE = replace(profile_of_tests("bare"), crl_url="", ocsp_url="", ca_issuers_url="", cps_url="", extended_key_usage=())
PROFILES: Mapping[str, CertificateProfile] = {**DECLARED, "tests": profile_of_tests("tests"), "bare": BARE}
"""Every profile of hsm_config/, the one that tests on a token use, and one without all that can be left out."""
NOW = datetime.now(UTC).replace(microsecond=0)


class Explained(NamedTuple):
    """A finding that stays, and whether a certificate of this profile (None: of a CA) must have it."""

    code: str
    why: str
    expected: Callable[[CertificateProfile | None], bool]


EXPLAINED = (
    Explained(
        "pkix.subject_key_identifier_method_1_identified",
        "Information, not a defect: the identifier is the SHA-1 of the key's bits (RFC 5280, 4.2.1.2, method 1).",
        lambda _: True,
    ),
    Explained(
        "pkix.certificate_policies_policy_has_qualifier",
        "RFC 5280, 4.2.1.4 recommends a policy without qualifiers and permits the address of a statement, which the "
        "certificates on the My Number card carry (hsm_config/profiles/); a profile with cps_url asks for it.",
        lambda profile: profile is not None and bool(profile.cps_url),
    ),
)


def explained(profile: CertificateProfile | None) -> list[str]:
    """The codes of the findings that a certificate must have."""
    return sorted(finding.code for finding in EXPLAINED if finding.expected(profile))


@cache
def linter() -> Any:
    """As `lint_pkix_cert` puts it together."""
    return pkix.create_pkix_certificate_validator_container(
        pkix.create_decoding_validators(ATTRIBUTE_TYPE_MAPPINGS, EXTENSION_MAPPINGS),
        [
            pkix.create_issuer_validator_container([]),
            pkix.create_validity_validator_container(),
            pkix.create_subject_validator_container([]),
            pkix.create_extensions_validator_container([]),
            pkix.create_spki_validator_container([]),
        ],
    )


def lint(der: bytes) -> list[str]:
    """The codes of all findings, of whatever severity."""
    return codes(linter().validate(RFC5280CertificateDocumentLoader().load_der_document(der).root))


def lint_chain(issuer: bytes, subject: bytes) -> list[str]:
    """The codes of all findings on both together, as `lint_pkix_signer_signee_cert_chain` makes them."""
    documents: dict[str, Any] = {}
    for name, der in (("issuer", issuer), ("subject", subject)):
        documents[name] = RFC5280CertificateDocumentLoader().load_der_document(der, name, name, documents)
    above, below = documents["issuer"].root, documents["subject"].root
    decoders = chain.create_decoder_validation_container()
    return codes(
        (
            *decoders.validate(above),
            *decoders.validate(below),
            *chain.create_issuer_validation_container().validate(above),
            *chain.create_subject_validation_container().validate(below),
        )
    )


def codes(results: Iterable[Any]) -> list[str]:
    """Sorted."""
    return sorted(described.finding.code for result in results for described in result.finding_descriptions)


def issue(site: Site, authority: str, profile: CertificateProfile, *key_types: KeyType) -> list[bytes]:
    """A certificate for each key type, out of the vault's engine."""
    declared = replace(profile, ca_label=authority.upper())
    engine = Engine.start(
        site.module,
        [site.issuer()],
        [(declared, site.authorities[authority])],
        PIN,
        clock=lambda: datetime.now(UTC),
        stamp=Calls(),
    )
    with closing(engine):
        return [
            SimPackage.decode(engine.issue(order(key_type, profile=profile.name))).certificate for key_type in key_types
        ]


@pytest.mark.parametrize("authority", AUTHORITIES)
@pytest.mark.parametrize("name", PROFILES)
def test_certificates_of_every_profile_ca_and_key_type_have_no_unexplained_finding(
    site: Site, name: str, authority: str
) -> None:
    profile = PROFILES[name]
    for certificate in issue(site, authority, profile, *(KeyType[key_type] for key_type in profile.key_types)):
        assert lint(certificate) == explained(profile)
        assert lint_chain(site.authorities[authority], certificate) == []


@pytest.mark.parametrize(
    "end", [datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)], ids=str
)
@pytest.mark.parametrize("key_type", KeyType, ids=lambda key_type: key_type.name)
def test_ca_certificate_has_no_unexplained_finding(site: Site, key_type: KeyType, end: datetime) -> None:
    with site.session() as session:
        certificate = make_issuing_ca(session, "NEW-CA", key_type, "Example", "利用者証明用認証局", NOW, end)
    assert lint(certificate) == explained(None)
    assert lint_chain(certificate, certificate) == []


def test_every_explanation_is_in_use_and_says_why() -> None:
    for finding in EXPLAINED:
        assert any(finding.expected(profile) for profile in PROFILES.values())
        assert "RFC 5280" in finding.why


Change = Callable[[Any], None]


def extension(tbs: Any, kind: str) -> Any:
    """The extension of this kind."""
    return next(it for it in tbs["extensions"] if it["extn_id"].native == kind)


def put(name: str, value: object) -> Change:
    """Another value of a field of the TBSCertificate."""
    return lambda tbs: tbs.__setitem__(name, value)


def drop(kind: str) -> Change:
    """An extension left out."""
    return lambda tbs: tbs.__setitem__("extensions", [it for it in tbs["extensions"] if it["extn_id"].native != kind])


def mark(kind: str, *, critical: bool) -> Change:
    """Another criticality."""
    return lambda tbs: extension(tbs, kind).__setitem__("critical", critical)


def country(value: str) -> Change:
    """Another country of the subject."""
    return put("subject", x509.Name.build({"country_name": value, "common_name": "USER0123456789"}))


BAD: dict[str, Change] = {
    "pkix.certificate_version_is_not_v3": put("version", "v1"),
    "pkix.certificate_serial_number_out_of_range": put("serial_number", 0),
    "pkix.certificate_signature_algorithm_mismatch": put("signature", {"algorithm": "sha384_ecdsa"}),
    "pkix.certificate_negative_validity_period": put(
        "validity",
        {"not_before": x509.Time({"utc_time": NOW}), "not_after": x509.Time({"utc_time": NOW - timedelta(days=1)})},
    ),
    "pkix.certificate_skid_end_entity_missing": drop("key_identifier"),
    "pkix.authority_key_identifier_extension_absent": drop("authority_key_identifier"),
    "pkix.key_usage_extension_not_critical": mark("key_usage", critical=False),
    "pkix.certificate_crldp_extension_critical": mark("crl_distribution_points", critical=True),
    "itu.invalid_asn1_syntax": country("JPN"),
}


@pytest.mark.parametrize("code", BAD)
def test_certificate_that_is_spoilt_has_a_finding_that_is_not_explained(site: Site, code: str) -> None:
    profile = PROFILES["tests"]
    (good,) = issue(site, "p256-ca", profile, KeyType.EC_P256)
    certificate = x509.Certificate.load(good)
    BAD[code](certificate["tbs_certificate"])
    assert code in lint(certificate.dump(force=True))
    assert code not in explained(profile)


def test_certificate_beside_another_ca_or_with_another_signature_has_findings(site: Site) -> None:
    (good,) = issue(site, "p256-ca", PROFILES["tests"], KeyType.EC_P256)
    foreign = lint_chain(site.authorities["p384-ca"], good)
    assert foreign == [
        "pkix.issuer_and_subject_dn_not_binary_equal",
        "pkix.issuer_and_subject_key_identifier_not_equal",
        "pkix.signature_verification_failed",
    ]
    certificate = x509.Certificate.load(good)
    certificate["signature_value"] = core.OctetBitString(bytes(70))
    spoilt = lint_chain(site.authorities["p256-ca"], certificate.dump(force=True))
    assert spoilt == ["pkix.signature_verification_failed"]
