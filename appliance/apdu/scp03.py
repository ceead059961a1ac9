"""SCP03, the host's side, as a readable reference (GPC Amendment D; card-side.md, "SCP03 as needed here").

Everything is a function of keys, challenges and the commands so far, so a session can be rendered with no card there.
"""

import hmac
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple, Self

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB
from cryptography.hazmat.primitives.cmac import CMAC

from appliance.domain.derivation import (
    KDD_LENGTH,
    SEQUENCE_COUNTER_LENGTH,
    Scp03Constant,
    kdf3_blocks,
    pseudo_random_challenge_context,
    scp03_blocks,
)
from appliance.domain.keyset import LEVEL_NEEDS
from appliance.errors import ApplianceError, Reason

BLOCK: Final = 16
MAX_DATA: Final = 255
"""Data field of a short APDU."""
MAX_RESPONSE: Final = 256 + 2
"""Response data and status word."""
KCV_LENGTH: Final = 3
SCP_ID: Final = 0x03
SW_SUCCESS: Final = b"\x90\x00"

_SECURE_MESSAGING: Final = 0x04
"""CLA bit 3, GlobalPlatform secure messaging (GPC Card Specification 2.3.1, 11.1.4)."""
_INS_EXTERNAL_AUTHENTICATE: Final = 0x82
_I_S16: Final = 0x01
_I_PSEUDO_RANDOM: Final = 0x10
_RESPONSE_ICV: Final = 0x80
"""First byte of the counter block for R-ENC (GPC Amendment D, 6.2.7)."""


class Mode(IntEnum):
    """S8 or S16; the value is the length in bytes of challenges, cryptograms and MACs."""

    S8 = 8
    S16 = 16


class SecurityLevel(IntFlag):
    """P1 of EXTERNAL AUTHENTICATE (GPC Amendment D, 7.1.2)."""

    C_MAC = 0x01
    C_ENC = 0x02
    R_MAC = 0x10
    R_ENC = 0x20


LEVELS: Final = tuple(LEVEL_NEEDS)
"""The combinations that Amendment D defines, without the unprotected 00."""


@dataclass(frozen=True)
class SessionKeys:
    """The keys of one session, all of the static keys' length."""

    s_enc: bytes = field(repr=False)
    s_mac: bytes = field(repr=False)
    s_rmac: bytes = field(repr=False)


class InitializeUpdateResponse(NamedTuple):
    """What a card answers to INITIALIZE UPDATE (GPC Amendment D, 7.1.1), status word left out."""

    kdd: bytes
    kvn: int
    i: int
    card_challenge: bytes
    card_cryptogram: bytes
    sequence_counter: int

    @property
    def mode(self) -> Mode:
        """S8 or S16, from `i`."""
        return Mode.S16 if self.i & _I_S16 else Mode.S8

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read 32 bytes (S8) or 48 (S16) of a card with pseudo-random challenges.

        Raises:
            ApplianceError: SCP03_INVALID: another length or another protocol.
        """
        head = KDD_LENGTH + 3
        if len(data) < head or data[11] != SCP_ID:
            raise _invalid("The response to INITIALIZE UPDATE is not one of SCP03.", "initialize_update_response")
        i = data[12]
        if not i & _I_PSEUDO_RANDOM:
            raise _invalid(f"The card draws its challenges at random (i = {i:02X}).", "initialize_update_response")
        size = Mode.S16 if i & _I_S16 else Mode.S8
        if len(data) != head + 2 * size + SEQUENCE_COUNTER_LENGTH:
            raise _invalid(
                f"The response to INITIALIZE UPDATE has {len(data)} bytes, not the "
                f"{head + 2 * size + SEQUENCE_COUNTER_LENGTH} that follow from i = {i:02X}.",
                "initialize_update_response",
            )
        challenge, cryptogram = data[head : head + size], data[head + size : head + 2 * size]
        return cls(
            data[:KDD_LENGTH], data[10], i, challenge, cryptogram, int.from_bytes(data[head + 2 * size :], "big")
        )


def scp03_kdf(key: bytes, constant: int, bits: int, context: bytes) -> bytes:
    """`bits` / 8 bytes derived from `key` (GPC Amendment D, 4.1.5)."""
    return b"".join(_cmac(key, block) for block in scp03_blocks(constant, bits, context))[: bits // 8]


def kdf3(master: bytes, constant: int, kdd: bytes, bits: int) -> bytes:
    """The static key that `master` gives a SIM (sim-package.md, Keys): what an HSM derives without showing it."""
    return b"".join(_cmac(master, block) for block in kdf3_blocks(constant, kdd, bits))[: bits // 8]


def kcv(key: bytes) -> bytes:
    """Key check value, 3 bytes: the start of AES(key, 01*16) (GPC Card Specification 2.3.1, B.6)."""
    return _encrypt_block(key, b"\x01" * BLOCK)[:KCV_LENGTH]


def card_challenge(k_enc: bytes, sequence_counter: int, aid: bytes, mode: Mode) -> bytes:
    """The pseudo-random challenge of the session with this counter, opened by the application `aid`."""
    context = pseudo_random_challenge_context(sequence_counter, aid)
    return scp03_kdf(k_enc, Scp03Constant.CARD_CHALLENGE, 8 * mode, context)


def derive_session_keys(k_enc: bytes, k_mac: bytes, host_challenge: bytes, card_challenge: bytes) -> SessionKeys:
    """The session keys of two static keys and two challenges (GPC Amendment D, 6.2.1)."""
    bits, context = 8 * len(k_enc), host_challenge + card_challenge
    return SessionKeys(
        s_enc=scp03_kdf(k_enc, Scp03Constant.S_ENC, bits, context),
        s_mac=scp03_kdf(k_mac, Scp03Constant.S_MAC, bits, context),
        s_rmac=scp03_kdf(k_mac, Scp03Constant.S_RMAC, bits, context),
    )


def card_cryptogram(s_mac: bytes, host_challenge: bytes, card_challenge: bytes) -> bytes:
    """The card's proof of its keys, as long as a challenge (GPC Amendment D, 6.2.2.2)."""
    return scp03_kdf(s_mac, Scp03Constant.CARD_CRYPTOGRAM, 8 * len(host_challenge), host_challenge + card_challenge)


