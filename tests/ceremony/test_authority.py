"""Making an issuing CA: the key is born on the token, and OpenSSL takes its certificate for a CA's."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from pkcs11 import Attribute, ObjectClass

from appliance.ceremony.authority import make_issuing_ca
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.hsm.module import TokenSession

NOW = datetime.now(UTC).replace(microsecond=0)


def make(session: TokenSession, key_type: KeyType, label: str = "CA") -> bytes:
    return make_issuing_ca(session, label, key_type, "J-LIS TEST", "Issuing CA", NOW, NOW + timedelta(days=3650))


@pytest.mark.parametrize("key_type", KeyType, ids=lambda key_type: key_type.name)
def test_certificate_is_a_cas_signed_by_its_own_key(session: TokenSession, tmp_path: Path, key_type: KeyType) -> None:
    certificate = x509.load_der_x509_certificate(make(session, key_type))
    (tmp_path / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    command = ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-CAfile", "ca.pem", "ca.pem"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ca.pem: OK\n"), done.stderr
    assert certificate.subject.rfc4514_string() == "CN=Issuing CA,O=J-LIS TEST,C=JP"
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert certificate.serial_number.bit_length() == 127
    public = certificate.public_key()
    match key_type:
        case KeyType.RSA_2048:
            assert isinstance(public, rsa.RSAPublicKey)
            assert (public.key_size, public.public_numbers().e) == (2048, 65537)
        case KeyType.EC_P256 | KeyType.EC_P384:
            assert isinstance(public, ec.EllipticCurvePublicKey)
            assert public.curve.key_size == {KeyType.EC_P256: 256, KeyType.EC_P384: 384}[key_type]


def test_private_key_alone_stays_and_was_born_on_the_token(session: TokenSession) -> None:
    make(session, KeyType.EC_P256)
    (key,) = session.find_all({})
    origin = (Attribute.LOCAL, Attribute.ALWAYS_SENSITIVE, Attribute.NEVER_EXTRACTABLE)
    assert key.get_attributes([Attribute.CLASS, *origin]) == {
        Attribute.CLASS: ObjectClass.PRIVATE_KEY,
        **dict.fromkeys(origin, True),
    }


def test_label_that_is_taken_is_refused_before_a_key_is_made(session: TokenSession) -> None:
    make(session, KeyType.EC_P256)
    with pytest.raises(ApplianceError) as refused:
        make(session, KeyType.EC_P384)
    assert (refused.value.reason, refused.value.facts["label"]) == (Reason.KEY_EXISTS, "CA")
    assert len(session.find_all({})) == 1
