"""SCP03, the card's side (GlobalPlatform Amendment D): one `Session` from INITIALIZE UPDATE to its end.

A failed check raises `CardError`, and the session is over: whoever holds it drops it.
"""

import hmac
from dataclasses import replace

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB

from appliance.vsim.apdu import CardError, Command, Status
from appliance.vsim.kdf import cmac, scp03_kdf
from appliance.vsim.personalisation import ChannelKeys

SECURE_MESSAGING = 0x04  # the bit of CLA
# Security levels (Amendment D 7.1.2, P1) and the bits of `i` that each needs. 00 is left out: a C-MAC at least.
C_MAC, C_ENC, R_MAC, R_ENC = 0x01, 0x02, 0x10, 0x20
LEVELS = {0x01: 0x00, 0x03: 0x00, 0x11: 0x20, 0x13: 0x20, 0x33: 0x60}


class Session:
    """One secure channel session.

    Args:
        keys: the static key set.
        aid: the application that opens the channel, part of the pseudo-random card challenge.
        counter: the sequence counter, already risen for this session.
        host_challenge: 8 bytes (S16: 16).
    """

    def __init__(self, keys: ChannelKeys, aid: bytes, counter: int, host_challenge: bytes) -> None:
        self._keys = keys
        self._mac_length = mac_length(keys)
        if len(host_challenge) != self._mac_length:
            raise CardError(Status.LENGTH_WRONG)
        short, bits = self._mac_length * 8, len(keys.k_enc) * 8
        sequence = counter.to_bytes(3)
        card_challenge = scp03_kdf(keys.k_enc, 0x02, sequence + aid, short)
        context = host_challenge + card_challenge
        self._s_enc = scp03_kdf(keys.k_enc, 0x04, context, bits)
        self._s_mac = scp03_kdf(keys.k_mac, 0x06, context, bits)
        self._s_rmac = scp03_kdf(keys.k_mac, 0x07, context, bits)
        self._host_cryptogram = scp03_kdf(self._s_mac, 0x01, context, short)
        card_cryptogram = scp03_kdf(self._s_mac, 0x00, context, short)
        self.level: int | None = None  # until EXTERNAL AUTHENTICATE
        self._chain = bytes(16)
        self._commands = 0
        self.initialize_update_response = (
            keys.kdd + bytes([keys.kvn, 0x03, keys.i]) + card_challenge + card_cryptogram + sequence
        )

    def authenticate(self, command: Command) -> None:
        """EXTERNAL AUTHENTICATE (Amendment D 7.1.2): the host's cryptogram, then its C-MAC; P1 is the level.

        Raises:
            CardError: 6A86, 6700, 6300 (cryptogram), 6982 (C-MAC, or authenticated already).
        """
        if self.level is not None:
            raise CardError(Status.SECURITY_NOT_SATISFIED)
        needed = LEVELS.get(command.p1)
        if needed is None or self._keys.i & needed != needed or command.p2:
            raise CardError(Status.PARAMETERS_WRONG)
        if len(command.data) != 2 * self._mac_length:
            raise CardError(Status.LENGTH_WRONG)
        if not hmac.compare_digest(command.data[: self._mac_length], self._host_cryptogram):
            raise CardError(Status.CRYPTOGRAM_WRONG)
        self._check_mac(command)
        self.level = command.p1

    def unwrap(self, command: Command) -> Command:
        """Check the C-MAC and decrypt (Amendment D 6.2.4, 6.2.6): the plain command, without the bit in CLA.

        Raises:
            CardError: 6982.
        """
        if self.level is None:
            raise CardError(Status.SECURITY_NOT_SATISFIED)
        data = self._check_mac(command)
        self._commands += 1
        if data and self.level & C_ENC:
            data = self._decrypt(data)
        return replace(command, cla=command.cla & ~SECURE_MESSAGING, data=data)

    def protect(self, data: bytes) -> bytes:
        """The response data to a good command (status 9000) under the session's level (Amendment D 6.2.5, 6.2.7)."""
        level = self.level or 0
        if data and level & R_ENC:
            padded = data + b"\x80" + bytes(-(len(data) + 1) % 16)
            encryptor = Cipher(AES(self._s_enc), CBC(self._icv(0x80))).encryptor()
            data = encryptor.update(padded) + encryptor.finalize()
        if level & R_MAC:
            mac = cmac(self._s_rmac, self._chain + data + Status.OK.to_bytes(2))
            data += mac[: self._mac_length]
        return data

    def _check_mac(self, command: Command) -> bytes:
        """The data in front of a valid C-MAC; the chain moves on."""
        data, sent = command.data[: -self._mac_length], command.data[-self._mac_length :]
        head = bytes([command.cla, command.ins, command.p1, command.p2, len(command.data)])
        chain = cmac(self._s_mac, self._chain + head + data)
        if not hmac.compare_digest(sent, chain[: self._mac_length]):
            raise CardError(Status.SECURITY_NOT_SATISFIED)
        self._chain = chain
        return data

    def _decrypt(self, data: bytes) -> bytes:
        if len(data) % 16:
            raise CardError(Status.SECURITY_NOT_SATISFIED)
        decryptor = Cipher(AES(self._s_enc), CBC(self._icv(0x00))).decryptor()
        plain = (decryptor.update(data) + decryptor.finalize()).rstrip(b"\x00")
        # Padding 80 00.. always ends within the last block.
        if not plain.endswith(b"\x80") or len(data) - len(plain) >= 16:
            raise CardError(Status.SECURITY_NOT_SATISFIED)
        return plain[:-1]

    def _icv(self, first: int) -> bytes:
        counter = bytes([first]) + self._commands.to_bytes(15)
        encryptor = Cipher(AES(self._s_enc), ECB()).encryptor()  # noqa: S305  # one block: the ICV of Amendment D 6.2.6
        return encryptor.update(counter) + encryptor.finalize()


def mac_length(keys: ChannelKeys) -> int:
    """Bytes of challenges, cryptograms and MACs: 8 (S8) or 16 (S16)."""
    return 16 if keys.i & 0x01 else 8
