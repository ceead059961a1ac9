"""Opening SIM packages: the known answers, and every refusal of sim-package.md with the SIM left as it was."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import Memory
from appliance.vsim.package import LONGEST_PACKAGE, STATUSES, KeyType, PackageError, Reason, activation_check
from appliance.vsim.personalisation import Personalisation

from .packages import P256, P384, RSA, Draft, blank_sim, case, cmac, draft, octets, personalisation, signed, tlv

every_case = pytest.mark.parametrize("index", [P256, RSA, P384], ids=["P-256", "RSA-2048", "P-384"])


def assert_receipt_is_right(sim: VirtualSim, message: bytes) -> None:
    """The signature verifies under the certificate's key, and the CMAC under K_RCPT."""
    installed = sim.state.installed
    assert installed is not None
    signature, mac = installed.receipt[:-16], installed.receipt[-16:]
    assert mac == cmac(sim.state.sim.binding.k_rcpt, message)
    key = x509.load_der_x509_certificate(installed.certificate).public_key()
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        return
    assert isinstance(key, ec.EllipticCurvePublicKey)
    half = len(signature) // 2
    assert half * 8 == key.curve.key_size
    r, s = int.from_bytes(signature[:half]), int.from_bytes(signature[half:])
    digest: hashes.HashAlgorithm = hashes.SHA256() if half == 32 else hashes.SHA384()
    key.verify(encode_dss_signature(r, s), message, ec.ECDSA(digest))


@every_case
def test_package_of_the_vectors_is_opened(index: int) -> None:
    sim = blank_sim(index)
    sim.install(octets(index, "package"))
    installed = sim.state.installed
    assert installed is not None
    assert installed.private_key.hex() == case(index)["pkcs8"]
    assert installed.certificate.hex() == case(index)["certificate"]
    assert installed.header_digest.hex() == case(index)["header_sha256"]
    assert installed.key_type == int(case(index)["key_type"])
    assert sim.state.package_counter == int.from_bytes(draft(index).field(0x84))
    assert_receipt_is_right(sim, octets(index, "receipt_message"))
    if installed.key_type is KeyType.RSA_2048:  # deterministic
        assert installed.receipt.hex() == case(index)["receipt"]


@every_case
def test_package_with_the_modules_zero_padding_is_opened_alike(index: int) -> None:
    sim = personalisation(index)
    e1, _, c2, _ = draft(index).elements(sim)
    wrapped = octets(index, "wrapped_when_the_module_zero_pads")
    card = blank_sim(index)
    card.install(tlv(0xE0, b"".join(signed(sim, e1, tlv(0xC1, wrapped), c2))))
    assert card.state.installed is not None
    assert card.state.installed.private_key.hex() == case(index)["pkcs8"]
    assert_receipt_is_right(card, octets(index, "receipt_message"))


@every_case
def test_sealing_of_these_tests_is_that_of_the_vectors(index: int) -> None:
    assert draft(index).sealed(personalisation(index)).hex() == case(index)["package"]


@every_case
def test_activation_check_is_that_of_the_header(index: int) -> None:
    code = case(index)["activation_code"].encode()
    assert activation_check(personalisation(index).binding, code) == draft(index).field(0x87)


def test_longest_package_is_the_sum_of_its_longest_fields() -> None:
    header = b"".join(tlv(0x80 + i, bytes(n)) for i, n in enumerate((1, 10, 16, 1, 4, 1, 32, 8)))
    parts = (tlv(0xE1, header), tlv(0xC1, bytes(1300)), tlv(0xC2, bytes(2048)), tlv(0xC3, bytes(16)))
    assert len(tlv(0xE0, b"".join(parts))) == LONGEST_PACKAGE


# --- refusals: against a SIM that holds an older package, PIN set, so that there is something to leave alone

OLD, NEW = 0x100, 0x200


def used_sim() -> VirtualSim:
    card = blank_sim(P256)
    card.install(draft(P256).at(OLD).sealed(personalisation(P256)))
    return VirtualSim(Memory(replace(card.state, pin_check=bytes(16), pin_tries=2)))


def assert_refused(package: bytes, reason: Reason) -> None:
    for card in (used_sim(), blank_sim(P256)):
        before = card.state
        with pytest.raises(PackageError) as refused:
            card.install(package)
        assert refused.value.reason is reason
        assert card.state == before


@pytest.fixture
def sim() -> Personalisation:
    return personalisation(P256)


@pytest.fixture
def good() -> Draft:
    return draft(P256).at(NEW)


def test_the_draft_that_the_refusals_change_is_itself_accepted(sim: Personalisation, good: Draft) -> None:
    card = used_sim()
    card.install(good.sealed(sim))
    assert card.state.package_counter == NEW
    assert card.state.pin_check is None


