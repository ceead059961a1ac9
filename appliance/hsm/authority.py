"""The issuing CA's key on the token: it signs certificates that were built and linted here, and nothing else."""

from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute, KeyType, ObjectClass

from appliance.domain import certificate
from appliance.domain.lints import lint
from appliance.domain.profile import CertificateProfile
from appliance.errors import ApplianceError, Reason
from appliance.hsm.keys import Role, verify_attributes
from appliance.hsm.module import TokenSession
from appliance.hsm.probe import needed
from appliance.hsm.signing import mechanism, sign

_PROOF = b"PROOF OF USE: text, and so no certificate and no revocation list of anybody."
_HASHES: dict[str, hashes.HashAlgorithm] = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384()}


class TokenSigner:
    """A signing key on the token, with the scheme that its public key implies."""

    def __init__(self, session: TokenSession, label: str, spki: bytes, *, field: str = "") -> None:
        """Find and check the key, and prove by use that it is the private half of its public key.

        Args:
            spki: its SubjectPublicKeyInfo, DER.
            field: where the settings declare it.

        Raises:
            ApplianceError: KEY_MISSING, KEY_ATTRIBUTES_DIFFER, CA_KEY_MISMATCH, MECHANISM_MISSING.
        """
        self._session = session
        self._scheme = certificate.signature_scheme(spki)
        key_type = KeyType.RSA if self._scheme.is_rsa else KeyType.EC
        template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.KEY_TYPE: key_type}
        self._key: Any = session.find(template, label, field=field)
        verify_attributes(session, Role.ISSUING_CA, self._key, field=field)
        if not self._belongs_to(spki):
            raise ApplianceError(
                Reason.CA_KEY_MISMATCH,
                f"Key {label} on the token is not the one of its CA certificate.",
                hint="Set ca_certificate and ca_label to what the same ceremony made.",
                field=field,
                label=label,
            )

    def sign(self, tbs: bytes) -> bytes:
        """The certificate (DER) of a TBSCertificate."""
        return certificate.assemble(tbs, sign(self._session, self._key, self._scheme, tbs))

    def _belongs_to(self, spki: bytes) -> bool:
        with needed(mechanism(self._scheme)):
            signature = sign(self._session, self._key, self._scheme, _PROOF)
        algorithm = _HASHES[self._scheme.hash_name]
        try:
            match load_der_public_key(spki):
                case rsa.RSAPublicKey() as public:
                    public.verify(signature, _PROOF, padding.PKCS1v15(), algorithm)
                    return True
                case ec.EllipticCurvePublicKey() as public:
                    public.verify(signature, _PROOF, ec.ECDSA(algorithm))
                    return True
        except InvalidSignature:
            pass
        return False


class Authority:
    """One certificate profile with its CA: key on the token, certificate from the settings."""

    def __init__(self, session: TokenSession, profile: CertificateProfile, issuer: bytes) -> None:
        """Find the key and prove that it is the certificate's.

        Args:
            issuer: the CA certificate, DER.

        Raises:
            ApplianceError: KEY_MISSING, KEY_ATTRIBUTES_DIFFER, CA_KEY_MISMATCH, MECHANISM_MISSING.
        """
        self._profile = profile
        self._issuer = issuer
        self._placeholder = certificate.placeholder_signature(issuer)
        self._signer = TokenSigner(
            session, profile.ca_label, certificate.public_key(issuer), field=f"profiles.{profile.name}.ca_label"
        )

    def issue(self, spki: bytes, serial: int, common_name: str, not_before: datetime, not_after: datetime) -> bytes:
        """Build from typed fields, lint, and only then sign; answers the certificate (DER).

        Raises:
            ApplianceError: CERTIFICATE_REFUSED; nothing was signed.
        """
        tbs = certificate.build_tbs(self._profile, self._issuer, spki, serial, common_name, not_before, not_after)
        lint(certificate.assemble(tbs, self._placeholder), self._profile, self._issuer)
        return self._signer.sign(tbs)
