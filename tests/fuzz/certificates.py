"""Targets that are certificates: built under settings that were accepted, read from anybody."""

import hashlib
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.config import ca_certificate, load
from appliance.domain import certificate as certificates
from appliance.domain.lints import lint
from appliance.domain.profile import CaMode, CertificateProfile
from appliance.domain.setting import SettingError
from appliance.domain.submission import ExternalCa, Wanted
from appliance.errors import ApplianceError, Reason
from tests.fuzz.target import Run, Target, refused_with

SETTINGS = Path(__file__).parents[2] / "hsm_config" / "appliance.toml"
PROFILE = replace(load(SETTINGS).profiles["jpki-user-authentication"], common_name_pattern="(?s).*")
NOW = datetime(2026, 11, 22, tzinfo=UTC)
END = NOW + timedelta(days=1000)
SERIAL = 1 << 126
COMMON_NAME = "997794E9AGCIEG13221003A"


class Authority(NamedTuple):
    """A CA in software, the same in every run, and a certificate that it has signed."""

    certificate: bytes
    issued: bytes


def authority() -> Authority:
    key, subscriber = (ec.derive_private_key(number, ec.SECP256R1()) for number in (7, 8))
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)

    def signed(tbs: bytes) -> bytes:
        return certificates.assemble(tbs, key.sign(tbs, algorithm))

    start, end = NOW - timedelta(days=1), NOW + timedelta(days=3650)
    own = signed(certificates.build_self_signed_tbs(spki(key), SERIAL, "Example", "CA", start, end))
    return Authority(own, signed(certificates.build_tbs(PROFILE, own, spki(subscriber), SERIAL, COMMON_NAME, NOW, END)))


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@contextmanager
def open_profile() -> Iterator[Run]:
    """An input has a setting a line; whatever profile is accepted makes certificates that keep every lint."""
    ca, key = authority().certificate, spki(ec.derive_private_key(8, ec.SECP256R1()))

    def run(data: bytes) -> None:
        lines = (*data.decode("utf-8", "replace").split("\n"), *[""] * 8)
        try:
            profile = declared(*lines[:7])
        except SettingError as refusal:
            assert refusal.field in CertificateProfile.__dataclass_fields__
            return
        common_name = lines[7]
        if profile.allows_common_name(common_name):
            tbs = certificates.build_tbs(profile, ca, key, SERIAL, common_name, NOW, END)
            try:
                lint(certificates.assemble(tbs, certificates.placeholder_signature(ca)), profile, ca)
            except ApplianceError as refusal:
                assert refusal.facts["lints"] == "size", f"{refusal.facts['lints']} under settings that were accepted"

    yield run


def declared(
    policy: str, usages: str, crl: str, ocsp: str, ca_issuers: str, statement: str, country: str
) -> CertificateProfile:
    return replace(
        PROFILE,
        policy_oid=policy,
        extended_key_usage=tuple(usages.split(",")) if usages else (),
        crl_url=crl,
        ocsp_url=ocsp,
        ca_issuers_url=ca_issuers,
        cps_url=statement,
        subject_country=country,
    )


def profiles() -> Iterator[bytes]:
    lines = [
        PROFILE.policy_oid,
        ",".join(PROFILE.extended_key_usage),
        PROFILE.crl_url,
        PROFILE.ocsp_url,
        PROFILE.ca_issuers_url,
        PROFILE.cps_url,
        PROFILE.subject_country,
        COMMON_NAME,
    ]
    yield "\n".join(lines).encode()
    yield "\n".join([lines[0], *[""] * 5, *lines[6:]]).encode()
    for at in range(len(lines)):
        for other in ("", "JPN", "x" * 65, "1.2", "http://a b", "http://a:1:2/", "あ"):
            yield "\n".join([*lines[:at], other, *lines[at + 1 :]]).encode()


@contextmanager
def open_lints() -> Iterator[Run]:
    """Any DER as the certificate, and as the CA's."""
    good = authority()

    def run(data: bytes) -> None:
        with refused_with(Reason.CERTIFICATE_REFUSED):
            lint(data, PROFILE, good.certificate)
        with refused_with(Reason.CERTIFICATE_REFUSED):
            lint(good.issued, PROFILE, data)

    yield run


@contextmanager
def open_submission() -> Iterator[Run]:
    """Any DER as what an external CA has issued: taken only where the CA's key has signed these very fields."""
    good = authority()
    profile = replace(PROFILE, ca_mode=CaMode.EXTERNAL, ca_label="")
    ca = ExternalCa(profile, good.certificate)
    issued = x509.load_der_x509_certificate(good.issued)
    wanted = Wanted(hashlib.sha256(certificates.public_key(good.issued)).digest(), COMMON_NAME, END)

    def run(data: bytes) -> None:
        with refused_with(Reason.CERTIFICATE_REFUSED):
            ca.examine(data, wanted, NOW)
            assert x509.load_der_x509_certificate(data).tbs_certificate_bytes == issued.tbs_certificate_bytes
        with refused_with(Reason.SETTINGS_INVALID):
            ExternalCa(profile, data)

    yield run


@contextmanager
def open_ca() -> Iterator[Run]:
    """Any DER, or any text, as the certificate of the issuing CA that a profile names."""
    key = spki(ec.derive_private_key(8, ec.SECP256R1()))
    with tempfile.TemporaryDirectory() as name:
        profile = replace(PROFILE, ca_certificate=Path(name) / "ca.pem")

        def run(data: bytes) -> None:
            for text in (ssl.DER_cert_to_PEM_cert(data).encode(), data):
                profile.ca_certificate.write_bytes(text)
                with refused_with(Reason.SETTINGS_INVALID, Reason.CERTIFICATE_REFUSED):
                    der = ca_certificate(profile)
                    certificates.last_second(der)
                    placeholder = certificates.placeholder_signature(der)
                    tbs = certificates.build_tbs(PROFILE, der, key, SERIAL, COMMON_NAME, NOW, END)
                    lint(certificates.assemble(tbs, placeholder), PROFILE, der)

        yield run


PROFILES = Target(open_profile, profiles, 600)
CA = Target(open_ca, authority, 2100)
LINTS = Target(open_lints, authority, 2100)
SUBMISSION = Target(open_submission, authority, 2100)
