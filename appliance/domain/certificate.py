"""X.509 certificates as bytes: what is to be signed, and signature joined to it (RFC 5280). Nothing is signed here."""

import hashlib
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple

from asn1crypto import algos, core, keys, x509

from appliance.domain.profile import CertificateProfile
from appliance.errors import ApplianceError, Reason

_GENERALIZED_FROM: Final = 2050
"""RFC 5280, 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050."""


class SignatureScheme(NamedTuple):
    """How a CA's key signs; it follows from the key alone.

    Args:
        algorithm: asn1crypto's name of the signature algorithm.
        oid: its object identifier, dotted.
        hash_name: hashlib's name of its digest.
        max_length: most bytes of a signature as it stands in a certificate.
    """

    algorithm: str
    oid: str
    hash_name: str
    max_length: int

    @property
    def is_rsa(self) -> bool:
        """RSASSA-PKCS1-v1_5; else ECDSA."""
        return self.algorithm == "sha256_rsa"


_EC_SCHEMES: Final = {
    "secp256r1": SignatureScheme("sha256_ecdsa", "1.2.840.10045.4.3.2", "sha256", 72),
    "secp384r1": SignatureScheme("sha384_ecdsa", "1.2.840.10045.4.3.3", "sha384", 104),
}


def signature_scheme(spki: bytes) -> SignatureScheme:
    """How the key of this DER SubjectPublicKeyInfo signs certificates.

    Raises:
        ApplianceError: CERTIFICATE_REFUSED where it is neither RSA of 2,048 bits or more, P-256 nor P-384.
    """
    with suppress(KeyError, TypeError, ValueError):  # what the library raises for a key that it does not know
        key = keys.PublicKeyInfo.load(spki)
        if key.algorithm == "rsa" and key.bit_size >= 2048:
            return SignatureScheme("sha256_rsa", "1.2.840.113549.1.1.11", "sha256", key.byte_size)
        if key.algorithm == "ec" and key.curve[1] in _EC_SCHEMES:
            return _EC_SCHEMES[key.curve[1]]
    raise ApplianceError(
        Reason.CERTIFICATE_REFUSED,
        "The issuing CA's key is none that may sign certificates.",
        hint="Use a CA key of RSA with 2,048 bits or more, P-256 or P-384.",
    )


def public_key(certificate: bytes) -> bytes:
    """The DER SubjectPublicKeyInfo of a DER certificate."""
    return bytes(x509.Certificate.load(certificate).public_key.dump())


def last_second(certificate: bytes) -> datetime:
    """The end of validity of a DER certificate, aware."""
    end: datetime = x509.Certificate.load(certificate)["tbs_certificate"]["validity"]["not_after"].native
    return end


def build_tbs(
    profile: CertificateProfile,
    issuer: bytes,
    spki: bytes,
    serial: int,
    common_name: str,
    not_before: datetime,
    not_after: datetime,
) -> bytes:
    """The DER TBSCertificate of a subscriber.

    Args:
        profile: says everything that the other arguments do not.
        issuer: the CA's certificate, DER; its subject is copied byte for byte.
        spki: the subscriber's SubjectPublicKeyInfo, DER.
        serial: positive, 64 to 159 bits (RFC 5280, 4.1.2.2: at most 20 octets).
        common_name: CN of the subject.
        not_before, not_after: aware; first and last second of validity, both included.
    """
    issued = _issued_alike(profile, issuer)
    return _tbs(
        issuer=issued.issuer,
        subject=build_name(country_name=profile.subject_country, common_name=common_name),
        scheme=issued.scheme,
        spki=spki,
        serial=serial,
        not_before=not_before,
        not_after=not_after,
        extensions=[build_extension("key_identifier", key_identifier(spki)), *issued.extensions],
    )


def build_self_signed_tbs(
    spki: bytes, serial: int, organization: str, common_name: str, not_before: datetime, not_after: datetime
) -> bytes:
    """The DER TBSCertificate of an issuing CA, signed by its own key: C=JP, O, CN; no CA below it.

    Args:
        spki: the CA key's SubjectPublicKeyInfo, DER.
        serial: positive, 64 to 159 bits.
        organization, common_name: O and CN, 1 to 64 characters.
        not_before, not_after: aware; first and last second of validity, both included.
    """
    name = build_name(country_name="JP", organization_name=organization, common_name=common_name)
    identifier = key_identifier(spki)
    return _tbs(
        issuer=name,
        subject=name,
        scheme=signature_scheme(spki),
        spki=spki,
        serial=serial,
        not_before=not_before,
        not_after=not_after,
        extensions=[
            build_extension("basic_constraints", {"ca": True, "path_len_constraint": 0}, critical=True),
            build_extension("key_usage", {"key_cert_sign", "crl_sign"}, critical=True),
            build_extension("key_identifier", identifier),
            build_extension("authority_key_identifier", {"key_identifier": identifier}),
        ],
    )