def recount(*elements: bytes) -> bytes:
    return tlv(0xE0, b"".join(elements))


def doubled(fields: tuple[tuple[int, bytes], ...]) -> tuple[tuple[int, bytes], ...]:
    return (*fields[:3], fields[2], *fields[3:])


def swapped(fields: tuple[tuple[int, bytes], ...]) -> tuple[tuple[int, bytes], ...]:
    return (*fields[:3], fields[4], fields[3], *fields[5:])


HEADERS: dict[str, Callable[[Draft], Draft]] = {
    "field missing": lambda d: replace(d, header=d.header[:-1]),
    "field doubled": lambda d: replace(d, header=doubled(d.header)),
    "fields swapped": lambda d: replace(d, header=swapped(d.header)),
    "field unknown": lambda d: replace(d, header=(*d.header, (0x88, b"\x00"))),
    "suite of two bytes": lambda d: d.with_field(0x80, b"\x01\x01"),
    "ICCID of nine bytes": lambda d: d.with_field(0x81, bytes(9)),
    "AID of four bytes": lambda d: d.with_field(0x82, bytes(4)),
    "AID of seventeen bytes": lambda d: d.with_field(0x82, bytes(17)),
    "counter of three bytes": lambda d: d.with_field(0x84, b"\x00\x02\x00"),
    "digest of 31 bytes": lambda d: d.with_field(0x86, bytes(31)),
    "activation check of nine bytes": lambda d: d.with_field(0x87, bytes(9)),
    "certificate over-long": lambda d: replace(d, certificate=bytes(2049)),
    "certificate empty": lambda d: replace(d, certificate=b""),
    "wrapped key over-long": lambda d: replace(d, key=bytes(1300)),
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_package_with_a_wrong_field_is_refused(
    change: Callable[[Draft], Draft], sim: Personalisation, good: Draft
) -> None:
    assert_refused(change(good).sealed(sim), Reason.STRUCTURE)


OUTER: dict[str, Callable[[list[bytes]], bytes]] = {
    "truncated": lambda e: recount(*e)[:-1],
    "truncated with right lengths": lambda e: recount(*e[:3], e[3][:-1]),
    "nothing": lambda _: b"",
    "only a tag": lambda _: b"\xe0",
    "a byte behind": lambda e: recount(*e) + b"\x00",
    "two packages": lambda e: recount(*e) * 2,
    "MAC missing": lambda e: recount(*e[:3]),
    "MAC doubled": lambda e: recount(*e, e[3]),
    "MAC of 15 bytes": lambda e: recount(*e[:3], tlv(0xC3, e[3][2:-1])),
    "certificate doubled": lambda e: recount(e[0], e[1], e[2], e[2], e[3]),
    "certificate before key": lambda e: recount(e[0], e[2], e[1], e[3]),
    "unknown element": lambda e: recount(*e, tlv(0xC4, b"\x00")),
    "length not minimal": lambda e: recount(*e[:3], b"\xc3\x81\x10" + e[3][2:]),
    "length in three bytes": lambda e: b"\xe0\x83" + len(b"".join(e)).to_bytes(3) + b"".join(e),
    "length indefinite": lambda e: b"\xe0\x80" + b"".join(e) + b"\x00\x00",
    "outer tag wrong": lambda e: tlv(0xE2, b"".join(e)),
    "tag of two bytes": lambda e: b"\xff" + recount(*e),
}


@pytest.mark.parametrize("change", OUTER.values(), ids=OUTER)
def test_package_of_wrong_structure_is_refused(
    change: Callable[[list[bytes]], bytes], sim: Personalisation, good: Draft
) -> None:
    assert_refused(change(good.elements(sim)), Reason.STRUCTURE)


@pytest.mark.parametrize("cut", range(0, 500, 23))
def test_package_cut_anywhere_is_refused(cut: int, sim: Personalisation, good: Draft) -> None:
    assert_refused(good.sealed(sim)[:cut], Reason.STRUCTURE)


FIELDS: dict[str, tuple[int, bytes, Reason]] = {
    "suite 02": (0x80, b"\x02", Reason.SUITE),
    "another KVN": (0x83, b"\x01", Reason.KVN),
    "key type 04": (0x85, b"\x04", Reason.KEY_TYPE),
    "another SIM": (0x81, octets(RSA, "kdd"), Reason.ICCID),
    "another applet": (0x82, bytes.fromhex("D392F000260100000002"), Reason.AID),
    "an older counter": (0x84, (OLD - 1).to_bytes(4), Reason.COUNTER),
    "the same counter": (0x84, OLD.to_bytes(4), Reason.COUNTER),
    "counter zero": (0x84, bytes(4), Reason.COUNTER),
    "another public key": (0x86, bytes(32), Reason.CERTIFICATE),
    "P-384 stated of a P-256 key": (0x85, b"\x03", Reason.KEY_OF_OTHER_TYPE),
    "RSA stated of a P-256 key": (0x85, b"\x01", Reason.KEY_OF_OTHER_TYPE),
}


@pytest.mark.parametrize(("tag", "value", "reason"), FIELDS.values(), ids=FIELDS)
def test_package_whose_header_does_not_fit_is_refused(
    tag: int, value: bytes, reason: Reason, sim: Personalisation, good: Draft
) -> None:
    # Another activation check: at an equal counter this is not the installed package again.
    package = good.with_field(0x87, bytes(8)).with_field(tag, value).sealed(sim)
    card = used_sim()
    before = card.state
    with pytest.raises(PackageError) as refused:
        card.install(package)
    assert refused.value.reason is reason
    assert card.state == before


def test_package_made_for_another_sim_under_its_keys_is_refused() -> None:
    card = blank_sim(P256)
    before = card.state
    for other in (RSA, P384):
        with pytest.raises(PackageError) as refused:
            card.install(octets(other, "package"))
        assert refused.value.reason in (Reason.KVN, Reason.ICCID)
    assert card.state == before


@pytest.mark.parametrize("element", range(4))
def test_package_with_one_bit_changed_is_refused_by_its_mac(element: int, sim: Personalisation, good: Draft) -> None:
    elements = good.elements(sim)
    elements[element] = elements[element][:-1] + bytes([elements[element][-1] ^ 1])
    assert_refused(recount(*elements), Reason.MAC)


def test_wrapped_key_that_does_not_unwrap_is_refused(sim: Personalisation, good: Draft) -> None:
    e1, c1, c2, _ = good.elements(sim)
    assert_refused(recount(*signed(sim, e1, c1[:-1] + bytes([c1[-1] ^ 1]), c2)), Reason.UNWRAP)
    assert_refused(recount(*signed(sim, e1, tlv(0xC1, c1[2:-8]), c2)), Reason.UNWRAP)
    assert_refused(recount(*signed(sim, e1, tlv(0xC1, b"\x00"), c2)), Reason.UNWRAP)


def test_key_wrapped_under_another_header_does_not_unwrap(sim: Personalisation, good: Draft) -> None:
    _, c1, c2, _ = good.elements(sim)
    e1 = good.at(NEW + 1).elements(sim)[0]
    assert_refused(recount(*signed(sim, e1, c1, c2)), Reason.UNWRAP)


@pytest.mark.parametrize("behind", [bytes(n) for n in range(8)])
def test_up_to_seven_zero_bytes_behind_the_key_are_nothing(behind: bytes, sim: Personalisation, good: Draft) -> None:
    card = used_sim()
    card.install(replace(good, key=good.key + behind).sealed(sim))
    assert card.state.installed is not None
    assert card.state.installed.private_key == good.key


KEYS: dict[str, Callable[[bytes], bytes]] = {
    "eight zero bytes behind": lambda key: key + bytes(8),
    "a one behind": lambda key: key + b"\x01",
    "a one behind zeros": lambda key: key + bytes(6) + b"\x01",
    "truncated": lambda key: key[:-1],
    "version 1": lambda key: key[:2] + b"\x02\x01\x01" + key[5:],
    "attributes": lambda key: bytes([0x30, key[1] + 2]) + key[2:] + b"\xa0\x00",
    "no PrivateKeyInfo": lambda _: b"\x30\x03\x02\x01\x00",
    "not DER": lambda _: bytes(67),
    "ECPrivateKey alone": lambda key: key[key.index(b"\x04\x27") + 2 :],
    "ECPrivateKey with its curve": lambda key: tlv(0x30, key[-37:] + tlv(0xA0, bytes.fromhex("06082a8648ce3d030107"))),
}


@pytest.mark.parametrize("change", KEYS.values(), ids=KEYS)
def test_key_that_is_not_one_private_key_info_is_refused(
    change: Callable[[bytes], bytes], sim: Personalisation, good: Draft
) -> None:
    assert_refused(replace(good, key=change(good.key)).sealed(sim), Reason.KEY_ENCODING)


def pkcs8(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-384", "secp256k1", "Ed25519"],
)
def test_key_of_another_type_than_stated_is_refused(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, sim: Personalisation, good: Draft
) -> None:
    assert_refused(replace(good, key=pkcs8(key)).sealed(sim), Reason.KEY_OF_OTHER_TYPE)


def test_rsa_key_of_another_length_is_refused() -> None:
    sim = personalisation(RSA)
    short = pkcs8(rsa.generate_private_key(65537, 1024))  # noqa: S505  # the wrong length is the point
    card = blank_sim(RSA)
    with pytest.raises(PackageError) as refused:
        card.install(replace(draft(RSA), key=short).sealed(sim))
    assert refused.value.reason is Reason.KEY_OF_OTHER_TYPE
    assert card.state.installed is None


def test_another_key_than_the_certificates_is_refused(sim: Personalisation, good: Draft) -> None:
    other = pkcs8(ec.generate_private_key(ec.SECP256R1()))
    assert_refused(replace(good, key=other).sealed(sim), Reason.KEY_MISMATCH)


def test_another_rsa_key_than_the_certificates_is_refused() -> None:
    card = blank_sim(RSA)
    other = pkcs8(rsa.generate_private_key(65537, 2048))
    with pytest.raises(PackageError) as refused:
        card.install(replace(draft(RSA), key=other).sealed(personalisation(RSA)))
    assert refused.value.reason is Reason.KEY_MISMATCH
    assert card.state.installed is None


def test_rsa_key_whose_numbers_do_not_fit_together_is_refused() -> None:
    key, card = bytearray(octets(RSA, "pkcs8")), blank_sim(RSA)
    key[-1] ^= 1  # the CRT coefficient
    with pytest.raises(PackageError) as refused:
        card.install(replace(draft(RSA), key=bytes(key)).sealed(personalisation(RSA)))
    assert refused.value.reason is Reason.KEY_ENCODING
    assert card.state.installed is None


def test_certificate_of_another_key_is_refused(sim: Personalisation, good: Draft) -> None:
    for certificate in (octets(P384, "certificate"), good.certificate + b"\x00", b"\x30\x00"):
        assert_refused(replace(good, certificate=certificate).sealed(sim), Reason.CERTIFICATE)


def test_digest_and_certificate_of_another_key_are_refused_by_the_private_key(
    sim: Personalisation, good: Draft
) -> None:
    for other in (P384, RSA):
        draft_of_other = replace(good, certificate=octets(other, "certificate"))
        spki = x509.load_der_x509_certificate(draft_of_other.certificate).public_key()
        digest = hashlib.sha256(spki.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
        assert_refused(draft_of_other.with_field(0x86, digest).sealed(sim), Reason.KEY_MISMATCH)


def test_public_key_inside_the_private_key_must_agree(sim: Personalisation, good: Draft) -> None:
    key = ec.derive_private_key(int.from_bytes(good.key[-32:]), ec.SECP256R1())
    with_point = pkcs8(key)
    assert len(with_point) > len(good.key)
    card = used_sim()
    card.install(replace(good, key=with_point).sealed(sim))
    assert card.state.package_counter == NEW
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    for point in (other.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint), b"\x04" + bytes(64)):
        with pytest.raises(PackageError) as refused:
            used_sim().install(replace(good, key=with_point[:-65] + point).sealed(sim))
        assert refused.value.reason is Reason.KEY_ENCODING


# --- again


@every_case
def test_package_again_changes_nothing_and_succeeds(index: int) -> None:
    card = blank_sim(index)
    card.install(octets(index, "package"))
    used = VirtualSim(Memory(replace(card.state, pin_check=bytes(16), pin_tries=1)))
    before = used.state
    used.install(octets(index, "package"))
    assert used.state is before


def test_package_again_with_another_wrapping_of_the_same_header_changes_nothing(
    sim: Personalisation, good: Draft
) -> None:
    card = used_sim()
    card.install(good.sealed(sim))
    before = card.state
    card.install(replace(good, key=good.key + bytes(5)).sealed(sim))
    assert card.state is before


def test_same_header_with_another_certificate_is_refused(sim: Personalisation, good: Draft) -> None:
    card = used_sim()
    card.install(good.sealed(sim))
    before = card.state
    changed = good.certificate[:-1] + bytes([good.certificate[-1] ^ 1])
    with pytest.raises(PackageError) as refused:
        card.install(replace(good, certificate=changed).sealed(sim))
    assert refused.value.reason is Reason.COUNTER
    assert card.state is before


def test_package_before_the_last_is_refused(sim: Personalisation, good: Draft) -> None:
    card = used_sim()
    card.install(good.sealed(sim))
    with pytest.raises(PackageError) as refused:
        card.install(draft(P256).at(OLD).sealed(sim))
    assert refused.value.reason is Reason.COUNTER


def test_every_refusal_has_a_status_word_that_is_an_error() -> None:
    assert set(STATUSES) == set(Reason)
    assert all(status >> 8 in (0x69, 0x6A) for status in STATUSES.values())
