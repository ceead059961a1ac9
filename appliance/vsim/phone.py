"""What a citizen's phone does with the JPKI applet, by APDUs alone (card-side.md, "The JPKI applet's card interface").

It keeps neither PIN nor code: each lives for one call, and no error carries one.
"""

import hashlib
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from appliance.vsim.apdu import CardError, Status
from appliance.vsim.personalisation import JPKI_AID

CERTIFICATE, AUTH_KEY, AUTH_PIN = 0x000A, 0x0017, 0x0018
READ_PART = 256  # the most a short READ BINARY answers
RECEIPT_PART = 128
RECEIPT_TAGS = range(0xDF21, 0xDF24)
# DER DigestInfo of SHA-256 up to the digest (RFC 8017, 9.2, note 1).
SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
EC_DIGESTS = {"secp256r1": hashlib.sha256, "secp384r1": hashlib.sha384}


class Sim(Protocol):
    """A SIM, wherever it is."""

    def transmit(self, apdu: bytes) -> bytes:
        """Response data and status word to one command APDU."""
        ...


class PhoneApp:
    """The phone's app for the applet of one SIM; it selects the applet anew for each thing it does.

    Every method raises `CardError` with the status word where the SIM refuses.
    """

    def __init__(self, sim: Sim, applet_aid: bytes = JPKI_AID) -> None:
        self._sim = sim
        self._applet_aid = applet_aid

    def set_pin(self, code: bytes, pin: bytes) -> None:
        """Set the PIN (4 ASCII digits), once, with the activation code.

        Raises:
            CardError: 63Cx wrong code, 6983 five wrong codes, 6985 set already, no package, or not 4 digits.
        """
        self._select(AUTH_PIN)
        self._command(b"\x00\x24\x00\x80", bytes([len(code)]) + code + pin)

    def tries_left(self) -> int:
        """Tries of the PIN, 0 also where none is set; asking costs none."""
        self._select(AUTH_PIN)
        _, status = self._exchange(b"\x00\x20\x00\x80")
        if status & 0xFFF0 != Status.TRIES_LEFT:
            raise CardError(status)
        return status & 0x0F

    def certificate(self) -> bytes:
        """The user authentication certificate, DER.

        Raises:
            CardError: 6B00 where no package is installed.
        """
        self._select(CERTIFICATE)
        # DER of 256 bytes or more: 30 82 and two bytes of length.
        length = 4 + int.from_bytes(self._read(0, 4)[2:])
        parts = range(0, length, READ_PART)
        return b"".join(self._read(offset, min(READ_PART, length - offset)) for offset in parts)

    def sign(self, pin: bytes, message: bytes) -> bytes:
        """A signature as `cryptography` and `openssl dgst -verify` take it.

        Returns:
            RSA: PKCS#1 v1.5 with SHA-256. EC: DER of r and s, with SHA-256 (P-256) or SHA-384 (P-384).

        Raises:
            CardError: 63Cx wrong PIN, 6984 PIN blocked or not set, 6B00 no package installed.
            ValueError: the certificate cannot be read, or its key is of another type.
        """
        key = x509.load_der_x509_certificate(self.certificate()).public_key()
        if isinstance(key, rsa.RSAPublicKey):
            return self._signature(pin, SHA256_INFO + hashlib.sha256(message).digest())
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in EC_DIGESTS:
            raise ValueError("the certificate's key is neither RSA nor on P-256 or P-384")
        signature = self._signature(pin, EC_DIGESTS[key.curve.name](message).digest())
        half = len(signature) // 2
        return encode_dss_signature(int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))

    def receipt(self) -> bytes:
        """The receipt of the installed package, joined from its parts.

        Raises:
            CardError: 6A88 where no package is installed.
        """
        self._select()
        receipt = b""
        for tag in RECEIPT_TAGS:
            part = self._command(b"\x80\xca" + tag.to_bytes(2), le=b"\x00")
            receipt += part
            if len(part) < RECEIPT_PART:
                break
        return receipt

    def _signature(self, pin: bytes, to_be_signed: bytes) -> bytes:
        self._select(AUTH_PIN)
        self._command(b"\x00\x20\x00\x80", pin)
        # The PIN state lasts until the applet is selected again.
        self._select_file(AUTH_KEY)
        return self._command(b"\x80\x2a\x00\x80", to_be_signed, b"\x00")

    def _select(self, file: int | None = None) -> None:
        self._command(b"\x00\xa4\x04\x0c", self._applet_aid)
        if file is not None:
            self._select_file(file)

    def _select_file(self, file: int) -> None:
        self._command(b"\x00\xa4\x02\x0c", file.to_bytes(2))

    def _read(self, offset: int, length: int) -> bytes:
        return self._command(b"\x00\xb0" + offset.to_bytes(2), le=bytes([length % READ_PART]))

    def _command(self, header: bytes, data: bytes = b"", le: bytes = b"") -> bytes:
        """The response data of one command, which must end with 9000."""
        body = bytes([len(data)]) + data if data else b""
        response, status = self._exchange(header + body + le)
        if status != Status.OK:
            raise CardError(status)
        return response

    def _exchange(self, apdu: bytes) -> tuple[bytes, int]:
        answer = self._sim.transmit(apdu)
        return answer[:-2], int.from_bytes(answer[-2:])
