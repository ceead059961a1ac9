"""core.c under the address and undefined behaviour sanitizers, with the functions of `appliance.apdu.engine`.

One process of driver.c answers all calls, one after the other; a finding of a sanitizer ends it.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, Self

from appliance.apdu.engine import REFUSALS, Form, Order
from appliance.apdu.scp03 import Mode, SessionKeys
from appliance.errors import ApplianceError
from tests.apdu.engine import calls

HERE: Final = Path(__file__).parent
ENGINE: Final = HERE.parents[2] / "appliance" / "apdu" / "engine"
SOURCES: Final = (ENGINE / "core.c", HERE / "call.c")
SANITIZERS: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g")
WARNINGS: Final = ("-std=c11", "-Wall", "-Wextra", "-Werror")


def compile_core(compiler: str, options: Sequence[str], source: Path, program: Path) -> Path:
    """core.c and call.c with one more source, as a program with sanitizers."""
    told = ["pkg-config", "--cflags", "--libs", "libcrypto >= 3"]
    libcrypto = subprocess.run(told, capture_output=True, text=True, check=True).stdout.split()
    places = (f"-I{ENGINE}", f"-I{HERE}")
    flags = (*WARNINGS, *options, *SANITIZERS, *places)
    subprocess.run([compiler, *flags, *SOURCES, source, *libcrypto, "-o", program], check=True)
    return program


class Build(Protocol):
    """What the extension (`appliance.apdu.engine`) and `Core` have in common."""

    def render(self, orders: Sequence[Order], form: Form) -> list[bytes | ApplianceError]: ...
    def render_one(self, order: Order, form: Form) -> bytes: ...
    def card_challenge(self, k_enc: bytes, sequence_counter: int, aid: bytes, mode: Mode) -> bytes: ...
    def derive_session_keys(
        self, k_enc: bytes, k_mac: bytes, host_challenge: bytes, card_challenge: bytes
    ) -> SessionKeys: ...
    def verify_card_cryptogram(
        self, s_mac: bytes, host_challenge: bytes, card_challenge: bytes, cryptogram: bytes
    ) -> None: ...
    def unwrap(
        self, keys: SessionKeys, level: int, mode: Mode, commands: Sequence[bytes], responses: Sequence[bytes]
    ) -> list[bytes | ApplianceError]: ...
    def kdf3(self, master: bytes, constant: int, kdd: bytes, bits: int) -> bytes: ...
    def kcv(self, key: bytes) -> bytes: ...


class Core:
    """The driver, for the life of a context. What it writes to stderr, a sanitizer's finding, is in the error.

    Args:
        directory: for the program and its stderr.
    """

    def __init__(self, directory: Path) -> None:
        program = compile_core("gcc", ["-O1"], HERE / "driver.c", directory / "driver")
        self._told = directory / "stderr"
        with self._told.open("wb") as stderr:
            self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            pass  # closes its stdin, which ends it, and waits
        if self._process.returncode:
            raise AssertionError(self._told.read_text("utf-8", "replace"))

    def call(self, call: bytes) -> bytes:
        """What call.c answers."""
        return self._ask(b"C" + call)

    def wipe(self) -> None:
        """The engine's contexts and memory are cleared."""
        self._ask(b"W")

    def places(self, secret: bytes) -> int:
        """In how many places these bytes stand in libcrypto's memory, which has the engine and all contexts."""
        return int.from_bytes(self._ask(b"S" + secret), "big")

    def missed(self) -> int:
        """How many allocations an engine needs: each was made to fail once, and none was lost by that."""
        return int.from_bytes(self._ask(b"N"), "big")

    def render(self, orders: Sequence[Order], form: Form) -> list[bytes | ApplianceError]:
        return [_read(self.call(calls.render(order, form))) for order in orders]

    def render_one(self, order: Order, form: Form) -> bytes:
        return _made(self.call(calls.render(order, form)))

    def card_challenge(self, k_enc: bytes, sequence_counter: int, aid: bytes, mode: Mode) -> bytes:
        return _made(self.call(calls.card_challenge(k_enc, sequence_counter, aid, mode)))

    def derive_session_keys(
        self, k_enc: bytes, k_mac: bytes, host_challenge: bytes, card_challenge: bytes
    ) -> SessionKeys:
        joined = _made(self.call(calls.session_keys(k_enc, k_mac, host_challenge, card_challenge)))
        size = len(k_enc)
        return SessionKeys(joined[:size], joined[size : 2 * size], joined[2 * size :])

    def verify_card_cryptogram(
        self, s_mac: bytes, host_challenge: bytes, card_challenge: bytes, cryptogram: bytes
    ) -> None:
        _made(self.call(calls.card_cryptogram(s_mac, host_challenge, card_challenge, cryptogram)))

    def unwrap(
        self, keys: SessionKeys, level: int, mode: Mode, commands: Sequence[bytes], responses: Sequence[bytes]
    ) -> list[bytes | ApplianceError]:
        answer, entries = self.call(calls.unwrap(keys, level, mode, commands, responses)), []
        while answer:
            end = 3 + int.from_bytes(answer[:2], "big")
            entries.append(_read(answer[2:end]))
            answer = answer[end:]
        return entries

    def kdf3(self, master: bytes, constant: int, kdd: bytes, bits: int) -> bytes:
        return _made(self.call(calls.kdf3(master, constant, kdd, bits)))

    def kcv(self, key: bytes) -> bytes:
        return _made(self.call(calls.kcv(key)))

    def _ask(self, frame: bytes) -> bytes:
        given, answers = self._process.stdin, self._process.stdout
        assert given is not None
        assert answers is not None
        try:
            given.write(len(frame).to_bytes(4, "big") + frame)
            given.flush()
        except BrokenPipeError:
            pass  # it has ended, as the empty answer will tell
        head = answers.read(4)
        if len(head) < 4:
            raise AssertionError(self._told.read_text("utf-8", "replace"))
        return answers.read(int.from_bytes(head, "big"))


def _read(answer: bytes) -> bytes | ApplianceError:
    if not answer[0]:
        return answer[1:]
    problem = answer[1:].decode()
    refusal = REFUSALS[problem]
    return ApplianceError(refusal.reason, refusal.detail, hint=refusal.hint, field=refusal.field or problem)


def _made(answer: bytes) -> bytes:
    read = _read(answer)
    if isinstance(read, ApplianceError):
        raise read
    return read
