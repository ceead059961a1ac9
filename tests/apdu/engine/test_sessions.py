"""Sessions and keys: recorded sessions, published derivations, the specification on random input; in both builds."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.apdu import scp03
from appliance.apdu.engine import Form, Order, Route
from appliance.apdu.scp03 import Mode, SessionKeys
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from tests.apdu.card import Card
from tests.apdu.engine.core import Build
from tests.apdu.engine.drawn import Talk, aids, counters, exactly, key_sizes, modes, talks
from tests.apdu.engine.specified import unwrapped
from tests.apdu.recorded import KDF, OVER_PADDED, Opening, answer, every_derived_challenge, every_session, keys_of

NOT_RECORDED = "6985"
"""Stands for a response that was not recorded: an error status is the one that needs no R-MAC."""


def read(build: Build, vector: dict[str, Any], wraps: list[dict[str, Any]]) -> list[bytes | ApplianceError]:
    """What the engine reads in the responses to recorded commands."""
    commands = [vector["ext_auth_cmd"], *(wrap["wrapped"] for wrap in wraps)]
    responses = [f"{wrap['response']}9000" if "response" in wrap else NOT_RECORDED for wrap in wraps]
    hexes = (list(map(bytes.fromhex, which)) for which in (commands, responses))
    return build.unwrap(keys_of(vector), int(vector["security_level"], 16), Mode[vector["mode"]], *hexes)


@every_session
def test_every_recorded_response_is_opened(build: Build, vector: dict[str, Any]) -> None:
    expected = [answer(wrap) if "response" in wrap else NOT_RECORDED for wrap in vector["wraps"]]
    assert read(build, vector, vector["wraps"]) == list(map(bytes.fromhex, expected))


@pytest.mark.parametrize("vector", OVER_PADDED, ids=lambda vector: vector["name"])
def test_recorded_response_with_more_padding_than_one_block_is_refused(build: Build, vector: dict[str, Any]) -> None:
    *_, last = read(build, vector, [*vector["wraps"], vector["over_padded"]])
    assert isinstance(last, ApplianceError)
    assert (last.reason, last.field) == (Reason.SCP03_INVALID, "response")
    assert "padding" in str(last)


@every_session
def test_recorded_session_opens_with_its_keys_and_cryptograms(build: Build, vector: dict[str, Any]) -> None:
    opening, keys = Opening.of(vector), keys_of(vector)
    challenges = opening.host_challenge, opening.card_challenge
    static = bytes.fromhex(vector["k_enc"]), bytes.fromhex(vector["k_mac"])
    assert build.derive_session_keys(*static, *challenges) == keys
    build.verify_card_cryptogram(keys.s_mac, *challenges, opening.card_cryptogram)
    route = Route(bytes(5), bytes(5), 1, int(vector["security_level"], 16), opening.mode, KeyType.EC_P256)
    for from_static, pair in ((True, static), (False, (keys.s_enc, keys.s_mac))):
        script = build.render_one(Order(route, b"package", *challenges, *pair, from_static), Form.TEXT)
        assert script.splitlines()[2] == bytes.fromhex(vector["ext_auth_cmd"]).hex(" ").upper().encode()


@every_derived_challenge
def test_card_challenge_follows_from_the_sequence_counter(build: Build, vector: dict[str, Any]) -> None:
    opening, k_enc, aid = Opening.of(vector), bytes.fromhex(vector["k_enc"]), bytes.fromhex(vector["aid"])
    challenge = build.card_challenge(k_enc, opening.sequence_counter, aid, opening.mode)
    assert challenge == opening.card_challenge


@pytest.mark.parametrize("case", KDF["kcv"]["cases"], ids=lambda case: case["kcv"])
def test_key_check_value_is_the_published_one(build: Build, case: dict[str, Any]) -> None:
    assert build.kcv(bytes.fromhex(case["key"])).hex() == case["kcv"]


def test_kdf3_keys_are_the_published_ones(build: Build) -> None:
    short, long = KDF["kdf3"]["cases"]
    for constant, name in ((1, "enc"), (2, "mac"), (3, "dek")):
        key = build.kdf3(bytes.fromhex(short["master"]), constant, bytes.fromhex(short["kdd"]), short["bits"])
        assert build.kcv(key).hex() == short["kcv"][name]
    assert build.kdf3(bytes.fromhex(long["master"]), 1, bytes.fromhex(long["kdd"]), long["bits"]).hex() == long["enc"]


@given(
    master=key_sizes.flatmap(exactly),
    constant=st.integers(0, 255),
    kdd=exactly(10),
    bits=st.sampled_from([128, 192, 256]),
)
def test_kdf3_is_the_specified_one(build: Build, master: bytes, constant: int, kdd: bytes, bits: int) -> None:
    key = build.kdf3(master, constant, kdd, bits)
    assert key == scp03.kdf3(master, constant, kdd, bits)
    assert build.kcv(key) == scp03.kcv(key)


@given(k_enc=key_sizes.flatmap(exactly), counter=counters, aid=aids, mode=modes)
def test_card_challenge_is_the_specified_one(build: Build, k_enc: bytes, counter: int, aid: bytes, mode: Mode) -> None:
    assert build.card_challenge(k_enc, counter, aid, mode) == scp03.card_challenge(k_enc, counter, aid, mode)


@given(keys=key_sizes.flatmap(lambda n: st.tuples(exactly(n), exactly(n))), data=st.data(), mode=modes)
def test_session_keys_and_cryptogram_are_the_specified_ones(
    build: Build, keys: tuple[bytes, bytes], data: st.DataObject, mode: Mode
) -> None:
    host, card = data.draw(exactly(mode)), data.draw(exactly(mode))
    session = build.derive_session_keys(*keys, host, card)
    assert session == scp03.derive_session_keys(*keys, host, card)
    cryptogram = bytearray(scp03.card_cryptogram(session.s_mac, host, card))
    build.verify_card_cryptogram(session.s_mac, host, card, bytes(cryptogram))
    cryptogram[data.draw(st.integers(0, mode - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ApplianceError) as refused:
        build.verify_card_cryptogram(session.s_mac, host, card, bytes(cryptogram))
    assert (refused.value.reason, refused.value.field) == (Reason.SCP03_INVALID, "card_cryptogram")


@settings(max_examples=150)
@given(talk=talks())
def test_session_is_read_as_the_specification_reads_it(builds: tuple[Build, Build], talk: Talk) -> None:
    plain = list(map(told, unwrapped(talk)))
    for build in builds:
        read = build.unwrap(talk.keys, talk.level, talk.mode, talk.commands, talk.responses)
        assert list(map(told, read)) == plain


def told(answer: bytes | ApplianceError) -> object:
    return (answer.reason, answer.field, answer.detail) if isinstance(answer, ApplianceError) else answer


KEY, CHALLENGE = bytes(16), bytes(8)
KEYS = SessionKeys(KEY, KEY, KEY)
AUTHENTICATE = scp03.SecureChannel(KEYS, 0x33, Mode.S8).external_authenticate(CHALLENGE, CHALLENGE)
COMMAND = bytes.fromhex("84CA00660800000000000000FF")
REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "card_challenge enc": ("card_challenge", (bytes(15), 1, bytes(5), 8)),
    "card_challenge mode": ("card_challenge", (KEY, 1, bytes(5), 9)),
    "card_challenge sequence_counter": ("card_challenge", (KEY, 0, bytes(5), 8)),
    "card_challenge sequence_counter high": ("card_challenge", (KEY, 0x1000000, bytes(5), 8)),
    "card_challenge ssd_aid": ("card_challenge", (KEY, 1, bytes(4), 8)),
    "session_keys enc": ("derive_session_keys", (b"", KEY, CHALLENGE, CHALLENGE)),
    "session_keys mac": ("derive_session_keys", (KEY, bytes(24), CHALLENGE, CHALLENGE)),
    "session_keys host_challenge": ("derive_session_keys", (KEY, KEY, bytes(9), bytes(9))),
    "session_keys card_challenge": ("derive_session_keys", (KEY, KEY, CHALLENGE, bytes(16))),
    "cryptogram mac": ("verify_card_cryptogram", (bytes(33), CHALLENGE, CHALLENGE, CHALLENGE)),
    "cryptogram host_challenge": ("verify_card_cryptogram", (KEY, b"", CHALLENGE, CHALLENGE)),
    "cryptogram card_challenge": ("verify_card_cryptogram", (KEY, CHALLENGE, b"", CHALLENGE)),
    "cryptogram card_cryptogram": ("verify_card_cryptogram", (KEY, CHALLENGE, CHALLENGE, bytes(16))),
    "kdf3 key": ("kdf3", (bytes(31), 1, bytes(10), 128)),
    "kdf3 bits": ("kdf3", (KEY, 1, bytes(10), 64)),
    "kdf3 kdd": ("kdf3", (KEY, 1, bytes(9), 128)),
    "kcv key": ("kcv", (b"",)),
    "unwrap enc": ("unwrap", (SessionKeys(b"", KEY, KEY), 0x33, 8, [AUTHENTICATE], [])),
    "unwrap mac": ("unwrap", (SessionKeys(KEY, b"", KEY), 0x33, 8, [AUTHENTICATE], [])),
    "unwrap mac of responses": ("unwrap", (SessionKeys(KEY, KEY, bytes(24)), 0x33, 8, [AUTHENTICATE], [])),
    "unwrap security_level": ("unwrap", (KEYS, 0x31, 8, [AUTHENTICATE], [])),
    "unwrap mode": ("unwrap", (KEYS, 0x33, 0, [AUTHENTICATE], [])),
    "unwrap command empty": ("unwrap", (KEYS, 0x33, 8, [b""], [])),
    "unwrap command short": ("unwrap", (KEYS, 0x33, 8, [AUTHENTICATE, COMMAND[:12]], [b"\x90\x00"])),
    "unwrap command without C-MAC": (
        "unwrap",
        (KEYS, 0x33, 8, [AUTHENTICATE, COMMAND[:4] + b"\x07" + bytes(7)], [b""]),
    ),
    "unwrap response empty": ("unwrap", (KEYS, 0x33, 8, [AUTHENTICATE, COMMAND], [b""])),
    "unwrap response long": ("unwrap", (KEYS, 0x01, 8, [AUTHENTICATE, COMMAND], [bytes(259)])),
}
"""What is refused, by the function and the field."""


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_names_the_field(build: Build, case: str) -> None:
    name, arguments = REFUSED[case]
    try:
        answer = getattr(build, name)(*arguments)
    except ApplianceError as refused:
        answer = [refused]
    (refusal,) = answer
    assert isinstance(refusal, ApplianceError)
    assert (refusal.field, bool(refusal.hint)) == (case.split()[1], True)


def exchange(level: int, mode: Mode, commands: int = 1) -> tuple[list[bytes], Card]:
    """EXTERNAL AUTHENTICATE and some commands, and the card that has received them."""
    host, card = scp03.SecureChannel(KEYS, level, mode), Card(KEYS, level, mode)
    sent = [host.external_authenticate(bytes(mode), bytes(mode))]
    sent += [host.wrap(b"\x80\xca\x00\x66\x00") for _ in range(commands)]
    for command in sent:
        card.receive(command)
    return sent, card


def test_response_to_the_300th_command_is_decrypted(build: Build) -> None:
    commands, card = exchange(0x33, Mode.S8, 300)
    responses = [b"\x69\x85"] * 299 + [card.answer(b"the last", b"\x90\x00")]
    assert build.unwrap(KEYS, 0x33, Mode.S8, commands, responses)[-1] == b"the last\x90\x00"


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("level", [0x11, 0x33])
def test_response_with_any_byte_changed_is_refused(build: Build, level: int, mode: Mode) -> None:
    commands, card = exchange(level, mode)
    response = card.answer(b"some data", b"\x90\x00")
    assert build.unwrap(KEYS, level, mode, commands, [response]) == [b"some data\x90\x00"]
    for place in range(len(response)):
        changed = bytearray(response)
        changed[place] ^= 0x01
        (refusal,) = build.unwrap(KEYS, level, mode, commands, [bytes(changed)])
        assert isinstance(refusal, ApplianceError)


@pytest.mark.parametrize(
    ("problem", "response"),
    [
        ("has no status word", lambda _: b"\x90"),
        ("has no status word", lambda _: bytes(257) + b"\x90\x00"),
        ("Data came with an error status", lambda card: card.answer(b"data", b"\x69\x85")),
        ("has no R-MAC", lambda _: bytes(7) + b"\x90\x00"),
        ("R-MAC of the response does not verify", lambda _: bytes(8) + b"\x90\x00"),
        ("not of whole blocks", lambda card: unencrypted(card).answer(b"data", b"\x90\x00")),
        ("padding of the decrypted response", lambda card: card.answer(b"data", b"\x90\x00", bytes(12))),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_refusal_of_a_response_says_what_is_wrong(
    build: Build, problem: str, response: Callable[[Card], bytes]
) -> None:
    commands, card = exchange(0x33, Mode.S8)
    (refusal,) = build.unwrap(KEYS, 0x33, Mode.S8, commands, [response(card)])
    assert isinstance(refusal, ApplianceError)
    assert problem in refusal.detail


def unencrypted(card: Card) -> Card:
    """A card that protects its responses with an R-MAC alone."""
    card.level = 0x11
    return card


@pytest.mark.parametrize("zeros", [0, 14, 15, 16, 17, 31])
@pytest.mark.parametrize("mode", Mode)
def test_padding_is_one_block_at_most(build: Build, mode: Mode, zeros: int) -> None:
    commands, card = exchange(0x33, mode)
    data = bytes([1]) * (-(1 + zeros) % 16 or 16)
    response = card.answer(data, b"\x90\x00", b"\x80" + bytes(zeros))
    (plain,) = build.unwrap(KEYS, 0x33, mode, commands, [response])
    assert plain == data + b"\x90\x00" if zeros < 16 else isinstance(plain, ApplianceError)


@pytest.mark.parametrize("counter", [1, 0x0100, 0x010000, 0xFFFFFF])
def test_card_challenge_of_any_counter_is_the_specified_one(build: Build, counter: int) -> None:
    assert build.card_challenge(KEY, counter, bytes(5), Mode.S8) == scp03.card_challenge(
        KEY, counter, bytes(5), Mode.S8
    )


def test_longest_response_is_opened(build: Build) -> None:
    assert build.unwrap(KEYS, 0x01, Mode.S8, [AUTHENTICATE, COMMAND], [bytes(258)]) == [bytes(258)]
