"""The lints: everything a certificate must keep, as one table, checked before its signature is made.

The builder and the lints say the same in two ways, and through two ASN.1 libraries: a defect of one is caught by the
other. What does not parse breaks the lint that wanted to read it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Final, Generic, NamedTuple, TypeVar

from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from appliance.domain.certificate import key_identifier, signature_scheme
from appliance.domain.package import MAX_CERTIFICATE, KeyType
from appliance.domain.profile import CertificateProfile
from appliance.errors import ApplianceError, Reason

MIN_CERTIFICATE: Final = 256
"""OpenSC reads a shorter one wrongly from the card (card-side.md)."""
SERIAL_BITS: Final = range(64, 160)
"""64 random bits at least (CA/Browser Forum BR, 7.1); 20 octets with a clear sign bit at most."""

KNOWN: Final[frozenset[x509.ObjectIdentifier]] = frozenset(
    kind.oid
    for kind in (
        x509.AuthorityInformationAccess,
        x509.AuthorityKeyIdentifier,
        x509.BasicConstraints,
        x509.CertificatePolicies,
        x509.CRLDistributionPoints,
        x509.ExtendedKeyUsage,
        x509.KeyUsage,
        x509.SubjectKeyIdentifier,
    )
)
UNREADABLE: Final = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
)
_Kind = TypeVar("_Kind", bound=x509.ExtensionType)


@dataclass(frozen=True)
class Examined:
    """A certificate beside what it is held against."""

    der: bytes
    profile: CertificateProfile
    issuer_der: bytes

    @cached_property
    def certificate(self) -> x509.Certificate:
        """Parsed."""
        return x509.load_der_x509_certificate(self.der)

    @cached_property
    def issuer(self) -> x509.Certificate:
        """The CA's certificate, parsed."""
        return x509.load_der_x509_certificate(self.issuer_der)

    def extension(self, kind: type[_Kind], *, critical: bool = False) -> _Kind:
        """The extension of this kind; ValueError unless it is there with this criticality."""
        found = self.certificate.extensions.get_extension_for_class(kind)
        if found.critical != critical:
            raise ValueError
        return found.value

    def lacks(self, kind: type[x509.ExtensionType]) -> bool:
        """Whether there is no extension of this kind."""
        return all(extension.oid != kind.oid for extension in self.certificate.extensions)


_Examined = TypeVar("_Examined", bound=Examined, contravariant=True)


class Lint(NamedTuple, Generic[_Examined]):
    """One rule: its name in errors, who made it, what it says, and whether a certificate keeps it."""

    name: str
    source: str
    rule: str
    keeps: Callable[[_Examined], bool]


def lint(certificate: bytes, profile: CertificateProfile, issuer: bytes) -> None:
    """Hold a certificate against every lint.

    Args:
        certificate: DER; its signature is not looked at.
        profile: under which it is to be issued.
        issuer: the CA's certificate, DER.

    Raises:
        ApplianceError: CERTIFICATE_REFUSED, naming all broken lints in its detail and in the fact `lints`.
    """
    if found := broken(LINTS, Examined(certificate, profile, issuer)):
        raise ApplianceError(
            Reason.CERTIFICATE_REFUSED,
            "The certificate breaks a lint. " + " ".join(f"{lint.name}: {lint.rule}" for lint in found),
            hint=f"Compare the request with profile {profile.name} and the issuing CA's certificate.",
            lints=",".join(lint.name for lint in found),
        )


def broken(lints: Iterable[Lint[_Examined]], examined: _Examined) -> list[Lint[_Examined]]:
    """Those of the lints that this certificate breaks."""
    return [lint for lint in lints if not _keeps(lint, examined)]


def _keeps(lint: Lint[_Examined], examined: _Examined) -> bool:
    try:
        return lint.keeps(examined)
    except UNREADABLE:
        return False


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _serial(it: Examined) -> bool:
    serial = it.certificate.serial_number
    return serial > 0 and serial.bit_length() in SERIAL_BITS


