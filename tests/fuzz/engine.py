"""The target that is the engine in C: calls of core.c, as call.c reads them, which also says what must hold.

`make fuzz` searches it without Python (engine.c), so it can have a hundred times as many executions. For that its
packages end before 1,024 bytes, or five blocks; the tests of the engine go to the limit and beyond.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from appliance.apdu.engine import Form, Order, Route
from appliance.apdu.scp03 import LEVELS, Mode, SecureChannel, SessionKeys, capacity
from appliance.domain.package import KeyType
from tests.apdu.engine import calls
from tests.apdu.engine.calls import Response
from tests.apdu.engine.core import Core, compile_core
from tests.apdu.engine.drawn import package
from tests.apdu.recorded import KDF, SESSIONS, Opening, keys_of
from tests.fuzz.target import Native, Run, Target

PATTERN = b"a pattern \x80\x00"
AID = bytes.fromhex("A0000001515350534F")
KEYS = SessionKeys(bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 48)))


def compile_search(program: Path) -> None:
    """The search of libFuzzer, as a program."""
    compile_core(
        "clang", ["-O2", "-fsanitize=fuzzer", "-DMAX_REPEATED=1024"], Path(__file__).with_name("engine.c"), program
    )


@contextmanager
def open_engine() -> Iterator[Run]:
    """An input is a call of tests/apdu/engine/call.c."""
    with TemporaryDirectory(prefix="f-") as directory, Core(Path(directory)) as core:

        def run(data: bytes) -> None:
            core.call(data)

        yield run


def seeds() -> Iterator[bytes]:
    """Scripts of every form, level, mode and key size; sessions with every kind of response; what was recorded."""
    yield from scripts()
    for level in LEVELS:
        for mode in Mode:
            yield sealed(level, mode)
    for vector in SESSIONS:
        yield from recorded(vector)
    for case in KDF["kcv"]["cases"]:
        yield calls.kcv(bytes.fromhex(case["key"]))
    for case in KDF["kdf3"]["cases"]:
        yield calls.kdf3(bytes.fromhex(case["master"]), 1, bytes.fromhex(case["kdd"]), case["bits"])


def scripts() -> Iterator[bytes]:
    for number, level in enumerate(LEVELS):
        for mode in Mode:
            block, challenge = capacity(level, mode), bytes(range(mode))
            sizes = (1, block - 1, block, block + 1, 600, 900)
            for at, size in enumerate(sizes):
                key = bytes(range((16, 24, 32)[(at + number) % 3]))
                route = Route(AID, AID[:5], 0x30, level, mode, KeyType(at % 3 + 1))
                for static, opening in ((False, challenge), (True, challenge), (True, 7 + at)):
                    order = Order(route, package(PATTERN, size), challenge, opening, key, key, static)
                    yield calls.render(order, Form((at + number) % len(Form)), PATTERN)


def sealed(level: int, mode: Mode) -> bytes:
    """A session whose responses are protected by call.c, the last one spoilt."""
    host, challenge = SecureChannel(KEYS, level, mode), bytes(mode)
    authenticate = host.external_authenticate(challenge, challenge)
    said = (
        (Response.SEALED, b"\x90\x00"),
        (Response.NONE, b""),
        (Response.SEALED, b"a\x90\x00"),
        (Response.SEALED, bytes(16) + b"\x90\x00"),
        (Response.SEALED, bytes(100) + b"\x63\x10"),
        (Response.AS_IT_IS, b"\x69\x85"),
        (Response.SPOILT, b"spoilt\x90\x00"),
    )
    steps = [(kind, host.wrap(b"\x80\xca\x00\x66\x00"), response) for kind, response in said]
    return calls.session(KEYS, level, mode, authenticate, steps)


def recorded(vector: dict[str, Any]) -> Iterator[bytes]:
    """What a recorded session has for each function."""
    opening, keys = Opening.of(vector), keys_of(vector)
    k_enc, k_mac = bytes.fromhex(vector["k_enc"]), bytes.fromhex(vector["k_mac"])
    challenges = opening.host_challenge, opening.card_challenge
    if vector["aid"]:
        yield calls.card_challenge(k_enc, opening.sequence_counter, bytes.fromhex(vector["aid"]), opening.mode)
    yield calls.session_keys(k_enc, k_mac, *challenges)
    yield calls.card_cryptogram(keys.s_mac, *challenges, opening.card_cryptogram)
    steps = []
    for wrap in vector["wraps"]:
        kind = Response.AS_IT_IS if "response" in wrap else Response.NONE
        steps.append((kind, bytes.fromhex(wrap["wrapped"]), bytes.fromhex(wrap.get("response", "") + "9000")))
    level = int(vector["security_level"], 16)
    yield calls.session(keys, level, opening.mode, bytes.fromhex(vector["ext_auth_cmd"]), steps)


ENGINE = Target(open_engine, seeds, 500, Native(compile_search, times=100))
