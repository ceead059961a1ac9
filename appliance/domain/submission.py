"""A certificate that an external CA has issued: everything it must keep before it completes a package, as tables.

The lints of our own certificates hold, where they are the profile's and not our builder's (another CA has addresses,
serial numbers and extensions of its own), and with them what only a certificate from outside can get wrong.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from appliance.domain.certificate import public_key, signature_scheme
from appliance.domain.lints import KNOWN, LINTS, UNREADABLE, Examined, Lint, broken
from appliance.domain.package import MAX_CERTIFICATE
from appliance.domain.profile import CertificateProfile
from appliance.domain.setting import SettingError
from appliance.errors import ApplianceError, Reason

CLOCK_TOLERANCE: Final = timedelta(minutes=5)
"""How far the CA's clock may be ahead of ours."""
MAX_SERIAL: Final = 20
"""Octets (RFC 5280, 4.1.2.2); how many of them are random is the CA's affair."""
_HASHES: Final = frozenset({"sha256", "sha384", "sha512"})


class Wanted(NamedTuple):
    """What the certificate is for: digest of the sealed key's SubjectPublicKeyInfo, common name, latest end (aware)."""

    spki_sha256: bytes
    common_name: str
    latest_end: datetime


@dataclass(frozen=True)
class Submitted(Examined):
    """A submitted certificate beside what it is held against."""

    wanted: Wanted
    now: datetime


class ExternalCa:
    """One certificate profile with its external CA.

    Args:
        profile: whose `ca_mode` is external.
        certificate: the CA's, DER.

    Raises:
        SettingError: SETTINGS_INVALID where no certificate can be held against this one.
    """

    def __init__(self, profile: CertificateProfile, certificate: bytes) -> None:
        self.profile = profile
        self._certificate = certificate
        try:
            signature_scheme(public_key(certificate))
            usable = not broken([_OURS["issuer_may_sign"]], Examined(certificate, profile, certificate))
        except (ApplianceError, *UNREADABLE):
            usable = False
        if not usable:
            raise SettingError(
                f"profiles/{profile.name}.toml: ca_certificate",
                f"{profile.ca_certificate} is no CA certificate whose key signs certificates.",
                "Name the certificate of the CA that issues: RSA of 2,048 bits or more, P-256 or P-384.",
            )

    def examine(self, certificate: bytes, wanted: Wanted, now: datetime) -> None:
        """Return only if this certificate may complete the package.

        Raises:
            ApplianceError: CERTIFICATE_REFUSED, naming the broken lints in its detail and in the fact `lints`.
        """
        identify(certificate)
        submitted = Submitted(certificate, self.profile, self._certificate, wanted, now)
        for lints, way_out in _STEPS:
            if found := broken(lints, submitted):
                raise _refused(found, way_out.format(profile=self.profile.name))


