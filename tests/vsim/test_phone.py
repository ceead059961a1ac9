"""The phone's app against the applet: PIN, certificate, signature and receipt as a citizen's phone gets them."""

import hashlib
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.vsim.apdu import CardError
from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import Memory, State
from appliance.vsim.package import Installed, KeyType
from appliance.vsim.phone import PhoneApp

from .packages import P256, P384, RSA, blank_sim, case, octets, personalisation

PIN, OTHER_PIN = b"4711", b"0815"
WRONG_CODE = b"WRONGCODE"
MESSAGE = b"I agree to the terms of use."

every_case = pytest.mark.parametrize("index", [P256, RSA, P384], ids=["P-256", "RSA-2048", "P-384"])


def code(index: int = P256) -> bytes:
    return case(index)["activation_code"].encode()


def delivered(index: int = P256) -> VirtualSim:
    """A SIM that holds a case's package; no PIN yet."""
    sim = blank_sim(index)
    sim.install(octets(index, "package"))
    return sim


def holding(certificate: bytes) -> VirtualSim:
    """A SIM with any certificate."""
    installed = Installed(bytes(32), 1, KeyType.EC_P256, bytes(8), certificate, bytes(80), b"")
    return VirtualSim(Memory(State(personalisation(P256), installed=installed)))


def refused(act: Callable[[], object]) -> str:
    """The status word that ends an act."""
    with pytest.raises(CardError) as error:
        act()
    return f"{error.value.status:04X}"


def verify(certificate: bytes, signature: bytes, message: bytes) -> None:
    key = x509.load_der_x509_certificate(certificate).public_key()
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
    else:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(signature, message, ec.ECDSA(hashes.SHA256() if key.curve.key_size == 256 else hashes.SHA384()))


@every_case
def test_signature_verifies_with_the_certificate_that_the_phone_reads(index: int) -> None:
    phone = PhoneApp(delivered(index))
    phone.set_pin(code(index), PIN)
    assert phone.certificate() == octets(index, "certificate")
    for message in (MESSAGE, b""):
        verify(phone.certificate(), phone.sign(PIN, message), message)


@every_case
def test_receipt_is_joined_from_its_parts(index: int) -> None:
    sim = delivered(index)
    assert sim.state.installed is not None
    assert PhoneApp(sim).receipt() == sim.state.installed.receipt
    assert len(sim.state.installed.receipt) == {P256: 80, RSA: 272, P384: 112}[index]


@pytest.mark.parametrize("length", [256, 257, 511, 512, 513, 2048])
def test_certificate_of_any_length_is_read_to_its_end(length: int) -> None:
    certificate = b"\x30\x82" + (length - 4).to_bytes(2) + hashlib.shake_128(b"certificate").digest(length - 4)
    assert PhoneApp(holding(certificate)).certificate() == certificate


def test_applet_under_another_name_is_found_by_it() -> None:
    aid = bytes.fromhex("A000000999")
    sim = VirtualSim(Memory(State(replace(personalisation(P256), applet_aid=aid))))
    assert PhoneApp(sim, aid).tries_left() == 0
    assert refused(PhoneApp(sim).tries_left) == "6A82"


def test_wrong_pin_counts_down_until_it_is_blocked_for_the_right_one_too() -> None:
    phone = PhoneApp(delivered())
    phone.set_pin(code(), PIN)
    for left in (2, 1, 0):
        assert refused(lambda: phone.sign(OTHER_PIN, MESSAGE)) == f"63C{left}"
        assert phone.tries_left() == left
    assert refused(lambda: phone.sign(PIN, MESSAGE)) == "6984"


def test_right_pin_gives_all_tries_back() -> None:
    phone = PhoneApp(delivered())
    phone.set_pin(code(), PIN)
    assert refused(lambda: phone.sign(OTHER_PIN, MESSAGE)) == "63C2"
    phone.sign(PIN, MESSAGE)
    assert phone.tries_left() == 3


def test_each_signature_asks_for_the_pin_again() -> None:
    phone = PhoneApp(delivered())
    phone.set_pin(code(), PIN)
    phone.sign(PIN, MESSAGE)
    assert refused(lambda: phone.sign(OTHER_PIN, MESSAGE)) == "63C2"


def test_wrong_code_counts_down_until_activation_is_blocked() -> None:
    phone = PhoneApp(delivered())
    for left in (4, 3, 2, 1, 0):
        assert refused(lambda: phone.set_pin(WRONG_CODE, PIN)) == f"63C{left}"
    assert refused(lambda: phone.set_pin(code(), PIN)) == "6983"
    assert phone.tries_left() == 0


def test_pin_is_set_once() -> None:
    phone = PhoneApp(delivered())
    phone.set_pin(code(), PIN)
    assert refused(lambda: phone.set_pin(code(), OTHER_PIN)) == "6985"
    assert refused(lambda: phone.sign(OTHER_PIN, MESSAGE)) == "63C2"
    phone.sign(PIN, MESSAGE)


@pytest.mark.parametrize(("pin", "status"), [(b"12345", "6700"), (b"123", "6700"), (b"12A4", "6985")])
def test_pin_that_is_not_four_digits_is_not_set(pin: bytes, status: str) -> None:
    phone = PhoneApp(delivered())
    assert refused(lambda: phone.set_pin(code(), pin)) == status
    phone.set_pin(code(), PIN)


def test_key_whose_pin_is_not_set_signs_nothing() -> None:
    phone = PhoneApp(delivered())
    assert phone.tries_left() == 0
    assert refused(lambda: phone.sign(PIN, MESSAGE)) == "6984"


def test_sim_without_a_package_says_so_by_its_status_words() -> None:
    phone = PhoneApp(blank_sim(P256))
    assert refused(phone.certificate) == "6B00"
    assert refused(phone.receipt) == "6A88"
    assert refused(lambda: phone.sign(PIN, MESSAGE)) == "6B00"
    assert refused(lambda: phone.set_pin(code(), PIN)) == "6985"


def test_certificate_of_a_key_that_the_applet_cannot_have_is_refused() -> None:
    key, name = ec.generate_private_key(ec.SECP521R1()), x509.Name([])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    phone = PhoneApp(holding(builder.sign(key, hashes.SHA512()).public_bytes(Encoding.DER)))
    with pytest.raises(ValueError, match="neither RSA nor on P-256 or P-384"):
        phone.sign(PIN, MESSAGE)


def test_neither_pin_nor_code_stands_in_an_error_or_stays_in_the_app() -> None:
    phone = PhoneApp(delivered())
    kept = dict(vars(phone))
    acts: list[Callable[[], object]] = [
        lambda: phone.set_pin(WRONG_CODE, PIN),
        lambda: phone.set_pin(code(), PIN + PIN),
        lambda: phone.set_pin(code() * 30, PIN),  # longer than a command can be
        lambda: phone.sign(PIN, MESSAGE),
        lambda: phone.sign(PIN * 100, MESSAGE),
    ]
    for act in acts:
        with pytest.raises((CardError, ValueError)) as error:
            act()
        text = "".join(traceback.format_exception(error.value)) + repr(error.value)
        for secret in (PIN, WRONG_CODE, code()):
            assert secret.decode() not in text
            assert secret.hex() not in text.lower()
    assert vars(phone) == kept
