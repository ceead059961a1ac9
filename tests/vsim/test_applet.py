"""The JPKI applet's card interface (card-side.md), and the master file beside it."""

import hashlib
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import Memory

from .packages import P256, P384, RSA, blank_sim, case, draft, octets

SELECT = "00A4040C0AD392F000260100000001"
SHA256_INFO = "3031300d060960864801650304020105000420"
PIN = b"1234".hex()


def send(card: VirtualSim, *apdus: str) -> str:
    """Status of the last command; the others must be 9000."""
    *first, last = (card.transmit(bytes.fromhex(apdu)).hex() for apdu in apdus)
    assert all(answer == "9000" for answer in first), first
    return last


def installed(index: int) -> VirtualSim:
    card = blank_sim(index)
    card.install(octets(index, "package"))
    send(card, SELECT)
    return card


def set_pin(index: int, pin: str = PIN) -> str:
    code = case(index)["activation_code"].encode()
    return "00240080" + bytes([1 + len(code) + len(pin) // 2, len(code)]).hex() + code.hex() + pin


def activated(index: int) -> VirtualSim:
    card = installed(index)
    assert send(card, "00A4020C020018", set_pin(index)) == "9000"
    return card


VERIFY = "0020008004" + PIN
WRONG = "002000800430303030"
TRIES = "00200080"


# --- selection and files


def test_select_tells_the_fci_only_where_it_is_asked_for() -> None:
    card = blank_sim(P256)
    assert send(card, SELECT) == "9000"
    assert send(card, "00A404000AD392F000260100000001") == "9000"
    assert send(card, "00A404000AD392F00026010000000100") == "6f0e840ad392f000260100000001a5009000"
    assert send(card, "00A4040009A0000001515350534F00") == "6f0d8409a0000001515350534fa5009000"


@pytest.mark.parametrize(
    ("apdu", "status"),
    [
        ("00A4040C0AD392F000260100000002", "6a82"),
        ("00A4040C09D392F0002601000000", "6a82"),
        ("00A404", "6700"),
        ("00A4040C0AD392", "6700"),
        ("00A4040C000AD392", "6700"),  # extended length
        ("00A404030AD392F000260100000001", "6a86"),
        ("01A4040C0AD392F000260100000001", "6881"),
        ("00A4000C023F01", "6a82"),
        ("00CA017F00", "6d00"),
        ("80CA9F7F00", "6e00"),
        ("A0A40000023F00", "6e00"),
        ("00A40000023F00", "6a86"),
        ("00A4020C022FE2", "6a86"),
        ("00B0000000", "6986"),
        ("00200080", "6d00"),
    ],
)
def test_unknown_probe_of_a_fresh_card_gets_an_error(apdu: str, status: str) -> None:
    assert send(blank_sim(P256), apdu) == status


def test_iccid_is_read_from_the_master_file_at_any_time() -> None:
    card = activated(P256)
    iccid = octets(P256, "kdd").hex() + "9000"
    assert send(card, "00A4000C023F00", "00A4000C022FE2", "00B000000A") == iccid
    assert send(card, "00B0820000") == iccid
    card.reset()
    assert send(card, "00A4000C022FE2", "00B0000000") == iccid


def test_certificate_is_read_in_parts_without_a_pin() -> None:
    card = installed(RSA)
    certificate = octets(RSA, "certificate")
    read = b""
    assert send(card, "00A4020C02000A") == "9000"
    while True:
        answer = card.transmit(b"\x00\xb0" + len(read).to_bytes(2) + b"\x00")
        if answer == b"\x6b\x00":
            break
        assert answer[-2:] == b"\x90\x00"
        assert len(answer) <= 258
        read += answer[:-2]
    assert read == certificate
    assert send(card, "00B0000104") == certificate[1:5].hex() + "9000"
    assert send(card, "00B08A0310") == certificate[3:19].hex() + "9000"


def test_token_info_names_a_phones_secure_element() -> None:
    info = send(installed(P256), "00A4020C020006", "00B00000A0")
    assert bytes.fromhex(info)[:32] == b"JPKIAPGPSETOKEN                 "
    assert len(info) == 2 * 162


def test_availability_follows_the_package() -> None:
    assert send(blank_sim(P256), SELECT, "00A4020C020008", "00B0000001") == "009000"
    assert send(installed(P256), "00A4020C020008", "00B0000001") == "019000"


def test_ca_certificate_is_what_the_issuer_put_there() -> None:
    assert send(installed(P256), "00A4020C02000B") == "9000"
    assert send(installed(P256), "00B08B0000") == "6b00"
    card = VirtualSim(Memory(replace(installed(P256).state, ca_certificate=b"\x30\x00")))
    assert send(card, SELECT, "00B08B0000") == "30009000"


@pytest.mark.parametrize("file", ["000A", "000B", "0006", "0008", "0017", "0018", "001B"])
def test_file_of_the_applet_is_there_before_any_package(file: str) -> None:
    assert send(blank_sim(P256), SELECT, "00A4020C02" + file) == "9000"


@pytest.mark.parametrize("file", ["0001", "0002", "001A", "2FE2", "3F00"])
def test_file_that_is_not_on_this_applet_is_not_found(file: str) -> None:
    assert send(installed(P256), "00A4020C02" + file) == "6a82"


@pytest.mark.parametrize(
    ("apdu", "status"),
    [
        ("00B0000000", "6986"),
        ("00B0970000", "6981"),  # a key
        ("00B0810000", "6a82"),
        ("00B0AA0000", "6a82"),
        ("00B08A00", "6700"),
        ("00B08A00011100", "6700"),
        ("00A40204020018", "6a86"),
        ("00A4020C0118", "6700"),
        ("00A4000C020018", "6a86"),
        ("80500000080102030405060708", "6d00"),
        ("84E2B00001E0", "6e00"),
        ("00200080", "6986"),
        ("0024008001", "6986"),
        ("802A00800100", "6986"),
        ("00200081", "6a86"),
        ("00240180", "6986"),
        ("00240280", "6a86"),
    ],
)
def test_command_that_does_not_fit_is_refused(apdu: str, status: str) -> None:
    assert send(installed(P256), apdu) == status


# --- PIN


def test_tries_are_told_at_no_cost() -> None:
    card = activated(P256)
    assert send(card, TRIES) == "63c3"
    assert send(card, WRONG) == "63c2"
    assert send(card, TRIES) == send(card, TRIES) == "63c2"
    assert send(card, VERIFY) == "9000"
    assert send(card, TRIES) == "63c3"
    assert send(card, "00A4020C020017", "802A008020" + "11" * 32 + "00")[-4:] == "9000"


def test_third_wrong_pin_blocks_for_ever() -> None:
    card = activated(P256)
    assert [send(card, WRONG) for _ in range(3)] == ["63c2", "63c1", "63c0"]
    assert send(card, VERIFY) == "6984"
    card.reset()
    assert send(card, SELECT, "00A4020C020018", VERIFY) == "6984"
    assert send(card, TRIES) == "63c0"
    assert send(card, "0024018004" + PIN) == "6982"


def test_wrong_pin_takes_the_verification_back() -> None:
    card = activated(P256)
    assert send(card, VERIFY, WRONG) == "63c2"
    assert send(card, "00A4020C020017", "802A008020" + "11" * 32 + "00") == "6982"


def test_pin_of_wrong_length_costs_nothing() -> None:
    card = activated(P256)
    assert send(card, "00200080053132333435") == "6700"
    assert send(card, TRIES) == "63c3"


def test_pin_is_changed_after_verify_only() -> None:
    card = activated(P256)
    change = "0024018004" + b"9999".hex()
    assert send(card, change) == "6982"
    assert send(card, VERIFY, change, "0020008004" + b"9999".hex()) == "9000"
    assert send(card, VERIFY) == "63c2"


@pytest.mark.parametrize(("pin", "status"), [("313233", "6700"), ("3132333435", "6700"), ("3132333a", "6985")])
def test_new_pin_is_four_digits(pin: str, status: str) -> None:
    card = activated(P256)
    assert send(card, VERIFY, f"00240180{len(pin) // 2:02X}{pin}") == status
    assert send(card, VERIFY) == "9000"
    unset = installed(P256)
    assert send(unset, "00A4020C020018", set_pin(P256, pin)) == status
    assert unset.state.code_tries == 5


def test_pin_is_set_once() -> None:
    card = activated(P256)
    assert send(card, set_pin(P256, b"9999".hex())) == "6985"
    assert send(card, VERIFY) == "9000"


def test_pin_cannot_be_set_before_a_package() -> None:
    assert send(blank_sim(P256), SELECT, "00A4020C020018", set_pin(P256)) == "6985"


def test_unset_pin_has_no_tries() -> None:
    card = installed(P256)
    assert send(card, "00A4020C020018", TRIES) == "63c0"
    assert send(card, VERIFY) == "6984"


def test_fifth_wrong_code_blocks_the_activation() -> None:
    card = installed(P256)
    wrong = "002400800D08" + b"AAAAAAAA".hex() + PIN
    send(card, "00A4020C020018")
    assert [send(card, wrong) for _ in range(5)] == ["63c4", "63c3", "63c2", "63c1", "63c0"]
    assert send(card, wrong) == send(card, set_pin(P256)) == "6983"
    card.reset()
    assert send(card, SELECT, "00A4020C020018", set_pin(P256)) == "6983"


def test_right_code_after_four_wrong_ones_sets_the_pin() -> None:
    card = installed(P256)
    send(card, "00A4020C020018")
    for _ in range(4):
        send(card, "002400800D08" + b"AAAAAAAA".hex() + PIN)
    assert send(card, set_pin(P256), VERIFY) == "9000"


@pytest.mark.parametrize("data", ["", "08", "0C4141", "00" + PIN])
def test_malformed_activation_sets_no_pin(data: str) -> None:
    card = installed(P256)
    send(card, "00A4020C020018")
    assert send(card, "00240080" + (f"{len(data) // 2:02X}{data}" if data else "")) in ("6700", "63c4")
    assert card.state.pin_check is None


def test_signature_pin_is_absent() -> None:
    card = activated(P256)
    assert send(card, "00A4020C02001B", TRIES) == "63c0"
    assert send(card, VERIFY) == "6984"
    assert send(card, set_pin(P256)) == "6986"


def test_select_of_the_applet_forgets_the_current_file() -> None:
    assert send(installed(P256), "00A4020C02000A", SELECT, "00B0000000") == "6986"


def test_new_package_takes_the_verification_back() -> None:
    card = activated(P256)
    send(card, VERIFY, "00A4020C020017")
    card.install(draft(P256).at(card.state.package_counter + 1).sealed(card.state.sim))
    assert send(card, "802A008020" + "11" * 32 + "00")[-4:] != "9000"
    assert send(card, SELECT, "00A4020C020018", VERIFY) == "6984"


@pytest.mark.parametrize("again", ["select", "reset", "other application"])
def test_pin_state_is_cleared(again: str) -> None:
    card = activated(P256)
    send(card, VERIFY)
    if again == "reset":
        card.reset()
    elif again == "other application":
        send(card, "00A4000C023F00")
    assert send(card, SELECT, "00A4020C020017", "802A008020" + "11" * 32 + "00") == "6982"


# --- signatures


def signed_in(index: int) -> tuple[VirtualSim, object]:
    card = activated(index)
    send(card, VERIFY, "00A4020C020017")
    return card, x509.load_der_x509_certificate(octets(index, "certificate")).public_key()


@pytest.mark.parametrize(
    ("name", "oid_and_length"), [("sha256", "0105000420"), ("sha384", "0205000430"), ("sha512", "0305000440")]
)
def test_rsa_signs_a_digest_info(name: str, oid_and_length: str) -> None:
    card, key = signed_in(RSA)
    assert isinstance(key, rsa.RSAPublicKey)
    digest = hashlib.new(name, b"message").digest()
    size = len(digest)
    info = bytes.fromhex(f"30{size + 17:02x}300d06096086480165030402{oid_and_length}") + digest
    answer = card.transmit(b"\x80\x2a\x00\x80" + bytes([len(info)]) + info + b"\x00")
    assert answer[-2:] == b"\x90\x00"
    assert len(answer) == 258
    algorithm = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}[name]
    key.verify(answer[:-2], b"message", padding.PKCS1v15(), algorithm)


@pytest.mark.parametrize("data", ["11" * 32, SHA256_INFO + "11" * 31, SHA256_INFO + "11" * 33, "11" * 245])
def test_rsa_signs_nothing_else(data: str) -> None:
    card, _ = signed_in(RSA)
    assert send(card, f"802A0080{len(data) // 2:02X}{data}00") == "6985"


@pytest.mark.parametrize("index", [P256, P384])
def test_ec_signs_a_digest_of_its_curves_length(index: int) -> None:
    card, key = signed_in(index)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    algorithm: hashes.HashAlgorithm = hashes.SHA256() if index == P256 else hashes.SHA384()
    size = algorithm.digest_size
    digest = hashlib.new(algorithm.name, b"message").digest()
    answer = card.transmit(b"\x80\x2a\x00\x80" + bytes([size]) + digest + b"\x00")
    assert len(answer) == 2 * size + 2
    r, s = int.from_bytes(answer[:size]), int.from_bytes(answer[size:-2])
    key.verify(encode_dss_signature(r, s), b"message", ec.ECDSA(algorithm))
    for wrong in (size - 1, size + 1):
        assert send(card, f"802A0080{wrong:02X}{'11' * wrong}00") == "6700"


def test_signature_needs_the_pin() -> None:
    card = activated(RSA)
    assert send(card, "00A4020C020017", "802A008033" + SHA256_INFO + "11" * 32 + "00") == "6982"


def test_signature_before_any_package_is_refused() -> None:
    assert send(blank_sim(RSA), SELECT, "00A4020C020017", "802A00800111") == "6985"