def host_cryptogram(s_mac: bytes, host_challenge: bytes, card_challenge: bytes) -> bytes:
    """The host's proof of its keys, as long as a challenge (GPC Amendment D, 6.2.2.3)."""
    return scp03_kdf(s_mac, Scp03Constant.HOST_CRYPTOGRAM, 8 * len(host_challenge), host_challenge + card_challenge)


def capacity(level: int, mode: Mode) -> int:
    """Most plaintext bytes in one wrapped command: 239 (S8) or 223 (S16) with C-ENC, 247 or 239 without."""
    room = MAX_DATA - mode
    return room // BLOCK * BLOCK - 1 if level & SecurityLevel.C_ENC else room


class SecureChannel:
    """The host's end of one session: `external_authenticate` once, then `wrap` and `unwrap` in the order of sending.

    Where a script was wrapped earlier, `follow` takes the place of `wrap`.

    Args:
        keys: of this session.
        level: one of `LEVELS`.
        mode: S8 or S16.

    Raises:
        ApplianceError: SCP03_INVALID for another level.
    """

    def __init__(self, keys: SessionKeys, level: int, mode: Mode) -> None:
        if level not in LEVELS:
            permitted = ", ".join(f"{value:02X}" for value in LEVELS)
            raise _invalid(f"Security level {level:02X} is none of {permitted}.", "security_level")
        self._keys = keys
        self._level = SecurityLevel(level)
        self._mode = mode
        self._chain = bytes(BLOCK)
        self._counter: int | None = None

    def external_authenticate(self, host_challenge: bytes, card_challenge: bytes) -> bytes:
        """The EXTERNAL AUTHENTICATE command (GPC Amendment D, 7.1.2); the channel is open after it."""
        for name, challenge in (("host_challenge", host_challenge), ("card_challenge", card_challenge)):
            if len(challenge) != self._mode:
                raise _invalid(f"A challenge of {self._mode.name} has {self._mode} bytes, not {len(challenge)}.", name)
        if self._counter is not None:
            raise RuntimeError("this channel was opened before")
        self._counter = 0
        cryptogram = host_cryptogram(self._keys.s_mac, host_challenge, card_challenge)
        return self._with_mac(bytes((0x80, _INS_EXTERNAL_AUTHENTICATE, self._level, 0x00)), cryptogram)

    def wrap(self, apdu: bytes) -> bytes:
        """The command with C-ENC and C-MAC as the level says; Le stays as it is (GPC Amendment D, 6.2.4 and 6.2.6).

        Raises:
            ApplianceError: SCP03_INVALID: not a short APDU of class 00 or 80 on channel 0, or too long to be wrapped.
        """
        if self._counter is None:
            raise RuntimeError("EXTERNAL AUTHENTICATE comes first")
        header, data, le = _split(apdu)
        if len(data) > capacity(self._level, self._mode):
            raise _invalid(
                f"{len(data)} bytes are too many for one command; {capacity(self._level, self._mode)} fit.", "apdu"
            )
        self._counter += 1
        if data and self._level & SecurityLevel.C_ENC:
            cipher = Cipher(AES(self._keys.s_enc), CBC(self._icv())).encryptor()
            data = cipher.update(_pad(data)) + cipher.finalize()
        return self._with_mac(header, data) + le

    def follow(self, wrapped: bytes) -> None:
        """Moves the session on by a command that `wrap` of a session with the same keys made earlier."""
        if self._counter is None:
            raise RuntimeError("EXTERNAL AUTHENTICATE comes first")
        self._counter += 1
        self._chain = _cmac(self._keys.s_mac, self._chain + wrapped[: 5 + wrapped[4] - self._mode])

    def unwrap(self, response: bytes) -> bytes:
        """The response to the last wrapped command, verified and decrypted (GPC Amendment D, 6.2.5 and 6.2.7).

        Args:
            response: response data and status word as they came.

        Returns:
            Response data and status word in plain.

        Raises:
            ApplianceError: SCP03_INVALID: the length, the R-MAC or the padding is not right, or data came with an error
                status.
        """
        if not self._counter:
            raise RuntimeError("there was no wrapped command")
        if not len(SW_SUCCESS) <= len(response) <= MAX_RESPONSE:
            raise _invalid("The response has no status word, or more than 256 bytes before it.", "response")
        data, sw = response[:-2], response[-2:]
        if not self._level & SecurityLevel.R_MAC:
            return response
        if sw != SW_SUCCESS and sw[0] not in (0x62, 0x63):
            # An error status comes alone and unprotected; 62xx and 63xx are warnings.
            if data:
                raise _invalid("Data came with an error status.", "response")
            return sw
        if len(data) < self._mode:
            raise _invalid("The response has no R-MAC.", "response")
        data, mac = data[: -self._mode], data[-self._mode :]
        if not hmac.compare_digest(mac, _cmac(self._keys.s_rmac, self._chain + data + sw)[: self._mode]):
            raise _invalid("The R-MAC of the response does not verify.", "response")
        if data and self._level & SecurityLevel.R_ENC:
            if len(data) % BLOCK:
                raise _invalid("The encrypted response is not of whole blocks.", "response")
            cipher = Cipher(AES(self._keys.s_enc), CBC(self._icv(_RESPONSE_ICV))).decryptor()
            data = _unpad(cipher.update(data) + cipher.finalize())
        return data + sw

    def _with_mac(self, header: bytes, data: bytes) -> bytes:
        sealed = bytes((header[0] | _SECURE_MESSAGING, *header[1:], len(data) + self._mode)) + data
        self._chain = _cmac(self._keys.s_mac, self._chain + sealed)
        return sealed + self._chain[: self._mode]

    def _icv(self, first: int = 0x00) -> bytes:
        return _encrypt_block(self._keys.s_enc, bytes((first,)) + (self._counter or 0).to_bytes(BLOCK - 1, "big"))


