"""The packages of vectors/sim_package.json, and drafts of them: change anything, then seal it with right MACs."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import Memory, State
from appliance.vsim.personalisation import Masters, Personalisation

VECTORS = Path(__file__).parents[1] / "vectors" / "sim_package.json"
KM_CHAN = bytes(range(0x40, 0x60))
P256, RSA, P384 = range(3)  # the cases of the file, in its order


@cache
def case(index: int) -> dict[str, str]:
    """One case; its numbers as text too."""
    return {name: str(value) for name, value in json.loads(VECTORS.read_text())["cases"][index].items()}


def octets(index: int, name: str) -> bytes:
    return bytes.fromhex(case(index)[name])


def personalisation(index: int, **masters: int) -> Personalisation:
    """The SIM that a case's package is for."""
    key_set = Masters(octets(index, "km_bind"), KM_CHAN, kvn=draft(index).field(0x83)[0], **masters)  # type: ignore[arg-type] # its fields by name
    return key_set.personalise(octets(index, "kdd"))


def blank_sim(index: int) -> VirtualSim:
    return VirtualSim(Memory(State(personalisation(index))))


def tlv(tag: int, value: bytes) -> bytes:
    length = len(value)
    head = (
        [tag, length] if length < 0x80 else [tag, 0x81, length] if length < 0x100 else [tag, 0x82, *length.to_bytes(2)]
    )
    return bytes(head) + value


def cmac(key: bytes, message: bytes) -> bytes:
    mac = CMAC(AES(key))
    mac.update(message)
    return mac.finalize()


@dataclass(frozen=True)
class Draft:
    """A package before it is sealed: header fields in order, the plaintext of C1, the value of C2."""

    header: tuple[tuple[int, bytes], ...]
    key: bytes
    certificate: bytes

    def field(self, tag: int) -> bytes:
        return next(value for name, value in self.header if name == tag)

    def with_field(self, tag: int, value: bytes) -> "Draft":
        return replace(self, header=tuple((name, value if name == tag else old) for name, old in self.header))

    def at(self, counter: int) -> "Draft":
        return self.with_field(0x84, counter.to_bytes(4))

    def elements(self, sim: Personalisation) -> list[bytes]:
        """E1, C1, C2 and C3, sealed for a SIM."""
        e1 = tlv(0xE1, b"".join(tlv(tag, value) for tag, value in self.header))
        encryptor = Cipher(AES(sim.binding.k_sim), CBC(bytes(16))).encryptor()
        k_pkg = encryptor.update(hashlib.sha256(e1).digest()) + encryptor.finalize()
        return signed(sim, e1, tlv(0xC1, aes_key_wrap_with_padding(k_pkg, self.key)), tlv(0xC2, self.certificate))

    def sealed(self, sim: Personalisation) -> bytes:
        return tlv(0xE0, b"".join(self.elements(sim)))


def signed(sim: Personalisation, e1: bytes, c1: bytes, c2: bytes) -> list[bytes]:
    """The four elements, with C3 right for whatever the first three are."""
    return [e1, c1, c2, tlv(0xC3, cmac(sim.binding.k_auth, b"PACKAGE" + e1 + c1 + c2))]


def draft(index: int) -> Draft:
    """A case taken apart."""
    header, fields = octets(index, "header")[2:], []
    while header:
        fields.append((header[0], header[2 : 2 + header[1]]))
        header = header[2 + header[1] :]
    return Draft(tuple(fields), octets(index, "pkcs8"), octets(index, "certificate"))
