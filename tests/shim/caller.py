"""A process that makes PKCS#11 calls when it is told: a line in names an action, a line out says what came of it."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

ROOT: Final = Path(__file__).parents[2]
LABEL, PIN, SO_PIN = "shim", "pin-for-the-shim-4711", "so-pin-for-the-shim"
SECRETS: Final = {
    Attribute.PRIVATE_EXPONENT: b"secret exponent",
    Attribute.PRIME_1: b"secret prime 1",
    Attribute.PRIME_2: b"secret prime 2",
    Attribute.EXPONENT_1: b"secret exponent 1",
    Attribute.EXPONENT_2: b"secret exponent 2",
    Attribute.COEFFICIENT: b"secret coefficient",
}
VALUE: Final = b"a secret value of 32 bytes......"
DATA: Final = b"derivation data." * 2


class Caller:
    """The parent's side: one child, logged in to the token."""

    def __init__(self, module: Path, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.shim.caller", str(module)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def begin(self, action: str) -> None:
        """Tells it; does not wait."""
        assert self.process.stdin
        self.process.stdin.write(action + "\n")

    def result(self) -> Any:
        """What came of the next action: its answer, or the name of its error; None where the process has ended."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def do(self, action: str) -> Any:
        """Tells it and waits."""
        self.begin(action)
        return self.result()

    def end(self) -> None:
        """Whatever state it is in."""
        self.process.kill()
        self.process.communicate()


def actions(session: pkcs11.Session) -> dict[str, Callable[[], Any]]:
    """What it can be told, by name."""
    flags = {Attribute.TOKEN: False, Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True}
    usage = dict.fromkeys((Attribute.ENCRYPT, Attribute.WRAP, Attribute.DERIVE), True)
    aes = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES, Attribute.VALUE: VALUE}
    key: Any = session.create_object({**aes, **flags, **usage, Attribute.LABEL: "a label"})
    hidden: Any = session.generate_key(KeyType.AES, 256, template={Attribute.SENSITIVE: True})
    rsa = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.KEY_TYPE: KeyType.RSA, Attribute.MODULUS: b"modulus"}

    def pair() -> None:
        public, private = session.generate_keypair(KeyType.RSA, 1024)
        public.destroy()
        private.destroy()

    def wrapped() -> int:
        return len(key.wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP))

    def derived(mechanism: Mechanism, parameter: Any) -> None:
        key.derive_key(KeyType.AES, 256, mechanism=mechanism, mechanism_param=parameter, template=flags).destroy()

    return {
        "random": lambda: len(session.generate_random(64)),
        "read": lambda: bytes(key[Attribute.VALUE]) == VALUE,
        "read hidden": lambda: hidden[Attribute.VALUE],
        "find": lambda: len(list(session.get_objects({Attribute.LABEL: "a label"}))),
        "import RSA": lambda: session.create_object({**rsa, **SECRETS}).destroy(),
        "pair": pair,
        "wrap": wrapped,
        "derive ECB": lambda: derived(Mechanism.AES_ECB_ENCRYPT_DATA, DATA),
        "derive CBC": lambda: derived(Mechanism.AES_CBC_ENCRYPT_DATA, (bytes(range(16)), DATA)),
    }


def main(module: str) -> None:
    """The child."""

    def say(answer: Any) -> None:
        print(json.dumps(answer), flush=True)

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it will be killed
    token = pkcs11.lib(module).get_token(token_label=LABEL)
    with token.open(rw=True, user_pin=PIN) as session:
        known = actions(session)
        say("ready")
        for line in sys.stdin:
            try:
                say(known[line.strip()]())
            except pkcs11.PKCS11Error as error:
                say(type(error).__name__)


if __name__ == "__main__":
    main(sys.argv[1])
