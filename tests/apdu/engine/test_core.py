"""What core.c leaves behind, and what it refuses: seen from beneath Python, with sanitizers."""

import os
import re
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from appliance.apdu import scp03
from appliance.apdu.engine import REFUSALS, Form, Order
from appliance.apdu.scp03 import Mode, SecureChannel, SessionKeys
from appliance.domain.derivation import cmac_subkey_k1
from tests.apdu.card import Card
from tests.apdu.engine import calls
from tests.apdu.engine.core import ENGINE, Core
from tests.apdu.engine.test_scripts import GOOD


def test_every_problem_that_core_names_is_one_that_python_explains() -> None:
    source = (ENGINE / "core.c").read_text()
    table = source[source.index("PROBLEMS[ENGINE_ERRORS]") : source.index("};", source.index("PROBLEMS["))]
    named = dict(re.findall(r'\[(ENGINE_\w+)\] = "(\w*)"', table))
    enumeration = (ENGINE / "core.h").read_text().split("typedef enum {")[1].split("ENGINE_ERRORS")[0]
    assert list(named) == re.findall(r"ENGINE_\w+", enumeration)
    assert [error for error, name in named.items() if not name] == ["ENGINE_OK", "ENGINE_LIBCRYPTO"]
    assert sorted(filter(None, named.values())) == sorted(REFUSALS)


class Use(NamedTuple):
    """A call, the secrets that are in it or follow from it, and those of them that it leaves when it ends."""

    call: bytes
    secrets: tuple[bytes, ...]
    left: tuple[bytes, ...]


def subkeys(key: bytes) -> tuple[bytes, ...]:
    """What CMAC makes of a key (RFC 4493, 2.3): the encryption of zeros, K1 and K2."""
    zeros = Cipher(AES(key), ECB()).encryptor().update(bytes(16))  # noqa: S305 - one block
    k1 = cmac_subkey_k1(zeros)
    return zeros, k1, cmac_subkey_k1(k1)


def uses(size: int) -> dict[str, Use]:
    """Every function, with fresh keys."""
    k_enc, k_mac, host, card = os.urandom(size), os.urandom(size), os.urandom(8), os.urandom(8)
    session = scp03.derive_session_keys(k_enc, k_mac, host, card)
    order = Order(GOOD.route, GOOD.package, host, card, k_enc, k_mac, static=True)
    channel, sim = SecureChannel(session, 0x33, Mode.S8), Card(session, 0x33, Mode.S8)
    commands = [channel.external_authenticate(host, card), channel.wrap(b"\x80\xca\x00\x66\x00")]
    for command in commands:
        sim.receive(command)
    response = sim.answer(b"said in secret", b"\x90\x00")
    every = (k_enc, k_mac, session.s_enc, session.s_mac, session.s_rmac)
    secrets = tuple(part for key in every for part in (key[:16], key[-16:], *subkeys(key)))
    s_enc, s_mac, s_rmac = (key[:16] for key in (session.s_enc, session.s_mac, session.s_rmac))
    return {
        "render": Use(calls.render(order, Form.TEXT), secrets, (s_enc, s_mac, *subkeys(session.s_mac)[1:])),
        "card_challenge": Use(calls.card_challenge(k_enc, 1, bytes(5), 8), secrets, (k_enc[:16], *subkeys(k_enc)[1:])),
        "session_keys": Use(calls.session_keys(k_enc, k_mac, host, card), secrets, (k_mac[:16],)),
        "card_cryptogram": Use(calls.card_cryptogram(session.s_mac, host, card, card), secrets, (s_mac,)),
        "unwrap": Use(calls.unwrap(session, 0x33, Mode.S8, commands, [response]), secrets, (s_enc, s_rmac)),
        "kdf3": Use(calls.kdf3(k_enc, 1, bytes(10), 256), secrets, (k_enc[:16],)),
        "kcv": Use(calls.kcv(k_enc), secrets, (k_enc[:16],)),
    }


@pytest.mark.parametrize("name", uses(16))
@pytest.mark.parametrize("size", [16, 24, 32])
def test_wiped_engine_and_its_contexts_hold_no_key(core: Core, size: int, name: str) -> None:
    use = uses(size)[name]
    core.call(use.call)
    assert all(core.places(secret) for secret in use.left), "so the search finds what is there"
    core.wipe()
    assert not [secret for secret in use.secrets if core.places(secret)]


def test_engine_that_gets_no_memory_is_not_made_and_keeps_none(core: Core) -> None:
    assert core.missed() > 9, "the engine, and nine contexts"


def test_session_keys_of_another_length_than_their_own_are_not_read_beyond(core: Core) -> None:
    keys = SessionKeys(bytes(32), bytes(32), bytes(16))
    answer = core.call(calls.unwrap(keys, 0x33, Mode.S8, [bytes(13)], []))
    assert answer[3:] == b"mac"
