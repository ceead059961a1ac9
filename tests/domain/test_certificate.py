"""Certificates as bytes, held against `cryptography` and OpenSSL."""

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from appliance.config import load
from appliance.domain import certificate as certificates
from appliance.domain.lints import lint
from appliance.errors import ApplianceError, Reason

SETTINGS = Path(__file__).parents[2] / "hsm_config" / "appliance.toml"
PROFILE = load(SETTINGS).profiles["jpki-user-authentication"]
NOW = datetime.now(UTC).replace(microsecond=0)
SERIAL = 0x4123_4567_89AB_CDEF_0123_4567_89AB_CDEF
COMMON_NAME = "997794E9AGCIEG13221003A"

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
MAKERS: Mapping[str, Callable[[], Key]] = {
    "rsa_2048": lambda: rsa.generate_private_key(65537, 2048),
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
}


def spki(key: Key) -> bytes:
    """DER SubjectPublicKeyInfo."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True)
class Authority:
    """A CA in software: its key and self-signed certificate."""

    key: Key
    certificate: bytes

    @classmethod
    def make(cls, key: Key) -> "Authority":
        """Self-signed by the appliance's own builder."""
        tbs = certificates.build_self_signed_tbs(
            spki(key), SERIAL + 1, "Example", "利用者証明用認証局", NOW - timedelta(days=1), NOW + timedelta(days=3650)
        )
        return cls(key, certificates.assemble(tbs, cls(key, b"").sign(tbs)))

    def sign(self, tbs: bytes) -> bytes:
        """The signature as it stands in a certificate."""
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(tbs, padding.PKCS1v15(), hashes.SHA256())
        hash_algorithm = hashes.SHA384() if self.key.curve.name == "secp384r1" else hashes.SHA256()
        return self.key.sign(tbs, ec.ECDSA(hash_algorithm))

    def subscriber_tbs(self, key: Key, not_after: datetime = NOW + timedelta(days=1800)) -> bytes:
        """A subscriber's TBSCertificate under the exemplary profile."""
        return certificates.build_tbs(PROFILE, self.certificate, spki(key), SERIAL, COMMON_NAME, NOW, not_after)


@pytest.fixture(scope="module")
def authorities() -> dict[str, Authority]:
    """A CA of each key type."""
    return {kind: Authority.make(make()) for kind, make in MAKERS.items()}


@pytest.fixture(scope="module")
def subscribers() -> dict[str, Key]:
    """A subscriber's key of each type."""
    return {kind: make() for kind, make in MAKERS.items()}


def openssl(*arguments: str | Path) -> str:
    """What the openssl program prints; CalledProcessError where it refuses."""
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True).stdout


def write_pem(path: Path, der: bytes) -> Path:
    """The certificate as PEM."""
    path.write_bytes(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
    return path


@pytest.mark.parametrize("subscriber", MAKERS)
@pytest.mark.parametrize("ca", MAKERS)
def test_openssl_verifies_what_is_issued(
    ca: str, subscriber: str, authorities: dict[str, Authority], subscribers: dict[str, Key], tmp_path: Path
) -> None:
    authority, key = authorities[ca], subscribers[subscriber]
    tbs = authority.subscriber_tbs(key)
    issued = certificates.assemble(tbs, authority.sign(tbs))
    lint(
        certificates.assemble(tbs, certificates.placeholder_signature(authority.certificate)),
        PROFILE,
        authority.certificate,
    )
    ca_pem = write_pem(tmp_path / "ca.pem", authority.certificate)
    pem = write_pem(tmp_path / "issued.pem", issued)
    verified = openssl(
        "verify", "-x509_strict", "-purpose", "sslclient", "-policy", PROFILE.policy_oid, "-explicit_policy",
        "-CAfile", ca_pem, pem,
    )  # fmt: skip
    assert verified.endswith(": OK\n")
    assert x509.load_der_x509_certificate(issued).public_key() == key.public_key()


SIGNATURES = {"rsa_2048": "sha256WithRSAEncryption", "p256": "ecdsa-with-SHA256", "p384": "ecdsa-with-SHA384"}


@pytest.mark.parametrize("ca", MAKERS)
def test_openssl_reads_the_profile_in_the_certificate(
    ca: str, authorities: dict[str, Authority], subscribers: dict[str, Key], tmp_path: Path
) -> None:
    authority = authorities[ca]
    tbs = authority.subscriber_tbs(subscribers["rsa_2048"])
    pem = write_pem(tmp_path / "issued.pem", certificates.assemble(tbs, authority.sign(tbs)))
    text = "".join(line.strip() + "\n" for line in openssl("x509", "-in", pem, "-noout", "-text").splitlines())
    for expected in (
        "Version: 3 (0x2)\nSerial Number:\n41:23:45:67:89:ab:cd:ef:01:23:45:67:89:ab:cd:ef\n"
        f"Signature Algorithm: {SIGNATURES[ca]}\n",
        f"Subject: C = JP, CN = {COMMON_NAME}\n",
        "X509v3 Key Usage: critical\nDigital Signature\n",
        "X509v3 Extended Key Usage:\nTLS Web Client Authentication\n",
        "X509v3 Certificate Policies: critical\nPolicy: 1.2.392.200149.8.5.1.3.30\n"
        "CPS: http://www.jpki.go.jp/cps.html\n",
        f"URI:{PROFILE.crl_url}\n",
        f"OCSP - URI:{PROFILE.ocsp_url}\nCA Issuers - URI:{PROFILE.ca_issuers_url}\n",
    ):
        assert expected in text
    assert "X509v3 Basic Constraints" not in text


def test_the_issuing_ca_certifies_no_other_ca(authorities: dict[str, Authority], tmp_path: Path) -> None:
    pem = write_pem(tmp_path / "ca.pem", authorities["p384"].certificate)
    text = "".join(line.strip() + "\n" for line in openssl("x509", "-in", pem, "-noout", "-text").splitlines())
    assert "X509v3 Basic Constraints: critical\nCA:TRUE, pathlen:0\n" in text
    assert "X509v3 Key Usage: critical\nCertificate Sign, CRL Sign\n" in text
    assert openssl("verify", "-x509_strict", "-check_ss_sig", "-CAfile", pem, pem).endswith(": OK\n")


def test_the_cas_name_is_copied_byte_for_byte(subscribers: dict[str, Key]) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    string = x509.name._ASN1Type.T61String  # an encoding that no builder would choose by itself
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "JP"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example", string),
            x509.NameAttribute(NameOID.COMMON_NAME, "Old CA"),
        ]
    )
    ca = (
        x509.CertificateBuilder(name, name, key.public_key(), SERIAL)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=3650))
        .add_extension(x509.SubjectKeyIdentifier(b"chosen by its maker"), critical=False)
        .sign(key, hashes.SHA256())
    )
    authority = Authority(key, ca.public_bytes(Encoding.DER))
    issued = x509.load_der_x509_certificate(
        certificates.assemble(authority.subscriber_tbs(subscribers["p256"]), b"\0" * 72)
    )
    assert issued.issuer.public_bytes() == ca.subject.public_bytes()
    identifier = issued.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert identifier == b"chosen by its maker"


