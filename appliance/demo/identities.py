"""TLS identities of the demo: one throwaway CA, a server certificate for loopback, a client certificate per role."""

import datetime
import ipaddress
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY = datetime.timedelta(days=30)
LOOPBACK = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]


class DemoTlsAuthority:
    """A CA whose key is forgotten with the object."""

    def __init__(self, now: datetime.datetime) -> None:
        self._now = now
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "DEMO ONLY - TLS CA")])
        self.certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def issue(
        self, directory: Path, name: str, subject_names: list[x509.GeneralName], usage: x509.ObjectIdentifier
    ) -> None:
        """Write NAME.pem and NAME.key (owner only) into the directory."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"DEMO ONLY - {name}")]), key.public_key())
            .add_extension(x509.SubjectAlternativeName(subject_names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        (directory / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        key_file = directory / f"{name}.key"
        key_file.touch(mode=0o600)
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def _builder(self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - datetime.timedelta(minutes=5))
            .not_valid_after(self._now + VALIDITY)
        )


def make_identities(directory: Path, clients: Mapping[str, str], now: datetime.datetime) -> None:
    """Write ca.pem, server.pem/.key and one NAME.pem/.key per client.

    Args:
        clients: name of the files -> the one URI SAN of its certificate.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = DemoTlsAuthority(now)
    (directory / "ca.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    authority.issue(directory, "server", LOOPBACK, ExtendedKeyUsageOID.SERVER_AUTH)
    for name, uri in clients.items():
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
        authority.issue(directory, name, names, ExtendedKeyUsageOID.CLIENT_AUTH)