def _split(apdu: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, data and Le of a short command APDU (ISO/IEC 7816-3, 12.1.3)."""
    header, body = apdu[:4], apdu[4:]
    if len(header) < 4 or header[0] not in (0x00, 0x80):
        raise _invalid("A command to wrap has a header of 4 bytes and class 00 or 80.", "apdu")
    if len(body) <= 1:
        return header, b"", body
    data, le = body[1 : 1 + body[0]], body[1 + body[0] :]
    if body[0] == 0 or len(data) < body[0] or len(le) > 1:
        raise _invalid("The command's Lc does not fit its data.", "apdu")
    return header, data, le


def _pad(data: bytes) -> bytes:
    return data + b"\x80" + bytes(-(len(data) + 1) % BLOCK)


def _unpad(padded: bytes) -> bytes:
    data = padded.rstrip(b"\x00")
    if not data.endswith(b"\x80") or len(padded) - len(data) >= BLOCK:
        raise _invalid("The padding of the decrypted response is not right.", "response")
    return data[:-1]


def _cmac(key: bytes, message: bytes) -> bytes:
    cmac = CMAC(AES(key))
    cmac.update(message)
    return cmac.finalize()


def _encrypt_block(key: bytes, block: bytes) -> bytes:
    # One block: ECB here is the bare cipher, as the derivations of ICV and KCV ask for.
    encryptor = Cipher(AES(key), ECB()).encryptor()  # noqa: S305 - a single block, no mode is wanted
    return encryptor.update(block) + encryptor.finalize()


def _invalid(problem: str, name: str) -> ApplianceError:
    return ApplianceError(
        Reason.SCP03_INVALID,
        problem,
        hint="Compare with the key set's protocol parameters; after a refusal the card needs a new session.",
        field=name,
    )
