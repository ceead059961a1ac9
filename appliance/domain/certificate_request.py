"""Certificate requests for an external CA as bytes: what is to be signed, and signature joined to it (RFC 2986).

Nothing is signed here. A request says what the profile says: subject, key, and as wished extensions (RFC 2985, 5.4.2)
the key usages. All else that stands in a certificate is the CA's own.
"""

from asn1crypto import core, csr, keys, x509
from cryptography import x509 as read
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from appliance.domain.certificate import build_algorithm, build_extension, build_name, signature_scheme
from appliance.domain.package import KeyType
from appliance.domain.profile import CertificateProfile
from appliance.errors import ApplianceError, Reason


def require_permitted(profile: CertificateProfile, key_type: KeyType, common_name: str) -> None:
    """Refuse to ask for what the profile does not permit: CERTIFICATE_REFUSED, before there is a key."""
    kept = {"public_key": profile.allows(key_type), "subject": profile.allows_common_name(common_name)}
    broken = [lint for lint, keeps in kept.items() if not keeps]
    if broken:
        raise ApplianceError(
            Reason.CERTIFICATE_REFUSED,
            f"Profile {profile.name} permits no such certificate: {', '.join(broken)}.",
            hint=f"Compare the request with profile {profile.name}.",
            lints=",".join(broken),
        )


def build_request_info(profile: CertificateProfile, spki: bytes, common_name: str) -> bytes:
    """The DER CertificationRequestInfo of a subscriber.

    Args:
        profile: says everything that the other arguments do not.
        spki: the subscriber's SubjectPublicKeyInfo, DER.
        common_name: CN of the subject.
    """
    wished = [build_extension("key_usage", set(profile.key_usage), critical=True)]
    if profile.extended_key_usage:
        wished.append(build_extension("extended_key_usage", list(profile.extended_key_usage)))
    info = csr.CertificationRequestInfo(
        {
            "version": "v1",
            "subject": build_name(country_name=profile.subject_country, common_name=common_name),
            "subject_pk_info": keys.PublicKeyInfo.load(spki),
            "attributes": [{"type": "extension_request", "values": [x509.Extensions(wished)]}],
        }
    )
    return bytes(info.dump())


def assemble_request(info: bytes, signature: bytes) -> bytes:
    """The DER CertificationRequest of what `build_request_info` made and its signature, which is verified.

    A faulty RSA signature could give the key away, so none leaves.

    Args:
        info: DER.
        signature: by the key that `info` names; RSA as it is, ECDSA as DER.

    Raises:
        ApplianceError: TOKEN_FAULT where the signature does not verify.
    """
    body = csr.CertificationRequestInfo.load(info)
    request = csr.CertificationRequest(
        {
            "certification_request_info": body,
            "signature_algorithm": build_algorithm(signature_scheme(body["subject_pk_info"].dump())),
            "signature": core.OctetBitString(signature),
        }
    )
    der = bytes(request.dump())
    if not _verifies(der):
        raise ApplianceError(
            Reason.TOKEN_FAULT,
            "The HSM's signature on a certificate request does not verify.",
            hint="Look at the HSM; nothing was answered.",
            call="sign",
        )
    return der


def _verifies(request: bytes) -> bool:
    try:
        return read.load_der_x509_csr(request).is_signature_valid
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        return False
