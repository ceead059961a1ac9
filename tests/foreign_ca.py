"""J-LIS's CA as the tests have it: made with `cryptography`, sharing no code with the appliance."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

POLICY = "1.2.392.200149.8.5.1.3.30"
SIGNATURE_ALONE = x509.KeyUsage(True, *[False] * 8)
SIGNS_CERTIFICATES = x509.KeyUsage(False, False, False, False, False, True, True, False, False)

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
Extensions = dict[str, tuple[x509.ExtensionType, bool]]


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class ForeignCa:
    """A CA of its own.

    Args:
        name: CN; two of one name have the same subject.
        key: P-256 where there is none.
        days: from yesterday on.
    """

    def __init__(self, name: str = "J-LIS TEST CA", key: PrivateKey | None = None, *, days: int = 3650) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name(
            [x509.NameAttribute(NameOID.COUNTRY_NAME, "JP"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
        )
        start = now() - timedelta(days=1)
        self.certificate = (
            x509.CertificateBuilder(self.name, self.name, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(days=days))
            .add_extension(x509.BasicConstraints(True, 0), critical=True)
            .add_extension(SIGNS_CERTIFICATES, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def resign(self, tbs: bytes) -> bytes:
        """The signature over a TBSCertificate that a test has changed; of a CA with a P-256 key."""
        assert isinstance(self.key, ec.EllipticCurvePrivateKey)
        return self.key.sign(tbs, ec.ECDSA(hashes.SHA256()))

    def issue(
        self,
        request: bytes,
        *,
        days: int = 1000,
        eku: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.CLIENT_AUTH,),
        policy_critical: bool = True,
        extensions: Mapping[str, tuple[x509.ExtensionType, bool] | None] | None = None,
        hash_algorithm: hashes.SHA256 | hashes.SHA3_256 | hashes.SHA384 | None = None,
        **changes: Any,
    ) -> bytes:
        """The certificate (DER) that a certificate request asks for, as the exemplary profile wants it.

        Args:
            request: PKCS#10, DER; its signature is verified, as a CA does.
            days: of validity, from an hour ago.
            eku: extended key usages; none: no extension.
            extensions: replaces, adds or (None) leaves out extensions, by any name.
            hash_algorithm: SHA-256 where there is none.
            changes: of subject, public_key, serial, not_before, not_after, issuer.
        """
        asked = x509.load_der_x509_csr(request)
        assert asked.is_signature_valid
        start = changes.get("not_before", now() - timedelta(hours=1))
        whole: dict[str, tuple[x509.ExtensionType, bool] | None] = {
            "key_usage": (SIGNATURE_ALONE, True),
            "policies": (
                x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier(POLICY), None)]),
                policy_critical,
            ),
            "authority": (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False),
            "crl": (
                x509.CRLDistributionPoints(
                    [x509.DistributionPoint([x509.UniformResourceIdentifier("http://crl.jp/a")], None, None, None)]
                ),
                False,
            ),
        }
        if eku:
            whole["eku"] = (x509.ExtendedKeyUsage(eku), False)
        whole |= extensions or {}
        builder = x509.CertificateBuilder(
            changes.get("issuer", self.name),
            changes.get("subject", asked.subject),
            changes.get("public_key", asked.public_key()),
            changes.get("serial", x509.random_serial_number()),
            start,
            changes.get("not_after", start + timedelta(days=days)),
        )
        for extension in whole.values():
            if extension is not None:
                builder = builder.add_extension(extension[0], critical=extension[1])
        return builder.sign(self.key, hash_algorithm or hashes.SHA256()).public_bytes(Encoding.DER)
