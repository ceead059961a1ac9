"""The JPKI applet: card-side.md, "The JPKI applet's card interface". It holds a PIN state and a current file.

The PIN belongs to the key: a new package brings a new activation code, and the PIN is set anew with it.
"""

import hmac
import re
from collections.abc import Callable
from dataclasses import replace

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from appliance.vsim.apdu import CardError, Command, Status
from appliance.vsim.files import Files
from appliance.vsim.kdf import cmac
from appliance.vsim.memory import CODE_TRIES, PIN_TRIES, Memory
from appliance.vsim.package import CURVES, Installed, activation_check, fixed_length

AUTH_KEY, AUTH_PIN, SIGNATURE_PIN = 0x0017, 0x0018, 0x001B
# What a phone's secure element calls itself; a card says JPKIAPICCTOKEN2.
TOKEN_INFO = b"JPKIAPGPSETOKEN".ljust(32) + bytes(128)
PIN = re.compile(rb"[0-9]{4}")
RECEIPT_PART = 128
# DER DigestInfo up to the digest (RFC 8017, 9.2, note 1) and the digest it announces.
DIGEST_INFOS: dict[bytes, hashes.HashAlgorithm] = {
    bytes.fromhex("3031300d060960864801650304020105000420"): hashes.SHA256(),
    bytes.fromhex("3041300d060960864801650304020205000430"): hashes.SHA384(),
    bytes.fromhex("3051300d060960864801650304020305000440"): hashes.SHA512(),
}