def identify(certificate: bytes) -> tuple[bytes, bytes]:
    """Issuer's name, DER, and serial number, big-endian without leading zeros, of what has the form of a certificate.

    Raises:
        ApplianceError: CERTIFICATE_REFUSED.
    """
    try:
        if len(certificate) <= MAX_CERTIFICATE:
            parsed = x509.load_der_x509_certificate(certificate)
            serial = max(parsed.serial_number, 0)
            return parsed.issuer.public_bytes(), serial.to_bytes((serial.bit_length() + 7) // 8)
    except UNREADABLE:
        pass
    raise _refused([_FORM], "Submit one X.509 certificate in DER, as the CA has made it.")


def _refused(lints: "Sequence[Lint[Submitted]]", way_out: str) -> ApplianceError:
    return ApplianceError(
        Reason.CERTIFICATE_REFUSED,
        "The certificate cannot be taken. " + " ".join(f"{lint.name}: {lint.rule}" for lint in lints),
        hint=f"{way_out} Nothing has changed.",
        field="certificate",
        lints=",".join(lint.name for lint in lints),
    )


def _serial(it: Submitted) -> bool:
    serial = it.certificate.serial_number
    return serial > 0 and serial.bit_length() < MAX_SERIAL * 8


def _signature(it: Submitted) -> bool:
    it.certificate.verify_directly_issued_by(it.issuer)
    return True


def _signature_algorithm(it: Submitted) -> bool:
    raw = asn1_x509.Certificate.load(it.der)
    same = raw["signature_algorithm"].dump() == raw["tbs_certificate"]["signature"].dump()
    digest = it.certificate.signature_hash_algorithm
    return same and digest is not None and digest.name in _HASHES


def _subject(it: Submitted) -> bool:
    found = [(attribute.oid, attribute.value) for attribute in it.certificate.subject]
    asked = [(NameOID.COUNTRY_NAME, it.profile.subject_country), (NameOID.COMMON_NAME, it.wanted.common_name)]
    return found in (asked, asked[::-1]) and it.profile.allows_common_name(it.wanted.common_name)


def _extended_key_usage(it: Submitted) -> bool:
    if not it.profile.extended_key_usage:
        return it.lacks(x509.ExtendedKeyUsage)
    usages = it.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return {usage.dotted_string for usage in usages} == set(it.profile.extended_key_usage)


def _certificate_policies(it: Submitted) -> bool:
    policies = it.extension(x509.CertificatePolicies, critical=it.profile.policy_critical)
    return [policy.policy_identifier.dotted_string for policy in policies] == [it.profile.policy_oid]


def _authority_key_identifier(it: Submitted) -> bool:
    issuer = it.issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    found = it.extension(x509.AuthorityKeyIdentifier)
    return found.key_identifier == issuer.digest and found.authority_cert_serial_number in (
        None,
        it.issuer.serial_number,
    )


def _critical_extensions(it: Submitted) -> bool:
    return all(extension.oid in KNOWN for extension in it.certificate.extensions if extension.critical)


def _no_alternative_name(it: Submitted) -> bool:
    return all(extension.oid != ExtensionOID.SUBJECT_ALTERNATIVE_NAME for extension in it.certificate.extensions)


_OURS: Final = {lint.name: lint for lint in LINTS}
_FORM: Final[Lint[Submitted]] = Lint(
    "form",
    "sim-package.md, C2; RFC 5280, 4.1",
    f"It is the DER of one certificate, at most {MAX_CERTIFICATE} bytes, with nothing behind it.",
    lambda it: bool(identify(it.der)),
)
_KEY: Final[tuple[Lint[Submitted], ...]] = (
    Lint(
        "key",
        "sim-package.md, field 86",
        "Its key is the one that was sealed for this issuance.",
        lambda it: hashlib.sha256(public_key(it.der)).digest() == it.wanted.spki_sha256,
    ),
)
_CA: Final[tuple[Lint[Submitted], ...]] = (
    _OURS["issuer_name"],
    _OURS["issuer_may_sign"],
    Lint(
        "issuer_valid",
        "RFC 5280, 6.1.3",
        "The CA's own certificate is valid now.",
        lambda it: it.issuer.not_valid_before_utc <= it.now <= it.issuer.not_valid_after_utc,
    ),
    Lint("signature", "RFC 5280, 6.1.3", "The CA's key has signed it.", _signature),
)
_CONTENT: Final[tuple[Lint[Submitted], ...]] = (
    _OURS["version"],
    Lint("serial_number", "RFC 5280, 4.1.2.2", "The serial number is positive and has at most 20 octets.", _serial),
    Lint(
        "signature_algorithm",
        "RFC 5280, 4.1.1.2",
        "The signature is over SHA-256, SHA-384 or SHA-512, and its algorithm is named twice alike.",
        _signature_algorithm,
    ),
    _OURS["validity_order"],
    _OURS["validity_cap"],
    _OURS["validity_within_issuer"],
    Lint(
        "valid_now",
        "RFC 5280, 4.1.2.5",
        "The validity has begun and has not ended.",
        lambda it: it.certificate.not_valid_before_utc - CLOCK_TOLERANCE <= it.now < it.certificate.not_valid_after_utc,
    ),
    Lint(
        "latest_end",
        "IssueRequest.card_certificate",
        "The validity ends no later than that of the card certificate.",
        lambda it: it.certificate.not_valid_after_utc <= it.wanted.latest_end,
    ),
    Lint("subject", "certificate_request", "The subject is what was asked for and nothing else.", _subject),
    _OURS["public_key"],
    _OURS["key_usage"],
    Lint("extended_key_usage", "RFC 5280, 4.2.1.12", "The extended key usages are the profile's.", _extended_key_usage),
    Lint("certificate_policies", "RFC 5280, 4.2.1.4", "The policy is the profile's alone.", _certificate_policies),
    Lint(
        "authority_key_identifier",
        "RFC 5280, 4.2.1.1",
        "The authority key identifier is the CA's.",
        _authority_key_identifier,
    ),
    _OURS["basic_constraints"],
    Lint(
        "critical_extensions",
        "RFC 5280, 4.2",
        "Every critical extension is one that the profile speaks of.",
        _critical_extensions,
    ),
    Lint(
        "subject_alternative_name",
        "profile",
        "There is no alternative name of the subject: name, address, birth date or sex could stand there.",
        _no_alternative_name,
    ),
)
_STEPS: Final[tuple[tuple[tuple[Lint[Submitted], ...], str], ...]] = (
    (_KEY, "Submit the certificate that was issued from this issuance's certificate_request."),
    (_CA, "Have the CA of profile {profile} issue it; if it did, the operator puts its certificate into the profile."),
    (_CONTENT, "Have the CA issue another one from the same certificate_request, as profile {profile} says."),
)
"""What is checked in which order, each step with the way out."""

SUBMITTED_LINTS: Final = (_FORM, *_KEY, *_CA, *_CONTENT)
"""All of them, by which the tests hold themselves complete."""
