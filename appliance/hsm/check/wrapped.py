"""What a wrapped private key turns out to be, for whoever knows the wrapping key and the public key."""

from collections.abc import Iterator
from dataclasses import dataclass

from asn1crypto.core import Sequence
from asn1crypto.keys import ECPrivateKey, PrivateKeyInfo
from asn1crypto.parser import peek
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap,
    aes_key_unwrap_with_padding,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

_BLOCK = 16
_MOST_PADDING = 7


@dataclass(frozen=True)
class Wrapped:
    """A private key that came out of its wrapping.

    Args:
        algorithm: that undid it.
        encoding: of the key.
        padding: what stands behind its DER.
        public_inside: whether an EC key's public key stands in the DER too; None for RSA.
    """

    algorithm: str
    encoding: str
    padding: bytes
    public_inside: bool | None

    @property
    def serves_suite_01(self) -> bool:
        """Whether a SIM opens it (sim-package.md, "Opening")."""
        zeros = len(self.padding) <= _MOST_PADDING and not any(self.padding)
        return (self.algorithm, self.encoding) == ("RFC 5649", "PKCS#8") and zeros

    def __str__(self) -> str:
        behind = self.padding.hex().upper() if any(self.padding) else f"{len(self.padding)} zero bytes"
        inside = {None: "", True: ", public key inside", False: ", public key not inside"}[self.public_inside]
        return f"{self.algorithm} over {self.encoding}, {behind} behind it{inside}"


def recognise(key: bytes, wrapped: bytes, spki: bytes) -> Wrapped | None:
    """The private key of this public key (SubjectPublicKeyInfo, DER) under this AES key, however it was wrapped."""
    for algorithm, payload in undone(key, wrapped):
        try:
            length = peek(payload)
            public = load_der_private_key(payload[:length], password=None).public_key()
        except (UnsupportedAlgorithm, ValueError, TypeError):
            continue
        if public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki:
            encoding, public_inside = _encoding(payload[:length])
            return Wrapped(algorithm, encoding, payload[length:], public_inside)
    return None


def undone(key: bytes, wrapped: bytes) -> Iterator[tuple[str, bytes]]:
    """What comes out under this AES key by each algorithm that could be meant, named; most of it is noise."""
    for algorithm, undo in (("RFC 5649", aes_key_unwrap_with_padding), ("RFC 3394", aes_key_unwrap)):
        try:
            yield algorithm, undo(key, wrapped)
        except (InvalidUnwrap, ValueError):
            continue
    if len(wrapped) % _BLOCK == 0:
        ecb = modes.ECB()  # noqa: S305 - to be recognised
        for algorithm, mode in (("AES-CBC", modes.CBC(bytes(_BLOCK))), ("AES-ECB", ecb)):
            yield algorithm, Cipher(algorithms.AES(key), mode).decryptor().update(wrapped)
    yield "AES-CTR", Cipher(algorithms.AES(key), modes.CTR(bytes(_BLOCK))).decryptor().update(wrapped)


def _encoding(der: bytes) -> tuple[str, bool | None]:
    """Name of the structure, and whether an EC public key stands in it."""
    version_and_more = Sequence.load(der)
    if isinstance(version_and_more[1].native, int):  # RSAPrivateKey: version, modulus, …
        return "RSAPrivateKey", None
    if isinstance(version_and_more[1].native, bytes):  # ECPrivateKey: version, key, …
        return "ECPrivateKey", ECPrivateKey.load(der)["public_key"].native is not None
    info = PrivateKeyInfo.load(der)
    inside = info["private_key"].parsed
    return "PKCS#8", None if info.algorithm == "rsa" else inside["public_key"].native is not None
