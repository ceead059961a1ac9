"""The front's TLS identity: certificates are rotated by replacing their files, without a restart.

The set (certificate chain, its key, the CA of the clients) is looked at all the time. A new one serves only if all of
it can be used together; until then the one before it goes on, and the log says why. Connections stay as they are: each
new handshake has the newest set.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from appliance import logs
from appliance.config import Tls
from appliance.domain.setting import SettingError

LOOK_SECONDS: Final = 1.0
"""How often the files are looked at. A change is read at the second look that sees it: the files of one set are
replaced one after the other."""
WARNING: Final = timedelta(days=14)
"""How long before its end a certificate is warned of; at most the last third of its time."""
REMINDER: Final = timedelta(days=1)


@dataclass(frozen=True)
class _Set:
    """What one handshake uses, and the certificate that it shows."""

    configuration: grpc.ServerCertificateConfiguration
    certificate: x509.Certificate


class Identity:
    """The set that serves.

    Args:
        files: of the settings.
        clock: aware times.

    Raises:
        SettingError: what the files hold at first cannot be used.
    """

    def __init__(self, files: Tls, clock: Callable[[], datetime]) -> None:
        self._files = files
        self._clock = clock
        self._seen = self._tried = _stamp(files)
        self._serving = self._handed = _load(files, clock())
        self._remind_at = clock()

    @property
    def not_after(self) -> datetime:
        """When the certificate that serves ends."""
        return self._serving.certificate.not_valid_after_utc

    def credentials(self) -> grpc.ServerCredentials:
        """For the one port of the front; every client shows a certificate."""
        changed: Any = self._changed  # grpc's types forbid the None that its description permits
        return grpc.dynamic_ssl_server_credentials(self._handed.configuration, changed, True)

    async def follow(self) -> None:
        """Runs until it is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Serves a new set once its files have stood still, and warns of the end of the one that serves."""
        stamp = _stamp(self._files)
        if self._seen == stamp != self._tried:
            self._tried = stamp
            self._rotate()
        self._seen = stamp
        self._remind()

    def _rotate(self) -> None:
        try:
            self._serving = _load(self._files, self._clock())
        except SettingError as error:
            told = {"field": error.field, "detail": error.detail, "hint": error.hint}
            logs.get().error("certificates not rotated", **told, ends=self.not_after.isoformat())
            return
        self._remind_at = self._clock()
        serial = f"{self._serving.certificate.serial_number:x}"
        logs.get().info("certificates rotated", serial=serial, ends=self.not_after.isoformat())

    def _remind(self) -> None:
        now, certificate = self._clock(), self._serving.certificate
        lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        if now >= self._remind_at and self.not_after - now < min(WARNING, lifetime / 3):
            self._remind_at = now + REMINDER
            logs.get().warning("certificate ends soon", field=_field("certificate"), ends=self.not_after.isoformat())

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC asks before each handshake, in a thread of its own: the set to use from now on, or None."""
        serving = self._serving
        if serving is self._handed:
            return None
        self._handed = serving
        return serving.configuration


def _stamp(files: Tls) -> Sequence[object]:
    """Differs where a file was replaced, written or removed; symbolic links are followed."""

    def one(path: Path) -> object:
        try:
            status = path.stat()
        except OSError as error:
            return error.errno
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size

    return [one(path) for path in (files.certificate, files.key, files.client_ca)]


def _load(files: Tls, now: datetime) -> _Set:
    chain_pem, key_pem = _bytes(files.certificate, "certificate"), _bytes(files.key, "key")
    client_ca_pem = _bytes(files.client_ca, "client_ca")
    certificate, *_ = _certificates(chain_pem, files.certificate, "certificate")
    if not _is_valid(certificate, now):
        period = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
        raise _unusable("certificate", f"{files.certificate} is not valid now, but from {period}.")
    try:
        public_key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise _unusable("certificate", f"{files.certificate} is for a key that cannot be used.") from None
    try:
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        raise _unusable("key", f"{files.key} is no private key in PEM without a passphrase.") from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise _unusable("key", f"{files.key} is neither an RSA nor an EC key.")
    if key.public_key() != public_key:
        raise _unusable("key", f"{files.key} is not the key of the first certificate in {files.certificate}.")
    if not any(_is_valid(ca, now) for ca in _certificates(client_ca_pem, files.client_ca, "client_ca")):
        raise _unusable("client_ca", f"No certificate in {files.client_ca} is valid now.")
    configuration = grpc.ssl_server_certificate_configuration([(key_pem, chain_pem)], root_certificates=client_ca_pem)
    return _Set(configuration, certificate)


def _bytes(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(name, f"{path} cannot be read: {error.strerror}.") from None


def _certificates(pem: bytes, path: Path, name: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise _unusable(name, f"{path} holds no certificates in PEM.") from None


def _is_valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _field(name: str) -> str:
    return f"appliance.toml: front.tls.{name}"


def _unusable(name: str, detail: str) -> SettingError:
    return SettingError(_field(name), detail, "Correct the file, or name another one.")
