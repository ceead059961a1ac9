"""Targets that are formats: what is read is written again as the same bytes, or refused for a documented reason."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.domain import tlv
from appliance.domain.package import Header, KeyType, SimPackage
from appliance.domain.receipt import SIGNATURE_LENGTHS, receipt_message, split_receipt, verify_signature
from appliance.errors import ApplianceError, Reason
from appliance.vsim.package import PackageError, open_package
from appliance.vsim.package import Reason as SimReason
from appliance.vsim.personalisation import Masters
from tests.fuzz.target import Choices, Run, Target, refused_with
from tests.vsim.packages import P256, draft

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "vectors" / "sim_package.json").read_text())[
    "cases"
]
"""The published packages."""
FIELDS = (tlv.Field(0x80, "first", 1, 1), tlv.Field(0x81, "second", 2, 4), tlv.Field(0xC2, "third", 0, 0x1_0000))


def octets(case: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(case[name])


@contextmanager
def open_tlv() -> Iterator[Run]:
    def run(data: bytes) -> None:
        with refused_with(Reason.TLV_INVALID):
            tag, value, rest = tlv.split_tlv(data)
            assert tlv.encode(tag, value) + rest == data
        with refused_with(Reason.TLV_INVALID):
            values = tlv.decode_sequence(data, FIELDS)
            assert b"".join(tlv.encode(field.tag, value) for field, value in zip(FIELDS, values, strict=True)) == data

    yield run


@contextmanager
def open_package_formats() -> Iterator[Run]:
    """The HSM's reader and the SIM's understand the same bytes."""
    sim = Masters(octets(CASES[0], "km_bind"), bytes(32), kvn=1).personalise(octets(CASES[0], "kdd"))
    refusals = (
        Reason.TLV_INVALID,
        Reason.FIELD_INVALID,
        Reason.ICCID_INVALID,
        Reason.AID_INVALID,
        Reason.KVN_INVALID,
        Reason.KEY_TYPE_INVALID,
    )

    def run(data: bytes) -> None:
        with refused_with(*refusals):
            assert Header.decode(data).encode() == data
        reason = None
        try:
            assert SimPackage.decode(data).encode() == data
        except ApplianceError as refusal:
            reason = refusal.reason
            assert reason in refusals
        try:
            open_package(data, sim, 0, None)
        except PackageError as refusal:
            assert (refusal.reason is SimReason.STRUCTURE) == (reason is Reason.TLV_INVALID)
            if reason is None:
                assert refusal.reason not in {SimReason.SUITE, SimReason.KEY_TYPE}

    yield run


def packages() -> Iterator[bytes]:
    """The published ones, and one with each of its fields left out, doubled, out of place, or of another length."""
    yield from (octets(case, name) for case in CASES for name in ("header", "package"))
    header = [*draft(P256).header]
    known = SimPackage.decode(octets(CASES[P256], "package"))
    parts = [(0xE1, _joined(header)), (0xC1, known.wrapped), (0xC2, known.certificate), (0xC3, known.mac)]
    for other in _beside(header):
        yield tlv.encode(0xE0, _joined([(0xE1, _joined(other)), *parts[1:]]))
    for other in _beside(parts):
        yield tlv.encode(0xE0, _joined(other))


def _beside(fields: list[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    for at, (tag, value) in enumerate(fields):
        for others in (
            [],
            [(tag, value)] * 2,
            [(tag, value[:-1])],
            [(tag, value + b"\x00")],
            [(tag, b"")],
            [(tag ^ 1, value)],
        ):
            yield [*fields[:at], *others, *fields[at + 1 :]]
        yield [*fields[:at], *fields[at + 1 :], (tag, value)]


def _joined(fields: list[tuple[int, bytes]]) -> bytes:
    return b"".join(tlv.encode(tag, value) for tag, value in fields)


@contextmanager
def open_receipt() -> Iterator[Run]:
    """An input is: key type, case, changes of its message, certificate and receipt."""
    public = {case["key_type"]: public_key(octets(case, "certificate")) for case in CASES}

    def run(data: bytes) -> None:
        choices = Choices(data)
        key_type = KeyType(choices.number() % len(KeyType) + 1)
        spki = choices.chunk() or public[choices.number() % len(KeyType) + 1]
        message, receipt = choices.chunk(), choices.rest()
        with refused_with(Reason.RECEIPT_INVALID):
            signature, mac = split_receipt(receipt, key_type)
            assert (signature + mac, len(signature)) == (receipt, SIGNATURE_LENGTHS[key_type])
        with refused_with(Reason.RECEIPT_REJECTED):
            verify_signature(spki, key_type, message, receipt)

    yield run


def receipts() -> Iterator[bytes]:
    for case in CASES:
        message = receipt_message(octets(case, "header_sha256"), octets(case, "certificate"))
        selected = bytes((case["key_type"] - 1, 0, 0, case["key_type"] - 1))
        yield selected + len(message).to_bytes(2) + message + octets(case, "receipt")
        yield selected + len(message).to_bytes(2) + message + octets(case, "receipt")[:-16]


def public_key(certificate: bytes) -> bytes:
    key = x509.load_der_x509_certificate(certificate).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def tlvs() -> Iterator[bytes]:
    """Sequences of `FIELDS`, some with lengths that are not in the shortest form, or are none."""
    yield from map(bytes.fromhex, ("8001AA8103010203C200", "8001AA8103010203C28180" + "00" * 128))
    yield from map(
        bytes.fromhex, ("808101AA", "80820001AA", "808300000100", "8080AA0000", "8001AA818200030102", "1F00")
    )
    yield from (octets(case, "header") for case in CASES)


TLV = Target(open_tlv, tlvs, 300)
PACKAGE = Target(open_package_formats, packages)
RECEIPT = Target(open_receipt, receipts, 1024)
