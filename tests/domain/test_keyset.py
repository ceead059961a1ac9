"""SIM issuers, key sets and what their states permit."""

import hashlib
from dataclasses import replace
from functools import reduce

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from appliance.domain.keyset import DEMO_KCVS, PERMITS, Channel, KeySet, KeySetState, MasterKey, SimIssuer
from appliance.errors import ApplianceError, Reason

OLD, ACTIVE, PREPARED = (
    KeySet(
        kvn,
        state,
        bind=MasterKey(f"KM-BIND/{kvn:02X}", f"B000{kvn:02x}", "000000"),
        chan=MasterKey(f"KM-CHAN/{kvn:02X}", f"C000{kvn:02x}", "000000"),
        channel=Channel(0x30),
    )
    for kvn, state in ((1, KeySetState.OLD), (2, KeySetState.ACTIVE), (3, KeySetState.PREPARED))
)
ISSUER = SimIssuer("example-mno", "D392F000260100000001", "A000000151535041", (OLD, ACTIVE, PREPARED))


def demo_master(name: str) -> bytes:
    """XOR of the three published components of a demo master."""
    components = [hashlib.sha256(f"appliance demo {name} component {number}".encode()).digest() for number in (1, 2, 3)]
    return reduce(lambda a, b: bytes(x ^ y for x, y in zip(a, b, strict=True)), components)


