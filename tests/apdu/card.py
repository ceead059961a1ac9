"""The card's end of a session, from the layouts and `cryptography` alone."""

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB
from cryptography.hazmat.primitives.cmac import CMAC

from appliance.apdu.scp03 import Mode, SecurityLevel, SessionKeys


def cmac(key: bytes, message: bytes) -> bytes:
    mac = CMAC(AES(key))
    mac.update(message)
    return mac.finalize()


class Card:
    """What receives EXTERNAL AUTHENTICATE and wrapped commands, and answers the last one."""

    def __init__(self, keys: SessionKeys, level: int, mode: Mode) -> None:
        self.keys, self.level, self.mode, self.chain, self.received = keys, level, mode, bytes(16), -1

    def receive(self, wrapped: bytes) -> None:
        """Follow the chain, whose full 16 bytes the host holds too, though S8 sends only 8 of them."""
        end = 5 + wrapped[4] - self.mode
        self.chain = cmac(self.keys.s_mac, self.chain + wrapped[:end])
        assert wrapped[end : end + self.mode] == self.chain[: self.mode]
        self.received += 1

    def answer(self, data: bytes, sw: bytes, padding: bytes | None = None) -> bytes:
        """The protected response to that command; `padding` in place of the right one."""
        if self.level & SecurityLevel.R_ENC and data:
            counter_block = b"\x80" + self.received.to_bytes(15, "big")
            icv = Cipher(AES(self.keys.s_enc), ECB()).encryptor().update(counter_block)  # noqa: S305 - one block
            encryptor = Cipher(AES(self.keys.s_enc), CBC(icv)).encryptor()
            data = encryptor.update(data + (padding or b"\x80" + bytes(-(len(data) + 1) % 16)))
        return data + cmac(self.keys.s_rmac, self.chain + data + sw)[: self.mode] + sw