def _signature_algorithm(it: Examined) -> bool:
    raw = asn1_x509.Certificate.load(it.der)
    same = raw["signature_algorithm"].dump() == raw["tbs_certificate"]["signature"].dump()
    return same and it.certificate.signature_algorithm_oid.dotted_string == signature_scheme(_spki(it.issuer)).oid


def _issuer_may_sign(it: Examined) -> bool:
    extensions = it.issuer.extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    return extensions.get_extension_for_class(x509.BasicConstraints).value.ca and usage.key_cert_sign


def _validity_cap(it: Examined) -> bool:
    span = it.certificate.not_valid_after_utc - it.certificate.not_valid_before_utc
    return span <= timedelta(days=it.profile.validity_max_days)


def _validity_within_issuer(it: Examined) -> bool:
    starts = it.issuer.not_valid_before_utc <= it.certificate.not_valid_before_utc
    return starts and it.certificate.not_valid_after_utc <= it.issuer.not_valid_after_utc


def _subject(it: Examined) -> bool:
    (country,), (name,) = it.certificate.subject.rdns
    return (
        (country.oid, name.oid) == (NameOID.COUNTRY_NAME, NameOID.COMMON_NAME)
        and country.value == it.profile.subject_country
        and isinstance(name.value, str)
        and it.profile.allows_common_name(name.value)
    )


def _public_key(it: Examined) -> bool:
    match it.certificate.public_key():
        case rsa.RSAPublicKey(key_size=2048) as key:
            return key.public_numbers().e == 65537 and it.profile.allows(KeyType.RSA_2048)
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return it.profile.allows(KeyType.EC_P256)
        case ec.EllipticCurvePublicKey(curve=ec.SECP384R1()):
            return it.profile.allows(KeyType.EC_P384)
    return False


def _key_usage(it: Examined) -> bool:
    only_signature = x509.KeyUsage(True, *[False] * 8)
    return it.extension(x509.KeyUsage, critical=True) == only_signature


def _extended_key_usage(it: Examined) -> bool:
    if not it.profile.extended_key_usage:
        return it.lacks(x509.ExtendedKeyUsage)
    usages = it.extension(x509.ExtendedKeyUsage)
    return tuple(usage.dotted_string for usage in usages) == it.profile.extended_key_usage


def _certificate_policies(it: Examined) -> bool:
    statement = [it.profile.cps_url] if it.profile.cps_url else None
    wanted = x509.PolicyInformation(x509.ObjectIdentifier(it.profile.policy_oid), statement)
    return list(it.extension(x509.CertificatePolicies, critical=it.profile.policy_critical)) == [wanted]


def _crl_distribution_points(it: Examined) -> bool:
    if not it.profile.crl_url:
        return it.lacks(x509.CRLDistributionPoints)
    name = x509.UniformResourceIdentifier(it.profile.crl_url)
    return list(it.extension(x509.CRLDistributionPoints)) == [x509.DistributionPoint([name], None, None, None)]


def _authority_information_access(it: Examined) -> bool:
    wanted = [
        x509.AccessDescription(method, x509.UniformResourceIdentifier(url))
        for method, url in (
            (AuthorityInformationAccessOID.OCSP, it.profile.ocsp_url),
            (AuthorityInformationAccessOID.CA_ISSUERS, it.profile.ca_issuers_url),
        )
        if url
    ]
    if not wanted:
        return it.lacks(x509.AuthorityInformationAccess)
    return list(it.extension(x509.AuthorityInformationAccess)) == wanted


def _authority_key_identifier(it: Examined) -> bool:
    issuer = it.issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return it.extension(x509.AuthorityKeyIdentifier) == x509.AuthorityKeyIdentifier(issuer.digest, None, None)


def _subject_key_identifier(it: Examined) -> bool:
    return it.extension(x509.SubjectKeyIdentifier).digest == key_identifier(_spki(it.certificate))