def gp_kcv(key: bytes) -> str:
    """GlobalPlatform's check value of an AES key."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - the check value is one block
    return encryptor.update(b"\x01" * 16)[:3].hex().upper()


def test_demo_check_values_are_those_of_the_published_components() -> None:
    assert {gp_kcv(demo_master("KM-BIND")), gp_kcv(demo_master("KM-CHAN"))} == DEMO_KCVS == {"A5AE31", "6204F8"}


def test_a_demo_master_is_known_by_its_check_value_in_either_case() -> None:
    assert MasterKey("any label", "a5ae31", "000000").is_demo
    assert not MasterKey("any label", "a5ae32", "000000").is_demo


def test_every_state_has_its_permissions_and_only_active_seals_by_default() -> None:
    assert set(PERMITS) == set(KeySetState)
    assert [state for state, permits in PERMITS.items() if permits.seals_by_default] == [KeySetState.ACTIVE]


def test_the_active_key_set_seals_when_none_is_named() -> None:
    assert ISSUER.sealing_key_set(0) is ACTIVE


def test_an_old_key_set_seals_when_it_is_named() -> None:
    assert ISSUER.sealing_key_set(1) is OLD


def test_a_prepared_key_set_does_not_seal_but_is_found_for_channels() -> None:
    with pytest.raises(ApplianceError) as refused:
        ISSUER.sealing_key_set(3)
    assert (refused.value.reason, refused.value.field) == (Reason.KEY_SET_NOT_USABLE, "kvn")
    assert ISSUER.key_set(3) is PREPARED


def test_without_an_active_key_set_one_must_be_named() -> None:
    issuer = replace(ISSUER, key_sets=(OLD, PREPARED))
    with pytest.raises(ApplianceError) as refused:
        issuer.sealing_key_set()
    assert refused.value.reason is Reason.KEY_SET_NOT_USABLE
    assert issuer.sealing_key_set(1) is OLD


@pytest.mark.parametrize("kvn", [4, 0x7F])
def test_an_undeclared_key_set_is_unknown(kvn: int) -> None:
    for ask in (ISSUER.key_set, ISSUER.sealing_key_set):
        with pytest.raises(ApplianceError) as refused:
            ask(kvn)
        assert (refused.value.reason, refused.value.field) == (Reason.KEY_SET_UNKNOWN, "kvn")


def test_aids_and_check_values_are_given_as_bytes() -> None:
    assert ISSUER.applet_aid_bytes == bytes.fromhex("D392F000260100000001")
    assert ISSUER.ssd_aid_bytes == bytes.fromhex("A000000151535041")
    assert OLD.bind.kcv_bytes == bytes.fromhex("B00001")


@pytest.mark.parametrize(
    ("i", "s16", "length"), [("10", False, 8), ("70", False, 8), ("31", True, 16), ("71", True, 16)]
)
def test_s16_is_bit_one_of_i(i: str, s16: bool, length: int) -> None:
    channel = Channel(0x30, i=i)
    assert (channel.s16, channel.challenge_length) == (s16, length)


@pytest.mark.parametrize(("i", "level"), [("10", "03"), ("30", "11"), ("30", "13"), ("70", "33"), ("71", "01")])
def test_a_security_level_that_i_supports_is_accepted(i: str, level: str) -> None:
    assert Channel(0x30, i=i, security_level=level).security_level_byte == int(level, 16)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("kvn", {"kvn": 0}),
        ("kvn", {"kvn": 0x80}),
        ("key_bits", {"key_bits": 160}),
        ("i", {"i": "60"}),  # no pseudo-random challenge: no script without the card
        ("i", {"i": "50"}),  # R-ENC without R-MAC
        ("i", {"i": "7"}),
        ("i", {"i": "78"}),
        ("security_level", {"security_level": "02"}),
        ("security_level", {"security_level": "zz"}),
        ("security_level", {"i": "10", "security_level": "11"}),
        ("security_level", {"i": "30", "security_level": "33"}),
    ],
)
def test_an_impossible_channel_is_refused(field: str, changes: dict[str, object]) -> None:
    with pytest.raises(ApplianceError) as refused:
        Channel(**({"kvn": 0x30} | changes))  # type: ignore[arg-type]  # wrong values are the point
    assert (refused.value.reason, refused.value.field) == (Reason.SETTINGS_INVALID, field)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("label", {"label": ""}),
        ("label", {"label": "x" * 65}),
        ("label", {"label": "two\nlines"}),
        ("kcv", {"kcv": "A5AE3"}),
        ("kcv", {"kcv": "A5AE3G"}),
        ("kdf_kcv", {"kdf_kcv": "00112233"}),
    ],
)
def test_a_malformed_master_key_is_refused(field: str, changes: dict[str, str]) -> None:
    with pytest.raises(ApplianceError) as refused:
        replace(OLD.bind, **changes)
    assert (refused.value.reason, refused.value.field) == (Reason.SETTINGS_INVALID, field)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("name", {"name": "Example"}),
        ("name", {"name": "x"}),
        ("name", {"name": "x-"}),
        ("name", {"name": "x" * 33}),
        ("applet_aid", {"applet_aid": "D392F000"}),
        ("applet_aid", {"applet_aid": "D392F00026 01"}),
        ("ssd_aid", {"ssd_aid": "00" * 17}),
        ("key_sets", {"key_sets": (ACTIVE, replace(OLD, kvn=2))}),
        ("key_sets", {"key_sets": (ACTIVE, replace(OLD, state=KeySetState.ACTIVE))}),
        ("key_sets", {"key_sets": (ACTIVE, replace(OLD, bind=replace(OLD.bind, label=ACTIVE.chan.label)))}),
        ("key_sets", {"key_sets": (ACTIVE, replace(OLD, bind=replace(OLD.bind, kcv=ACTIVE.chan.kcv.upper())))}),
        ("key_sets", {"key_sets": (replace(OLD, chan=replace(OLD.chan, kcv=OLD.bind.kcv)),)}),
    ],
)
def test_a_contradictory_sim_issuer_is_refused(field: str, changes: dict[str, object]) -> None:
    with pytest.raises(ApplianceError) as refused:
        replace(ISSUER, **changes)  # type: ignore[arg-type]  # wrong values are the point
    assert (refused.value.reason, refused.value.field) == (Reason.SETTINGS_INVALID, field)


def test_a_key_set_number_outside_its_range_is_refused() -> None:
    with pytest.raises(ApplianceError) as refused:
        replace(OLD, kvn=0x80)
    assert refused.value.field == "kvn"