def assemble(tbs: bytes, signature: bytes) -> bytes:
    """The DER certificate of a TBSCertificate and its signature.

    Args:
        tbs: DER, as built here.
        signature: as it stands in a certificate: RSA as it is, ECDSA as DER (`ecdsa_signature`).
    """
    body = x509.TbsCertificate.load(tbs)
    return bytes(
        x509.Certificate(
            {
                "tbs_certificate": body,
                "signature_algorithm": body["signature"],
                "signature_value": core.OctetBitString(signature),
            }
        ).dump()
    )


def placeholder_signature(issuer: bytes) -> bytes:
    """Zeros of the longest signature that the key of this CA certificate (DER) makes, to lint before signing."""
    return bytes(signature_scheme(public_key(issuer)).max_length)


def ecdsa_signature(r_and_s: bytes) -> bytes:
    """DER Ecdsa-Sig-Value (RFC 3279, 2.2.3) of r || s as PKCS#11 gives them, each half of the bytes."""
    half = len(r_and_s) // 2
    r, s = int.from_bytes(r_and_s[:half]), int.from_bytes(r_and_s[half:])
    return bytes(algos.DSASignature({"r": r, "s": s}).dump())


def key_identifier(spki: bytes) -> bytes:
    """20 bytes: SHA-1 of the public key's bits (RFC 5280, 4.2.1.2, method 1)."""
    bits = bytes(keys.PublicKeyInfo.load(spki)["public_key"].contents[1:])  # the first byte counts unused bits
    return hashlib.sha1(bits, usedforsecurity=False).digest()


def _tbs(
    *,
    issuer: x509.Name,
    subject: x509.Name,
    scheme: SignatureScheme,
    spki: bytes,
    serial: int,
    not_before: datetime,
    not_after: datetime,
    extensions: list[x509.Extension],
) -> bytes:
    tbs = x509.TbsCertificate(
        {
            "version": "v3",
            "serial_number": serial,
            "signature": build_algorithm(scheme),
            "issuer": issuer,
            "validity": {"not_before": _time(not_before), "not_after": _time(not_after)},
            "subject": subject,
            "subject_public_key_info": keys.PublicKeyInfo.load(spki),
            "extensions": extensions,
        }
    )
    return bytes(tbs.dump())


def build_algorithm(scheme: SignatureScheme) -> algos.SignedDigestAlgorithm:
    """AlgorithmIdentifier of a signature."""
    # RFC 4055, 5: RSA has NULL parameters; RFC 5758, 3.2: ECDSA has none.
    parameters = {"parameters": core.Null()} if scheme.is_rsa else {}
    return algos.SignedDigestAlgorithm({"algorithm": scheme.algorithm, **parameters})


def build_name(**attributes: str) -> x509.Name:
    """A distinguished name of these attributes, in asn1crypto's terms and in this order."""
    return x509.Name.build(attributes)


def _time(moment: datetime) -> x509.Time:
    whole = moment.astimezone(UTC).replace(microsecond=0)
    return x509.Time({"utc_time" if whole.year < _GENERALIZED_FROM else "general_time": whole})


class _IssuedAlike(NamedTuple):
    """What all certificates of one profile and CA share; built once, because it is most of the work."""

    issuer: x509.Name
    scheme: SignatureScheme
    extensions: tuple[x509.Extension, ...]


@lru_cache(maxsize=16)
def _issued_alike(profile: CertificateProfile, issuer: bytes) -> _IssuedAlike:
    ca = x509.Certificate.load(issuer)
    extensions = [
        build_extension("authority_key_identifier", {"key_identifier": ca.key_identifier}),
        build_extension("key_usage", set(profile.key_usage), critical=True),
        build_extension("certificate_policies", [_policy(profile)], critical=profile.policy_critical),
    ]
    if profile.extended_key_usage:
        extensions.append(build_extension("extended_key_usage", list(profile.extended_key_usage)))
    if profile.crl_url:
        point = {"distribution_point": x509.DistributionPointName("full_name", [_uri(profile.crl_url)])}
        extensions.append(build_extension("crl_distribution_points", [point]))
    access = [
        {"access_method": method, "access_location": _uri(url)}
        for method, url in (("ocsp", profile.ocsp_url), ("ca_issuers", profile.ca_issuers_url))
        if url
    ]
    if access:
        extensions.append(build_extension("authority_information_access", access))
    reloaded = tuple(x509.Extension.load(extension.dump()) for extension in extensions)
    return _IssuedAlike(ca.subject, signature_scheme(ca.public_key.dump()), reloaded)


def _policy(profile: CertificateProfile) -> x509.PolicyInformation:
    statement = [{"policy_qualifier_id": "certification_practice_statement", "qualifier": profile.cps_url}]
    return x509.PolicyInformation(
        {"policy_identifier": profile.policy_oid} | ({"policy_qualifiers": statement} if profile.cps_url else {})
    )


def _uri(url: str) -> x509.GeneralName:
    return x509.GeneralName("uniform_resource_identifier", url)


def build_extension(kind: str, value: Any, *, critical: bool = False) -> x509.Extension:
    """An extension, in asn1crypto's terms."""
    return x509.Extension({"extn_id": kind, "critical": critical, "extn_value": value})
