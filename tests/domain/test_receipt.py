"""Receipts: the message, the two halves, and every way in which a signature is not the right one."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from appliance.domain.package import KeyType
from appliance.domain.receipt import RECEIPT_LENGTHS, receipt_message, split_receipt, verify_signature
from appliance.errors import ApplianceError, Reason

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "vectors" / "sim_package.json").read_text())[
    "cases"
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: KeyType(case["key_type"]).name)


def value(case: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(case[name])


def der(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki(case: dict[str, Any]) -> bytes:
    return der(load_der_private_key(value(case, "pkcs8"), None).public_key())


def test_every_key_type_has_a_length_and_a_known_answer() -> None:
    assert RECEIPT_LENGTHS == {KeyType.RSA_2048: 272, KeyType.EC_P256: 80, KeyType.EC_P384: 112}
    assert {case["key_type"] for case in CASES} == set(RECEIPT_LENGTHS)


@every_case
def test_message_is_the_known_answer(case: dict[str, Any]) -> None:
    message = receipt_message(value(case, "header_sha256"), value(case, "certificate"))
    assert message == value(case, "receipt_message")


@every_case
def test_known_receipt_verifies_in_both_halves(case: dict[str, Any]) -> None:
    key_type, message = KeyType(case["key_type"]), value(case, "receipt_message")
    signature, tag = split_receipt(value(case, "receipt"), key_type)
    verify_signature(spki(case), key_type, message, signature)
    mac = CMAC(AES(value(case, "k_rcpt")))
    mac.update(message)
    mac.verify(tag)


@every_case
def test_receipt_of_another_length_is_refused(case: dict[str, Any]) -> None:
    receipt, key_type = value(case, "receipt"), KeyType(case["key_type"])
    for wrong in (b"", receipt[:-1], receipt + b"\x00", receipt + b"\x90\x00"):
        with pytest.raises(ApplianceError, match=f"has {len(wrong)} bytes") as refused:
            split_receipt(wrong, key_type)
        assert (refused.value.reason, refused.value.field) == (Reason.RECEIPT_INVALID, "receipt")


@every_case
def test_signature_over_anything_else_is_rejected(case: dict[str, Any]) -> None:
    key_type = KeyType(case["key_type"])
    signature, _ = split_receipt(value(case, "receipt"), key_type)
    for message in (
        receipt_message(bytes(32), value(case, "certificate")),
        receipt_message(value(case, "header_sha256"), value(case, "certificate") + b"\x00"),
        b"",
    ):
        with pytest.raises(ApplianceError, match="does not verify") as refused:
            verify_signature(spki(case), key_type, message, signature)
        assert refused.value.reason is Reason.RECEIPT_REJECTED


@every_case
def test_signature_with_any_byte_changed_is_rejected(case: dict[str, Any]) -> None:
    key_type, public = KeyType(case["key_type"]), spki(case)
    signature, _ = split_receipt(value(case, "receipt"), key_type)
    for place in range(len(signature)):
        changed = bytearray(signature)
        changed[place] ^= 0x01
        with pytest.raises(ApplianceError) as refused:
            verify_signature(public, key_type, value(case, "receipt_message"), bytes(changed))
        assert refused.value.reason is Reason.RECEIPT_REJECTED


@every_case
def test_signature_of_zeros_or_another_length_is_rejected(case: dict[str, Any]) -> None:
    key_type = KeyType(case["key_type"])
    signature, _ = split_receipt(value(case, "receipt"), key_type)
    for wrong in (bytes(len(signature)), b"\xff" * len(signature), signature + b"\x00\x00", signature[:-2], b""):
        with pytest.raises(ApplianceError) as refused:
            verify_signature(spki(case), key_type, value(case, "receipt_message"), wrong)
        assert refused.value.reason is Reason.RECEIPT_REJECTED


@pytest.mark.parametrize("case", [case for case in CASES if case["key_type"] != KeyType.RSA_2048])
def test_same_numbers_in_a_longer_signature_are_rejected(case: dict[str, Any]) -> None:
    key_type = KeyType(case["key_type"])
    signature, _ = split_receipt(value(case, "receipt"), key_type)
    half = len(signature) // 2
    stretched = b"\x00" + signature[:half] + b"\x00" + signature[half:]
    with pytest.raises(ApplianceError, match="not the length of its key"):
        verify_signature(spki(case), key_type, value(case, "receipt_message"), stretched)


@every_case
def test_key_of_another_type_is_rejected(case: dict[str, Any]) -> None:
    strangers: dict[str, PublicKeyTypes] = {
        "RSA_1024": rsa.generate_private_key(65537, 1024).public_key(),  # noqa: S505 - it must be refused for its size
        "EC_P521": ec.generate_private_key(ec.SECP521R1()).public_key(),
        "Ed25519": ed25519.Ed25519PrivateKey.generate().public_key(),
    }
    others = [spki(other) for other in CASES if other is not case] + [der(key) for key in strangers.values()]
    key_type = KeyType(case["key_type"])
    signature, _ = split_receipt(value(case, "receipt"), key_type)
    for public in others:
        with pytest.raises(ApplianceError, match=f"not of type {key_type.name}") as refused:
            verify_signature(public, key_type, value(case, "receipt_message"), signature)
        assert refused.value.reason is Reason.RECEIPT_REJECTED


@every_case
def test_another_key_of_the_same_type_is_rejected(case: dict[str, Any]) -> None:
    key_type = KeyType(case["key_type"])
    stranger: PublicKeyTypes
    if key_type is KeyType.RSA_2048:
        stranger = rsa.generate_private_key(65537, 2048).public_key()
    else:
        curve = ec.SECP256R1() if key_type is KeyType.EC_P256 else ec.SECP384R1()
        stranger = ec.generate_private_key(curve).public_key()
    signature, _ = split_receipt(value(case, "receipt"), key_type)
    with pytest.raises(ApplianceError, match="does not verify"):
        verify_signature(der(stranger), key_type, value(case, "receipt_message"), signature)


@pytest.mark.parametrize("unreadable", [b"", b"\x30\x00", b"certainly not DER"])
def test_unreadable_public_key_is_rejected(unreadable: bytes) -> None:
    with pytest.raises(ApplianceError, match="cannot be read") as refused:
        verify_signature(unreadable, KeyType.EC_P256, b"message", bytes(64))
    assert refused.value.reason is Reason.RECEIPT_REJECTED


def test_message_is_only_made_of_a_whole_digest() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        receipt_message(bytes(31), b"certificate")
