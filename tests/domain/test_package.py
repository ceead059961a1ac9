"""The SIM package against its known answers, recomputed from the layouts with `cryptography` alone."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import keywrap
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from hypothesis import given
from hypothesis import strategies as st

from appliance.domain import tlv
from appliance.domain.derivation import K_AUTH, K_RCPT, K_SIM, kdf3_blocks
from appliance.domain.package import (
    MAX_CERTIFICATE,
    MAX_COUNTER,
    MAX_WRAPPED,
    Header,
    KeyType,
    SimPackage,
    activation_message,
    package_mac_input,
)
from appliance.domain.sim import Iccid, luhn_check_digit
from appliance.errors import ApplianceError, Reason

VECTORS = Path(__file__).parents[1] / "vectors"
CASES: list[dict[str, Any]] = json.loads((VECTORS / "sim_package.json").read_text())["cases"]
DEK = json.loads((VECTORS / "kdf.json").read_text())["dek"]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: KeyType(case["key_type"]).name)


def cmac(key: bytes, message: bytes) -> bytes:
    mac = CMAC(AES(key))
    mac.update(message)
    return mac.finalize()


def cbc_from_zero(key: bytes, data: bytes) -> bytes:
    encryptor = Cipher(AES(key), CBC(bytes(16))).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def kdf3(master: bytes, constant: int, kdd: bytes) -> bytes:
    return b"".join(cmac(master, block) for block in kdf3_blocks(constant, kdd, 256))


def value(case: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(case[name])


def spki(case: dict[str, Any]) -> bytes:
    key = load_der_private_key(value(case, "pkcs8"), None)
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def build(case: dict[str, Any]) -> tuple[Header, SimPackage]:
    """The package of a case from its inputs alone: master key, ICCID, code, private key and certificate."""
    header = Header.decode(value(case, "header"))
    iccid = Iccid.parse(case["iccid_digits"]).ef_coding
    k_sim, k_auth = (kdf3(value(case, "km_bind"), constant, iccid) for constant in (K_SIM, K_AUTH))
    built = Header(
        iccid=iccid,
        applet_aid=header.applet_aid,
        kvn=header.kvn,
        counter=header.counter,
        key_type=KeyType(case["key_type"]),
        spki_sha256=hashlib.sha256(spki(case)).digest(),
        activation_check=cmac(k_auth, activation_message(case["activation_code"]))[:8],
    )
    wrapped = keywrap.aes_key_wrap_with_padding(cbc_from_zero(k_sim, built.digest()), value(case, "pkcs8"))
    certificate = value(case, "certificate")
    mac = cmac(k_auth, package_mac_input(built.encode(), wrapped, certificate))
    return built, SimPackage(built, wrapped, certificate, mac)


def test_every_key_type_has_a_known_answer() -> None:
    assert {case["key_type"] for case in CASES} == set(KeyType)


def test_published_cbc_answer_holds_for_the_cipher_that_makes_k_pkg() -> None:
    dek = bytes.fromhex(DEK["dek"])
    assert cbc_from_zero(dek, bytes.fromhex(DEK["plain"])).hex() == DEK["cbc_icv0"]


@every_case
def test_binding_keys_are_derived_from_the_iccid(case: dict[str, Any]) -> None:
    kdd = Iccid.parse(case["iccid_digits"]).ef_coding
    assert kdd == value(case, "kdd")
    for constant, name in ((K_SIM, "k_sim"), (K_AUTH, "k_auth"), (K_RCPT, "k_rcpt")):
        assert kdf3(value(case, "km_bind"), constant, kdd) == value(case, name)


@every_case
def test_header_and_its_digest_are_the_known_answer(case: dict[str, Any]) -> None:
    header, _ = build(case)
    assert header.encode() == value(case, "header")
    assert header.digest() == value(case, "header_sha256")
    assert cbc_from_zero(value(case, "k_sim"), header.digest()) == value(case, "k_pkg")


@every_case
def test_package_is_the_known_answer(case: dict[str, Any]) -> None:
    _, package = build(case)
    assert package.wrapped == value(case, "wrapped")
    assert package.encode() == value(case, "package")


@every_case
def test_known_package_decodes_to_its_parts(case: dict[str, Any]) -> None:
    package = SimPackage.decode(value(case, "package"))
    assert package.header.encode() == value(case, "header")
    assert (package.wrapped, package.certificate) == (value(case, "wrapped"), value(case, "certificate"))
    assert package.mac == value(case, "package")[-16:]


@every_case
def test_both_wrapped_forms_open_to_the_private_key(case: dict[str, Any]) -> None:
    pkcs8 = value(case, "pkcs8")
    for name, padding in (("wrapped", 0), ("wrapped_when_the_module_zero_pads", -len(pkcs8) % 8)):
        opened = keywrap.aes_key_unwrap_with_padding(value(case, "k_pkg"), value(case, name))
        assert opened == pkcs8 + bytes(padding)
        assert len(value(case, name)) <= MAX_WRAPPED


@every_case
def test_certificate_is_for_the_key_of_the_header(case: dict[str, Any]) -> None:
    certificate = x509.load_der_x509_certificate(value(case, "certificate"))
    public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert hashlib.sha256(public).digest() == Header.decode(value(case, "header")).spki_sha256


headers = st.builds(
    Header,
    iccid=st.text("0123456789", min_size=18, max_size=19).map(
        lambda body: Iccid.parse(body + luhn_check_digit(body)).ef_coding
    ),
    applet_aid=st.binary(min_size=5, max_size=16),
    kvn=st.integers(1, 0x7F),
    counter=st.integers(1, MAX_COUNTER),
    key_type=st.sampled_from(KeyType),
    spki_sha256=st.binary(min_size=32, max_size=32),
    activation_check=st.binary(min_size=8, max_size=8),
)
packages = st.builds(
    SimPackage,
    header=headers,
    wrapped=st.binary(min_size=1, max_size=MAX_WRAPPED),
    certificate=st.binary(min_size=1, max_size=MAX_CERTIFICATE),
    mac=st.binary(min_size=16, max_size=16),
)


@given(packages)
def test_package_survives_encoding_and_decoding(package: SimPackage) -> None:
    assert SimPackage.decode(package.encode()) == package


@given(headers)
def test_header_survives_encoding_and_decoding(header: Header) -> None:
    assert Header.decode(header.encode()) == header
    assert header.digest() == hashlib.sha256(header.encode()).digest()


@given(package=packages, data=st.data())
def test_changed_bytes_are_refused_or_are_another_package_with_those_bytes(
    package: SimPackage, data: st.DataObject
) -> None:
    encoded = bytearray(package.encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 0xFF))
    try:
        decoded = SimPackage.decode(bytes(encoded))
    except ApplianceError:
        return
    assert decoded != package
    assert decoded.encode() == encoded


@every_case
def test_package_cut_anywhere_is_refused(case: dict[str, Any]) -> None:
    package = value(case, "package")
    for length in range(len(package)):
        with pytest.raises(ApplianceError) as refused:
            SimPackage.decode(package[:length])
        assert refused.value.reason is Reason.TLV_INVALID


def test_bytes_behind_the_package_are_refused() -> None:
    package = value(CASES[0], "package")
    with pytest.raises(ApplianceError, match="E0 is doubled") as refused:
        SimPackage.decode(package + package)
    assert refused.value.facts["offset"] == len(package)


def members(data: bytes) -> list[bytes]:
    """The TLVs of `data`, each whole."""
    parts = []
    while data:
        _, _, rest = tlv.split_tlv(data)
        parts.append(data[: len(data) - len(rest)])
        data = rest
    return parts


def rebuilt(change: Callable[[list[bytes]], None], *, in_header: bool) -> bytes:
    """The first known package with its inner TLVs changed and all lengths made to fit again."""
    parts = members(tlv.split_tlv(value(CASES[0], "package"))[1])
    if in_header:
        fields = members(tlv.split_tlv(parts[0])[1])
        change(fields)
        parts[0] = tlv.encode(0xE1, b"".join(fields))
    else:
        change(parts)
    return tlv.encode(0xE0, b"".join(parts))


def test_error_inside_the_header_names_its_offset_in_the_whole() -> None:
    doubled = rebuilt(lambda fields: fields.insert(1, fields[0]), in_header=True)
    start = doubled.index(bytes.fromhex("800101800101"))
    with pytest.raises(ApplianceError, match=f"80 is doubled.*offset {start + 3}"):
        SimPackage.decode(doubled)
    header = doubled[start - 2 : start + doubled[start - 1]]
    with pytest.raises(ApplianceError, match=r"80 is doubled.*offset 5"):
        Header.decode(header)


def test_rebuilding_without_a_change_gives_the_known_package() -> None:
    assert rebuilt(lambda _: None, in_header=True) == value(CASES[0], "package")
    assert rebuilt(lambda _: None, in_header=False) == value(CASES[0], "package")


PLACES = [(True, index) for index in range(8)] + [(False, index) for index in range(4)]


@pytest.mark.parametrize(("in_header", "index"), PLACES)
def test_missing_part_is_refused(in_header: bool, index: int) -> None:
    with pytest.raises(ApplianceError, match=r"is missing|is out of order") as refused:
        SimPackage.decode(rebuilt(lambda parts: parts.__delitem__(index), in_header=in_header))
    assert refused.value.reason is Reason.TLV_INVALID


@pytest.mark.parametrize(("in_header", "index"), PLACES)
def test_doubled_part_is_refused(in_header: bool, index: int) -> None:
    with pytest.raises(ApplianceError, match="is doubled") as refused:
        SimPackage.decode(rebuilt(lambda parts: parts.insert(index, parts[index]), in_header=in_header))
    assert refused.value.reason is Reason.TLV_INVALID


@pytest.mark.parametrize(("in_header", "index"), [place for place in PLACES if place[1] > 0])
def test_parts_in_another_order_are_refused(in_header: bool, index: int) -> None:
    with pytest.raises(ApplianceError, match="is out of order") as refused:
        SimPackage.decode(rebuilt(lambda parts: parts.insert(index - 1, parts.pop(index)), in_header=in_header))
    assert refused.value.reason is Reason.TLV_INVALID


@pytest.mark.parametrize(
    ("in_header", "index", "tag", "length"),
    [
        (True, 0, 0x80, 2),
        (True, 1, 0x81, 9),
        (True, 2, 0x82, 4),
        (True, 2, 0x82, 17),
        (True, 3, 0x83, 2),
        (True, 4, 0x84, 5),
        (True, 5, 0x85, 0),
        (True, 6, 0x86, 31),
        (True, 7, 0x87, 9),
        (False, 1, 0xC1, MAX_WRAPPED + 1),
        (False, 1, 0xC1, 0),
        (False, 2, 0xC2, MAX_CERTIFICATE + 1),
        (False, 2, 0xC2, 0),
        (False, 3, 0xC3, 15),
        (False, 3, 0xC3, 17),
    ],
)
def test_part_of_another_length_is_refused(in_header: bool, index: int, tag: int, length: int) -> None:
    part = tlv.encode(tag, bytes(length))
    with pytest.raises(ApplianceError, match=f"has {length} bytes, not .*tag {tag:02X}") as refused:
        SimPackage.decode(rebuilt(lambda parts: parts.__setitem__(index, part), in_header=in_header))
    assert refused.value.reason is Reason.TLV_INVALID


@pytest.mark.parametrize(
    ("index", "part", "reason", "field"),
    [
        (0, "80 01 02", Reason.FIELD_INVALID, "suite"),
        (1, "81 0A 981803194171703546F5", Reason.ICCID_INVALID, "iccid"),
        (3, "83 01 00", Reason.KVN_INVALID, "kvn"),
        (3, "83 01 80", Reason.KVN_INVALID, "kvn"),
        (4, "84 04 00000000", Reason.FIELD_INVALID, "counter"),
        (5, "85 01 00", Reason.KEY_TYPE_INVALID, "key_type"),
        (5, "85 01 04", Reason.KEY_TYPE_INVALID, "key_type"),
    ],
)
def test_header_value_outside_its_range_is_refused(index: int, part: str, reason: Reason, field: str) -> None:
    changed = rebuilt(lambda fields: fields.__setitem__(index, bytes.fromhex(part)), in_header=True)
    with pytest.raises(ApplianceError) as refused:
        SimPackage.decode(changed)
    assert (refused.value.reason, refused.value.field) == (reason, field)


HEADER = Header.decode(value(CASES[0], "header"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"suite": 2}, Reason.FIELD_INVALID),
        ({"iccid": bytes(9)}, Reason.ICCID_INVALID),
        ({"applet_aid": bytes(4)}, Reason.AID_INVALID),
        ({"applet_aid": bytes(17)}, Reason.AID_INVALID),
        ({"kvn": 0x80}, Reason.KVN_INVALID),
        ({"counter": 0}, Reason.FIELD_INVALID),
        ({"counter": MAX_COUNTER + 1}, Reason.FIELD_INVALID),
        ({"spki_sha256": bytes(31)}, Reason.FIELD_INVALID),
        ({"activation_check": bytes(16)}, Reason.FIELD_INVALID),
    ],
)
def test_header_that_breaks_a_limit_is_never_made(change: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(ApplianceError) as refused:
        replace(HEADER, **change)
    assert refused.value.reason is reason


@pytest.mark.parametrize(
    ("wrapped", "certificate", "mac", "name"),
    [
        (0, 300, 16, "wrapped"),
        (MAX_WRAPPED + 1, 300, 16, "wrapped"),
        (80, 0, 16, "certificate"),
        (80, MAX_CERTIFICATE + 1, 16, "certificate"),
        (80, 300, 15, "mac"),
    ],
)
def test_package_that_breaks_a_limit_is_never_made(wrapped: int, certificate: int, mac: int, name: str) -> None:
    with pytest.raises(ApplianceError) as refused:
        SimPackage(HEADER, bytes(wrapped), bytes(certificate), bytes(mac))
    assert (refused.value.reason, refused.value.field) == (Reason.FIELD_INVALID, name)


def test_mac_is_never_asked_for_parts_over_their_limits() -> None:
    with pytest.raises(ApplianceError, match="1301 bytes"):
        package_mac_input(HEADER.encode(), bytes(MAX_WRAPPED + 1), b"certificate")
    with pytest.raises(ApplianceError, match="2049 bytes"):
        package_mac_input(HEADER.encode(), b"wrapped", bytes(MAX_CERTIFICATE + 1))


@pytest.mark.parametrize("code", ["12345678", "ABCDEFGH12345678"])
def test_activation_message_names_its_purpose(code: str) -> None:
    assert activation_message(code) == b"ACTIVATION" + code.encode()


@pytest.mark.parametrize(
    "code", ["", "1234567", "ABCDEFGH123456789", "abcdefgh", "1234 5678", "12345678\n", "１２３４５６７８"]
)
def test_activation_code_of_another_form_is_refused_without_being_shown(code: str) -> None:
    with pytest.raises(ApplianceError) as refused:
        activation_message(code)
    assert (refused.value.reason, refused.value.field) == (Reason.ACTIVATION_CODE_INVALID, "activation_code")
    assert not code or code not in str(refused.value)


def test_repr_of_a_package_shows_no_wrapped_key() -> None:
    package = SimPackage.decode(value(CASES[0], "package"))
    assert "wrapped" not in repr(package)
    assert repr(package.wrapped) not in repr(package)
