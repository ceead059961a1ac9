"""Certificate requests, held against OpenSSL and `cryptography`."""

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.config import load
from appliance.domain.certificate_request import assemble_request, build_request_info, require_permitted
from appliance.domain.package import MAX_CERTIFICATE_REQUEST, KeyType
from appliance.errors import ApplianceError, Reason

PROFILE = load(Path(__file__).parents[2] / "hsm_config" / "appliance.toml").profiles["jpki-user-authentication"]
COMMON_NAME = "997794E9AGCIEG13221003A"

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
MAKERS: Mapping[str, Callable[[], Key]] = {
    "rsa_2048": lambda: rsa.generate_private_key(65537, 2048),
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
}


def spki(key: Key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sign(key: Key, info: bytes) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(info, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(info, ec.ECDSA(hashes.SHA384() if key.curve.name == "secp384r1" else hashes.SHA256()))


def request(key: Key) -> bytes:
    info = build_request_info(PROFILE, spki(key), COMMON_NAME)
    return assemble_request(info, sign(key, info))


@pytest.mark.parametrize("kind", MAKERS)
def test_openssl_verifies_the_request_and_reads_what_is_wished(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "request.der"
    path.write_bytes(request(MAKERS[kind]()))
    command = ["openssl", "req", "-inform", "DER", "-in", str(path), "-verify", "-noout", "-text"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "verify OK" in done.stdout + done.stderr
    assert f"Subject: C = JP, CN = {COMMON_NAME}" in done.stdout
    assert "Version: 1 (0x0)" in done.stdout
    wished = " ".join(done.stdout.partition("Requested Extensions:")[2].split())
    usages = "X509v3 Key Usage: critical Digital Signature X509v3 Extended Key Usage: TLS Web Client Authentication"
    assert wished.startswith(f"{usages} Signature"), "and nothing else"


@pytest.mark.parametrize("kind", MAKERS)
def test_request_is_for_this_key_and_fits_where_it_is_kept(kind: str) -> None:
    key = MAKERS[kind]()
    der = request(key)
    read = x509.load_der_x509_csr(der)
    assert read.is_signature_valid
    assert read.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki(key)
    assert len(der) < MAX_CERTIFICATE_REQUEST / 2


def test_profile_without_extended_key_usage_wishes_none() -> None:
    key = MAKERS["p256"]()
    info = build_request_info(replace(PROFILE, extended_key_usage=()), spki(key), COMMON_NAME)
    read = x509.load_der_x509_csr(assemble_request(info, sign(key, info)))
    assert [extension.oid for extension in read.extensions] == [x509.KeyUsage.oid]


@pytest.mark.parametrize("kind", MAKERS)
def test_faulty_signature_never_leaves(kind: str) -> None:
    key = MAKERS[kind]()
    info = build_request_info(PROFILE, spki(key), COMMON_NAME)
    good = sign(key, info)
    for bad in (bytes((good[0], good[1], *good[2:-1], good[-1] ^ 1)), b"", sign(MAKERS[kind](), info)):
        with pytest.raises(ApplianceError) as refused:
            assemble_request(info, bad)
        assert refused.value.reason is Reason.TOKEN_FAULT


@pytest.mark.parametrize(
    ("key_type", "common_name", "lints"),
    [
        (KeyType.EC_P384, COMMON_NAME, "public_key"),
        (KeyType.RSA_2048, "lower case", "subject"),
        (KeyType.EC_P384, "", "public_key,subject"),
    ],
)
def test_what_the_profile_does_not_permit_is_not_asked_for(key_type: KeyType, common_name: str, lints: str) -> None:
    profile = replace(PROFILE, key_types=("RSA_2048",))
    require_permitted(profile, KeyType.RSA_2048, COMMON_NAME)
    with pytest.raises(ApplianceError) as refused:
        require_permitted(profile, key_type, common_name)
    assert (refused.value.reason, refused.value.facts["lints"]) == (Reason.CERTIFICATE_REFUSED, lints)
    assert not common_name or common_name not in str(refused.value)