class JpkiApplet:
    """The applet on one SIM; `select` starts it afresh."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._files = Files(
            {
                0x0006: lambda: TOKEN_INFO,
                0x0008: lambda: b"\x01" if memory.state.installed else b"\x00",
                0x000A: lambda: memory.state.installed.certificate if memory.state.installed else b"",
                0x000B: lambda: memory.state.ca_certificate,
                AUTH_KEY: None,
                AUTH_PIN: None,
                SIGNATURE_PIN: None,
            }
        )
        self._verified = False
        self._commands: dict[tuple[int, int], Callable[[Command], bytes]] = {
            (0x00, 0xA4): self._select_file,
            (0x00, 0xB0): self._files.read,
            (0x00, 0x20): self._verify,
            (0x00, 0x24): self._change_or_set,
            (0x80, 0x2A): self._sign,
            (0x80, 0xCA): self._receipt,
        }

    def select(self) -> None:
        """SELECT of the applet, or a reset: no current file, PIN not verified."""
        self._files.current = None
        self._verified = False

    def process(self, command: Command) -> bytes:
        """Answer one command with its response data.

        Raises:
            CardError: any other status than 9000.
        """
        if command.cla not in (0x00, 0x80):
            raise CardError(Status.CLASS_UNKNOWN)
        if (handler := self._commands.get((command.cla, command.ins))) is None:
            raise CardError(Status.INSTRUCTION_UNKNOWN)
        return handler(command)

    def _select_file(self, command: Command) -> bytes:
        if command.p1 != 0x02:
            raise CardError(Status.PARAMETERS_WRONG)
        self._files.select(command)
        return b""

    def _verify(self, command: Command) -> bytes:
        """VERIFY; without data it only tells the tries. Of the signature PIN there are none: it is absent here."""
        _expect(command, 0x00, 0x80)
        state = self._memory.state
        if self._files.current not in (AUTH_PIN, SIGNATURE_PIN):
            raise CardError(Status.NO_CURRENT_EF)
        usable = self._files.current == AUTH_PIN and state.pin_check is not None
        tries = state.pin_tries if usable else 0
        if not command.data:
            raise CardError(Status.TRIES_LEFT + tries)
        if not tries or state.pin_check is None:
            raise CardError(Status.PIN_BLOCKED)
        if len(command.data) != 4:
            raise CardError(Status.LENGTH_WRONG)
        self._verified = hmac.compare_digest(self._pin_check(command.data), state.pin_check)
        tries = PIN_TRIES if self._verified else tries - 1
        if tries != state.pin_tries:
            self._memory.store(replace(state, pin_tries=tries))
        if not self._verified:
            raise CardError(Status.TRIES_LEFT + tries)
        return b""

    def _change_or_set(self, command: Command) -> bytes:
        """CHANGE after a good VERIFY (P1 01), or set the PIN once with the activation code (P1 00)."""
        if command.p1 not in (0x00, 0x01) or command.p2 != 0x80:
            raise CardError(Status.PARAMETERS_WRONG)
        if self._files.current != AUTH_PIN:
            raise CardError(Status.NO_CURRENT_EF)
        if command.p1 == 0x00:
            pin = self._activated(command.data)
        elif self._verified:
            pin = _pin(command.data)
        else:
            raise CardError(Status.SECURITY_NOT_SATISFIED)
        self._memory.store(
            replace(self._memory.state, pin_check=self._pin_check(pin), pin_tries=PIN_TRIES, code_tries=CODE_TRIES)
        )
        return b""

    def _activated(self, data: bytes) -> bytes:
        """The PIN behind a right activation code: len(code) code PIN."""
        state = self._memory.state
        if state.installed is None or state.pin_check is not None:
            raise CardError(Status.CONDITIONS_NOT_SATISFIED)
        if not state.code_tries:
            raise CardError(Status.CODE_BLOCKED)
        if not data or len(data) < 1 + data[0]:
            raise CardError(Status.LENGTH_WRONG)
        code, pin = data[1 : 1 + data[0]], _pin(data[1 + data[0] :])
        if not hmac.compare_digest(activation_check(state.sim.binding, code), state.installed.activation_check):
            self._memory.store(replace(state, code_tries=state.code_tries - 1))
            raise CardError(Status.TRIES_LEFT + state.code_tries - 1)
        return pin

    def _sign(self, command: Command) -> bytes:
        """A signature by the authentication key over a DigestInfo (RSA) or a digest (EC)."""
        _expect(command, 0x00, 0x80)
        if self._files.current != AUTH_KEY:
            raise CardError(Status.NO_CURRENT_EF)
        if (installed := self._memory.state.installed) is None:
            raise CardError(Status.CONDITIONS_NOT_SATISFIED)
        if not self._verified:
            raise CardError(Status.SECURITY_NOT_SATISFIED)
        return _signature(installed, command.data)

    def _receipt(self, command: Command) -> bytes:
        """GET DATA DF21..DF23: the receipt in parts, at any time after installation."""
        installed = self._memory.state.installed
        if command.p1 != 0xDF or not 0x21 <= command.p2 <= 0x23 or installed is None:
            raise CardError(Status.REFERENCE_NOT_FOUND)
        start = (command.p2 - 0x21) * RECEIPT_PART
        if not (part := installed.receipt[start : start + RECEIPT_PART]):
            raise CardError(Status.REFERENCE_NOT_FOUND)
        return part

    def _pin_check(self, pin: bytes) -> bytes:
        return cmac(self._memory.state.sim.binding.k_auth, b"PIN" + pin)


def _expect(command: Command, p1: int, p2: int) -> None:
    if (command.p1, command.p2) != (p1, p2):
        raise CardError(Status.PARAMETERS_WRONG)


def _pin(data: bytes) -> bytes:
    if len(data) != 4:
        raise CardError(Status.LENGTH_WRONG)
    if not PIN.fullmatch(data):
        raise CardError(Status.CONDITIONS_NOT_SATISFIED)
    return data


def _signature(installed: Installed, data: bytes) -> bytes:
    key = installed.key()
    if isinstance(key, rsa.RSAPrivateKey):
        for prefix, algorithm in DIGEST_INFOS.items():
            if data.startswith(prefix) and len(data) == len(prefix) + algorithm.digest_size:
                return key.sign(data[len(prefix) :], padding.PKCS1v15(), Prehashed(algorithm))
        raise CardError(Status.CONDITIONS_NOT_SATISFIED)
    curve = CURVES[installed.key_type]
    if len(data) != curve.size:
        raise CardError(Status.LENGTH_WRONG)
    return fixed_length(key.sign(data, ec.ECDSA(Prehashed(curve.hash()))), curve.size)
