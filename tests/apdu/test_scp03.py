"""SCP03 against nineteen recorded sessions, and against every way in which a peer's bytes can be wrong."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.apdu.scp03 import (
    LEVELS,
    InitializeUpdateResponse,
    Mode,
    SecureChannel,
    SecurityLevel,
    SessionKeys,
    capacity,
    card_challenge,
    card_cryptogram,
    host_cryptogram,
    kcv,
    kdf3,
    scp03_kdf,
)
from appliance.errors import ApplianceError, Reason
from tests.apdu.card import Card
from tests.apdu.recorded import (
    KDF,
    OVER_PADDED,
    SESSIONS,
    Opening,
    answer,
    every_derived_challenge,
    every_session,
    keys_of,
)


def opened(vector: dict[str, Any]) -> SecureChannel:
    opening = Opening.of(vector)
    channel = SecureChannel(keys_of(vector), int(vector["security_level"], 16), opening.mode)
    command = channel.external_authenticate(opening.host_challenge, opening.card_challenge)
    assert command.hex() == vector["ext_auth_cmd"]
    return channel


def test_all_recorded_sessions_are_there() -> None:
    assert len(SESSIONS) == 19
    assert sum(len(vector["wraps"]) for vector in SESSIONS) == 70
    assert sum("response" in wrap for vector in SESSIONS for wrap in vector["wraps"]) == 15
    assert sum(bool(vector["aid"]) for vector in SESSIONS) == 16
    assert len(OVER_PADDED) == 3
    assert {vector["mode"] for vector in SESSIONS} == {"S8", "S16"}
    assert {vector["key_bits"] for vector in SESSIONS} == {128, 192, 256}
    assert {(vector["security_level"], vector["mode"]) for vector in SESSIONS} == {
        *(("01", "S16"), ("03", "S8"), ("03", "S16"), ("11", "S8"), ("33", "S8"), ("33", "S16"))
    }
    assert all(vector["origin"] for vector in SESSIONS)


@every_derived_challenge
def test_card_challenge_follows_from_the_sequence_counter(vector: dict[str, Any]) -> None:
    opening = Opening.of(vector)
    challenge = card_challenge(
        bytes.fromhex(vector["k_enc"]), opening.sequence_counter, bytes.fromhex(vector["aid"]), opening.mode
    )
    assert challenge == opening.card_challenge


@every_session
def test_session_keys_and_cryptograms_are_those_of_the_session(vector: dict[str, Any]) -> None:
    opening, keys = Opening.of(vector), keys_of(vector)
    if vector.get("session"):
        assert {name: getattr(keys, name).hex() for name in ("s_enc", "s_mac", "s_rmac")} == vector["session"]
    assert card_cryptogram(keys.s_mac, opening.host_challenge, opening.card_challenge) == opening.card_cryptogram
    host = host_cryptogram(keys.s_mac, opening.host_challenge, opening.card_challenge)
    assert host.hex() == vector["ext_auth_cmd"][10 : 10 + 2 * opening.mode]
    if "host_cryptogram" in vector:
        assert host.hex() == vector["host_cryptogram"]


@every_session
def test_every_command_is_wrapped_and_every_response_opened_as_recorded(vector: dict[str, Any]) -> None:
    channel = opened(vector)
    for wrap in vector["wraps"]:
        assert channel.wrap(bytes.fromhex(wrap["plain"])).hex() == wrap["wrapped"]
        if "response" in wrap:
            assert channel.unwrap(bytes.fromhex(wrap["response"]) + b"\x90\x00").hex() == answer(wrap)


@every_session
def test_following_recorded_commands_opens_every_response_as_recorded(vector: dict[str, Any]) -> None:
    channel = opened(vector)
    for wrap in vector["wraps"]:
        channel.follow(bytes.fromhex(wrap["wrapped"]))
        if "response" in wrap:
            assert channel.unwrap(bytes.fromhex(wrap["response"]) + b"\x90\x00").hex() == answer(wrap)
    following, wrapping = opened(vector), opened(vector)
    for wrap in vector["wraps"]:
        following.follow(wrapping.wrap(bytes.fromhex(wrap["plain"])))
    last = b"\x80\xca\x00\x66\x00"
    assert following.wrap(last) == wrapping.wrap(last), "the same chain and counter"


@pytest.mark.parametrize("vector", OVER_PADDED, ids=lambda vector: vector["name"])
def test_recorded_response_with_more_padding_than_one_block_is_refused(vector: dict[str, Any]) -> None:
    channel = opened(vector)
    for wrap in (*vector["wraps"], vector["over_padded"]):
        assert channel.wrap(bytes.fromhex(wrap["plain"])).hex() == wrap["wrapped"]
    with pytest.raises(ApplianceError, match="padding of the decrypted response") as refused:
        channel.unwrap(bytes.fromhex(vector["over_padded"]["response"]) + b"\x90\x00")
    assert refused.value.reason is Reason.SCP03_INVALID


@pytest.mark.parametrize("case", KDF["scp03_kdf"]["cases"], ids=lambda case: f"constant-{case['constant']}")
def test_kdf_gives_the_published_output(case: dict[str, Any]) -> None:
    key, context = bytes.fromhex(case["key"]), bytes.fromhex(case["context"])
    assert scp03_kdf(key, case["constant"], case["bits"], context).hex() == case["out"]


@pytest.mark.parametrize("case", KDF["kcv"]["cases"], ids=lambda case: case["kcv"])
def test_key_check_value_is_the_published_one(case: dict[str, Any]) -> None:
    assert kcv(bytes.fromhex(case["key"])).hex() == case["kcv"]


@pytest.mark.parametrize(("constant", "name"), [(1, "enc"), (2, "mac"), (3, "dek")])
def test_kdf3_keys_have_the_published_check_values(constant: int, name: str) -> None:
    case = KDF["kdf3"]["cases"][0]
    key = kdf3(bytes.fromhex(case["master"]), constant, bytes.fromhex(case["kdd"]), case["bits"])
    assert kcv(key).hex() == case["kcv"][name]


def test_kdf3_gives_the_published_256_bit_key() -> None:
    case = KDF["kdf3"]["cases"][1]
    assert kdf3(bytes.fromhex(case["master"]), 1, bytes.fromhex(case["kdd"]), case["bits"]).hex() == case["enc"]


def test_response_to_initialize_update_is_read_field_by_field() -> None:
    answer = InitializeUpdateResponse.decode(
        bytes.fromhex("00008301a8186727a822 020310 726b1e22eed4f4bb ab21001bfd4b6f02 000012")
    )
    assert answer.kdd.hex() == "00008301a8186727a822"
    assert (answer.kvn, answer.i, answer.sequence_counter, answer.mode) == (2, 0x10, 0x12, Mode.S8)
    assert answer.card_challenge.hex() == "726b1e22eed4f4bb"
    assert answer.card_cryptogram.hex() == "ab21001bfd4b6f02"


def test_response_with_bit_1_of_i_is_read_as_s16() -> None:
    challenge, cryptogram = bytes(range(16)), bytes(range(16, 32))
    answer = InitializeUpdateResponse.decode(bytes(10) + b"\x30\x03\x71" + challenge + cryptogram + b"\x01\x02\x03")
    assert (answer.mode, answer.sequence_counter) == (Mode.S16, 0x010203)
    assert (answer.card_challenge, answer.card_cryptogram) == (challenge, cryptogram)


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (b"", "not one of SCP03"),
        (bytes(12), "not one of SCP03"),
        (bytes(10) + b"\x30\x02\x70" + bytes(19), "not one of SCP03"),
        (bytes(10) + b"\x30\x03\x00" + bytes(16), "at random"),
        (bytes(10) + b"\x30\x03\x70" + bytes(18), "has 31 bytes, not the 32"),
        (bytes(10) + b"\x30\x03\x70" + bytes(21), "has 34 bytes, not the 32"),
        (bytes(10) + b"\x30\x03\x71" + bytes(19), "has 32 bytes, not the 48"),
    ],
)
def test_response_of_another_form_is_refused(response: bytes, problem: str) -> None:
    with pytest.raises(ApplianceError, match=problem) as refused:
        InitializeUpdateResponse.decode(response)
    assert (refused.value.reason, refused.value.field) == (Reason.SCP03_INVALID, "initialize_update_response")


KEYS = SessionKeys(bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 48)))


def channel_at(level: int, mode: Mode) -> SecureChannel:
    channel = SecureChannel(KEYS, level, mode)
    channel.external_authenticate(bytes(mode), bytes(mode))
    return channel


@pytest.mark.parametrize(
    ("level", "mode", "most"),
    [(0x03, Mode.S8, 239), (0x03, Mode.S16, 223), (0x33, Mode.S8, 239), (0x01, Mode.S8, 247), (0x11, Mode.S16, 239)],
)
def test_capacity_is_what_one_wrapped_command_holds(level: int, mode: Mode, most: int) -> None:
    assert capacity(level, mode) == most
    channel = channel_at(level, mode)
    wrapped = channel.wrap(b"\x80\xe2\x00\x00" + bytes((most,)) + bytes(most) + b"\x00")
    assert len(wrapped) == 5 + wrapped[4] + 1
    with pytest.raises(ApplianceError, match=f"{most + 1} bytes are too many") as refused:
        channel.wrap(b"\x80\xe2\x00\x00" + bytes((most + 1,)) + bytes(most + 1))
    assert refused.value.reason is Reason.SCP03_INVALID


def test_refused_command_leaves_the_session_as_it_was() -> None:
    tried, untouched = channel_at(0x03, Mode.S8), channel_at(0x03, Mode.S8)
    with pytest.raises(ApplianceError):
        tried.wrap(b"\x80\xe2\x00\x00\x05abc")
    assert tried.wrap(b"\x80\xe2\x00\x00\x03abc") == untouched.wrap(b"\x80\xe2\x00\x00\x03abc")


@pytest.mark.parametrize(
    "apdu",
    [
        b"",
        b"\x80\xf2\x00",
        b"\x84\xf2\x00\x00",
        b"\x81\xf2\x00\x00",
        b"\x80\xe2\x00\x00\x05abc",
        b"\x80\xe2\x00\x00\x00\x00",
        b"\x80\xe2\x00\x00\x01a\x00\x00",
    ],
)
def test_what_is_no_plain_short_command_is_not_wrapped(apdu: bytes) -> None:
    with pytest.raises(ApplianceError) as refused:
        channel_at(0x03, Mode.S8).wrap(apdu)
    assert (refused.value.reason, refused.value.field) == (Reason.SCP03_INVALID, "apdu")


@pytest.mark.parametrize("level", [0x00, 0x02, 0x10, 0x23, 0x31, 0x43])
def test_undefined_or_unprotected_level_is_refused(level: int) -> None:
    with pytest.raises(ApplianceError, match=f"Security level {level:02X}") as refused:
        SecureChannel(KEYS, level, Mode.S8)
    assert (refused.value.reason, refused.value.field) == (Reason.SCP03_INVALID, "security_level")


@pytest.mark.parametrize(
    ("host", "card", "field"), [(16, 8, "host_challenge"), (8, 16, "card_challenge"), (8, 0, "card_challenge")]
)
def test_challenge_of_the_other_mode_is_refused(host: int, card: int, field: str) -> None:
    with pytest.raises(ApplianceError, match="S8 has 8 bytes") as refused:
        SecureChannel(KEYS, 0x03, Mode.S8).external_authenticate(bytes(host), bytes(card))
    assert (refused.value.reason, refused.value.field) == (Reason.SCP03_INVALID, field)


def test_channel_is_used_in_its_order_only() -> None:
    channel = SecureChannel(KEYS, 0x33, Mode.S8)
    for use in (channel.wrap, channel.follow):
        with pytest.raises(RuntimeError, match="EXTERNAL AUTHENTICATE comes first"):
            use(b"\x80\xf2\x00\x00")
    channel.external_authenticate(bytes(8), bytes(8))
    with pytest.raises(RuntimeError, match="no wrapped command"):
        channel.unwrap(b"\x90\x00")
    with pytest.raises(RuntimeError, match="opened before"):
        channel.external_authenticate(bytes(8), bytes(8))


def exchange(level: int, mode: Mode) -> tuple[SecureChannel, Card]:
    """A channel with one command sent, and the card that received it."""
    channel, card = SecureChannel(KEYS, level, mode), Card(KEYS, level, mode)
    card.receive(channel.external_authenticate(bytes(mode), bytes(mode)))
    card.receive(channel.wrap(b"\x80\xca\x00\x66\x00"))
    return channel, card


protected = pytest.mark.parametrize(("level", "mode"), [(level, mode) for level in (0x11, 0x13, 0x33) for mode in Mode])


@protected
@pytest.mark.parametrize("sw", ["9000", "6310", "6283"])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 100])
def test_protected_response_is_opened(level: int, mode: Mode, sw: str, length: int) -> None:
    channel, card = exchange(level, mode)
    data, status = bytes(range(1, length + 1)), bytes.fromhex(sw)
    assert channel.unwrap(card.answer(data, status)) == data + status


@protected
def test_response_with_any_byte_changed_is_refused(level: int, mode: Mode) -> None:
    channel, card = exchange(level, mode)
    response = card.answer(b"some data", b"\x90\x00")
    for place in range(len(response)):
        changed = bytearray(response)
        changed[place] ^= 0x01
        with pytest.raises(ApplianceError) as refused:
            channel.unwrap(bytes(changed))
        assert (refused.value.reason, refused.value.field) == (Reason.SCP03_INVALID, "response")


@protected
def test_response_to_another_command_is_refused(level: int, mode: Mode) -> None:
    channel, card = exchange(level, mode)
    response = card.answer(b"some data", b"\x90\x00")
    channel.wrap(b"\x80\xca\x00\x66\x00")
    with pytest.raises(ApplianceError, match="R-MAC of the response does not verify"):
        channel.unwrap(response)


@protected
def test_error_status_comes_alone_and_unprotected(level: int, mode: Mode) -> None:
    channel, card = exchange(level, mode)
    assert channel.unwrap(b"\x69\x85") == b"\x69\x85"
    with pytest.raises(ApplianceError, match="Data came with an error status"):
        channel.unwrap(card.answer(b"some data", b"\x69\x85"))


@protected
def test_response_too_short_for_what_it_must_carry_is_refused(level: int, mode: Mode) -> None:
    channel, _ = exchange(level, mode)
    with pytest.raises(ApplianceError, match="no R-MAC"):
        channel.unwrap(bytes(mode - 1) + b"\x90\x00")
    for response in (b"", b"\x90"):
        with pytest.raises(ApplianceError, match="no status word"):
            channel.unwrap(response)


@pytest.mark.parametrize("level", LEVELS)
def test_response_of_more_than_256_bytes_is_refused(level: int) -> None:
    channel, card = exchange(level, Mode.S8)
    card.level = 0x11  # R-ENC would make whole blocks
    with pytest.raises(ApplianceError, match="more than 256 bytes before it") as refused:
        channel.unwrap(card.answer(bytes(249), b"\x90\x00"))
    assert (refused.value.reason, refused.value.field) == (Reason.SCP03_INVALID, "response")


def test_response_of_256_bytes_is_opened() -> None:
    channel, card = exchange(0x11, Mode.S8)
    assert channel.unwrap(card.answer(bytes(248), b"\x90\x00")) == bytes(248) + b"\x90\x00"


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("padding", ["00" * 12, "81" + "00" * 11, "80" + "00" * 27, "00" * 28], ids=len)
def test_encrypted_response_with_wrong_padding_is_refused(mode: Mode, padding: str) -> None:
    channel, card = exchange(0x33, mode)
    with pytest.raises(ApplianceError, match="padding of the decrypted response"):
        channel.unwrap(card.answer(b"data", b"\x90\x00", bytes.fromhex(padding)))


def test_encrypted_response_of_broken_blocks_is_refused() -> None:
    channel, card = exchange(0x33, Mode.S8)
    card.level = 0x11  # the R-MAC is right, but the data was never encrypted
    with pytest.raises(ApplianceError, match="not of whole blocks"):
        channel.unwrap(card.answer(b"data", b"\x90\x00"))


@given(data=st.binary(min_size=1, max_size=223), level=st.sampled_from([0x01, 0x03]))
def test_level_without_r_mac_passes_responses_through(data: bytes, level: int) -> None:
    channel = channel_at(level, Mode.S8)
    channel.wrap(b"\x80\xe2\x00\x00" + bytes((len(data),)) + data)
    assert channel.unwrap(data + b"\x90\x00") == data + b"\x90\x00"


def test_every_level_needs_a_command_mac() -> None:
    assert all(level & SecurityLevel.C_MAC for level in LEVELS)


def test_repr_of_session_keys_shows_none() -> None:
    assert repr(KEYS) == "SessionKeys()"
