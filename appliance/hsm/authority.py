"""The issuing CA's key on the token: it signs certificates that were built and linted here, and nothing else."""

import hashlib
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from appliance.domain import certificate
from appliance.domain.lints import lint
from appliance.domain.profile import CertificateProfile
from appliance.errors import ApplianceError, Reason
from appliance.hsm.keys import Role, verify_attributes
from appliance.hsm.module import TokenSession

_PROOF_NOT_BEFORE = datetime.fromisoformat("2000-01-01T00:00:00+00:00")
_PROOF_NOT_AFTER = datetime.fromisoformat("2000-01-01T00:00:01+00:00")


class TokenSigner:
    """A signing key on the token, with the scheme that its public key implies."""

    def __init__(self, session: TokenSession, label: str, spki: bytes) -> None:
        """Find and check the key.

        Args:
            spki: its SubjectPublicKeyInfo, DER.

        Raises:
            ApplianceError: KEY_MISSING, KEY_ATTRIBUTES_DIFFER.
        """
        self._session = session
        self._scheme = certificate.signature_scheme(spki)
        self._rsa = self._scheme.algorithm == "sha256_rsa"
        key_type = KeyType.RSA if self._rsa else KeyType.EC
        self._key: Any = session.find({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.KEY_TYPE: key_type}, label)
        verify_attributes(session, Role.ISSUING_CA, self._key)

    def sign(self, tbs: bytes) -> bytes:
        """The certificate (DER) of a TBSCertificate."""
        if self._rsa:
            signature = self._session.call("sign", self._key.sign, tbs, mechanism=Mechanism.SHA256_RSA_PKCS)
        else:
            digest = hashlib.new(self._scheme.hash_name, tbs).digest()
            raw = self._session.call("sign", self._key.sign, digest, mechanism=Mechanism.ECDSA)
            signature = certificate.ecdsa_signature(raw)
        return certificate.assemble(tbs, signature)


class Authority:
    """One certificate profile with its CA: key on the token, certificate from the settings, proved to belong."""

    def __init__(self, session: TokenSession, profile: CertificateProfile, issuer: bytes) -> None:
        """Find the key and prove by use that it is the certificate's.

        Args:
            issuer: the CA certificate, DER.

        Raises:
            ApplianceError: KEY_MISSING, KEY_ATTRIBUTES_DIFFER.
        """
        self._profile = profile
        self._issuer = issuer
        self._placeholder = certificate.placeholder_signature(issuer)
        spki = certificate.public_key(issuer)
        self._signer = TokenSigner(session, profile.ca_label, spki)
        # Not a certificate for anybody: it ended a second after it began, a quarter of a century ago.
        proof = certificate.build_tbs(profile, issuer, spki, 1, "PROOF OF USE", _PROOF_NOT_BEFORE, _PROOF_NOT_AFTER)
        signed = x509.load_der_x509_certificate(self._signer.sign(proof))
        try:
            signed.verify_directly_issued_by(x509.load_der_x509_certificate(issuer))
        except (InvalidSignature, ValueError):
            raise ApplianceError(
                Reason.KEY_ATTRIBUTES_DIFFER,
                f"CA key {profile.ca_label} on the token is not the one of profile {profile.name}'s CA certificate.",
                hint="Set ca_certificate and ca_label to what the same ceremony made.",
                field=f"profiles.{profile.name}.ca_certificate",
            ) from None

    def issue(
        self, spki: bytes, serial: int, common_name: str, not_before: datetime, not_after: datetime
    ) -> bytes:
        """Build from typed fields, lint, and only then sign; answers the certificate (DER).

        Raises:
            ApplianceError: CERTIFICATE_REFUSED; nothing was signed.
        """
        tbs = certificate.build_tbs(self._profile, self._issuer, spki, serial, common_name, not_before, not_after)
        lint(certificate.assemble(tbs, self._placeholder), self._profile, self._issuer)
        return self._signer.sign(tbs)