def _basic_constraints(it: Examined) -> bool:
    found = [extension.value for extension in it.certificate.extensions if extension.oid == x509.BasicConstraints.oid]
    return all(isinstance(value, x509.BasicConstraints) and not value.ca for value in found)


LINTS: Final[tuple[Lint[Examined], ...]] = (
    Lint(
        "size",
        "sim-package.md, C2; card-side.md",
        f"A certificate has {MIN_CERTIFICATE} to {MAX_CERTIFICATE} bytes.",
        lambda it: MIN_CERTIFICATE <= len(it.der) <= MAX_CERTIFICATE,
    ),
    Lint(
        "version",
        "RFC 5280, 4.1.2.1",
        "The version is 3.",
        lambda it: it.certificate.version is x509.Version.v3,
    ),
    Lint("serial_number", "RFC 5280, 4.1.2.2", "The serial number is positive and has 64 to 159 bits.", _serial),
    Lint(
        "signature_algorithm",
        "RFC 5280, 4.1.1.2; RFC 5758, 3.2",
        "The signature algorithm is the one of the CA's key, named twice alike.",
        _signature_algorithm,
    ),
    Lint(
        "issuer_name",
        "RFC 5280, 4.1.2.4",
        "The issuer is the CA's subject, byte for byte.",
        lambda it: it.certificate.issuer.public_bytes() == it.issuer.subject.public_bytes(),
    ),
    Lint(
        "issuer_may_sign",
        "RFC 5280, 4.2.1.3 and 4.2.1.9",
        "The issuer is a CA whose key signs certificates.",
        _issuer_may_sign,
    ),
    Lint(
        "validity_order",
        "RFC 5280, 4.1.2.5",
        "The validity starts before it ends.",
        lambda it: it.certificate.not_valid_before_utc < it.certificate.not_valid_after_utc,
    ),
    Lint("validity_cap", "profile", "The validity is no longer than the profile permits.", _validity_cap),
    Lint(
        "validity_within_issuer",
        "RFC 5280, 6.1.3",
        "The validity lies within that of the CA's certificate.",
        _validity_within_issuer,
    ),
    Lint("subject", "profile", "The subject is the country and a common name of the profile's form.", _subject),
    Lint("public_key", "profile; RFC 8017; SEC 2", "The key is of a permitted type and of full strength.", _public_key),
    Lint("key_usage", "RFC 5280, 4.2.1.3", "The key usage is critical and digitalSignature alone.", _key_usage),
    Lint("extended_key_usage", "RFC 5280, 4.2.1.12", "The extended key usage is the profile's.", _extended_key_usage),
    Lint("certificate_policies", "RFC 5280, 4.2.1.4", "The policy is the profile's alone.", _certificate_policies),
    Lint(
        "crl_distribution_points",
        "RFC 5280, 4.2.1.13",
        "The CRL distribution point is the profile's.",
        _crl_distribution_points,
    ),
    Lint(
        "authority_information_access",
        "RFC 5280, 4.2.2.1",
        "The OCSP and CA certificate addresses are the profile's.",
        _authority_information_access,
    ),
    Lint(
        "authority_key_identifier",
        "RFC 5280, 4.2.1.1",
        "The authority key identifier is the CA's subject key identifier.",
        _authority_key_identifier,
    ),
    Lint(
        "subject_key_identifier",
        "RFC 5280, 4.2.1.2",
        "The subject key identifier is the SHA-1 of the key's bits.",
        _subject_key_identifier,
    ),
    Lint("basic_constraints", "RFC 5280, 4.2.1.9", "The subject is no CA.", _basic_constraints),
    Lint(
        "known_extensions",
        "RFC 5280, 4.2",
        "Every extension is one that the profile speaks of.",
        lambda it: all(extension.oid in KNOWN for extension in it.certificate.extensions),
    ),
)