@pytest.mark.parametrize(
    ("end", "encoding"),
    [
        (datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), b"\x17\x0d491231235959Z"),
        (datetime(2050, 1, 1, tzinfo=UTC), b"\x18\x0f20500101000000Z"),
        (datetime(2050, 1, 1, 8, 59, 59, 999_999, tzinfo=timezone(timedelta(hours=9))),
         b"\x17\x0d491231235959Z"),
    ],
)  # fmt: skip
def test_times_are_utc_whole_seconds_and_generalized_from_2050(
    end: datetime, encoding: bytes, authorities: dict[str, Authority], subscribers: dict[str, Key]
) -> None:
    assert encoding in authorities["p256"].subscriber_tbs(subscribers["p256"], not_after=end)


def test_addresses_and_purposes_that_the_profile_leaves_out_are_left_out(
    authorities: dict[str, Authority], subscribers: dict[str, Key]
) -> None:
    bare = replace(PROFILE, crl_url="", ocsp_url="", ca_issuers_url="", cps_url="", extended_key_usage=())
    ca = authorities["p256"].certificate
    tbs = certificates.build_tbs(bare, ca, spki(subscribers["p256"]), SERIAL, COMMON_NAME, NOW, NOW + timedelta(days=1))
    issued = certificates.assemble(tbs, certificates.placeholder_signature(ca))
    kinds = {type(extension.value) for extension in x509.load_der_x509_certificate(issued).extensions}
    assert kinds == {
        x509.KeyUsage,
        x509.CertificatePolicies,
        x509.SubjectKeyIdentifier,
        x509.AuthorityKeyIdentifier,
    }
    lint(issued, bare, ca)


def test_what_is_signed_stands_in_the_certificate_whatever_its_length(
    authorities: dict[str, Authority], subscribers: dict[str, Key]
) -> None:
    # asn1crypto takes a length that ends in 80 for the indefinite one, and encodes its value anew.
    ca, key = authorities["p256"].certificate, spki(subscribers["rsa_2048"])
    for length in range(256):
        profile = replace(PROFILE, crl_url="http://crl.example.jp/" + "x" * length)
        tbs = certificates.build_tbs(profile, ca, key, SERIAL, COMMON_NAME, NOW, NOW + timedelta(days=1))
        assert tbs in certificates.assemble(tbs, certificates.placeholder_signature(ca))


@pytest.mark.parametrize("ca", MAKERS)
def test_the_placeholder_is_at_least_as_long_as_a_signature(ca: str, authorities: dict[str, Authority]) -> None:
    placeholder = certificates.placeholder_signature(authorities[ca].certificate)
    lengths = {len(authorities[ca].sign(bytes([number]))) for number in range(50)}
    assert max(lengths) <= len(placeholder)
    assert not any(placeholder)


def test_the_digest_follows_the_cas_key(authorities: dict[str, Authority]) -> None:
    schemes = {
        kind: certificates.signature_scheme(certificates.public_key(it.certificate)) for kind, it in authorities.items()
    }
    assert {kind: (scheme.hash_name, scheme.is_rsa) for kind, scheme in schemes.items()} == {
        "rsa_2048": ("sha256", True),
        "p256": ("sha256", False),
        "p384": ("sha384", False),
    }


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024),  # noqa: S505 - too weak is the point
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
    ],
)
def test_a_ca_key_of_another_kind_is_refused(key: Key) -> None:
    with pytest.raises(ApplianceError) as refused:
        certificates.signature_scheme(spki(key))
    assert refused.value.reason is Reason.CERTIFICATE_REFUSED


@pytest.mark.parametrize(("r", "s", "half"), [(1, 2, 32), (2**255, 2**256 - 1, 32), (2**383, 7, 48)])
def test_r_and_s_become_the_der_that_cryptography_makes(r: int, s: int, half: int) -> None:
    assert certificates.ecdsa_signature(r.to_bytes(half) + s.to_bytes(half)) == utils.encode_dss_signature(r, s)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_key_identifier_is_the_one_of_rfc_5280(kind: str, subscribers: dict[str, Key]) -> None:
    key = subscribers[kind]
    expected = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest
    assert certificates.key_identifier(spki(key)) == expected
