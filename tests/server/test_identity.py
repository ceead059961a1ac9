"""Rotation of certificates: over real TLS against a running front, and the rules of what is served."""

import asyncio
import datetime
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs
from structlog.typing import EventDict

from appliance.client import OperatorClient, connect
from appliance.config import Settings, Tls
from appliance.domain.setting import SettingError
from appliance.server import identity
from appliance.server.identity import Identity

from .site import OPERATOR, WAIT, Authority, Front, serving

SERVER: list[x509.GeneralName] = [x509.DNSName("localhost")]
NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "LOOK_SECONDS", 0.02)


def serial(pem: Path) -> int:
    return x509.load_pem_x509_certificate(pem.read_bytes()).serial_number


async def shown(front: Front) -> int:
    """Serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("localhost", front.port, ssl=context)
    try:
        der = writer.get_extra_info("ssl_object").getpeercert(True)
        return x509.load_der_x509_certificate(der).serial_number
    finally:
        writer.transport.abort()


async def is_served(channel: grpc.aio.Channel) -> bool:
    try:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return False
    return True


async def until_shown(front: Front, wanted: int) -> None:
    async with asyncio.timeout(WAIT):
        while await shown(front) != wanted:
            await asyncio.sleep(0.02)


async def test_new_connections_see_the_new_certificate_and_old_ones_go_on(own_tls: Settings) -> None:
    tls = own_tls.front.tls
    before = serial(tls.certificate)
    authority = Authority("another ca")
    async with serving(own_tls) as front, front.channel("operator") as channel:
        assert await shown(front) == before
        ended = (await OperatorClient(channel).status()).certificate_end_time.ToDatetime(datetime.UTC)
        authority.issue(tls.certificate.parent, "server", SERVER, days=90)
        await until_shown(front, serial(tls.certificate))
        assert serial(tls.certificate) != before
        status = await OperatorClient(channel).status()  # the connection of before
        now_ends = status.certificate_end_time.ToDatetime(datetime.UTC)
    assert now_ends - ended > datetime.timedelta(days=80)


async def test_clients_of_a_new_ca_alone_can_connect_after_its_rotation_and_old_connections_go_on(
    own_tls: Settings, tmp_path: Path
) -> None:
    tls = own_tls.front.tls
    trusted = tmp_path / "server-ca.pem"
    shutil.copy(tls.client_ca, trusted)
    authority = Authority("another ca")
    authority.issue(tmp_path, "renewed", [x509.UniformResourceIdentifier(OPERATOR)])
    files = {"old": tls.client_ca.parent / "operator", "new": tmp_path / "renewed"}

    def channel(name: str) -> grpc.aio.Channel:
        stem = files[name]
        return connect(f"localhost:{front.port}", trusted, stem.with_suffix(".pem"), stem.with_suffix(".key"))

    async with serving(own_tls) as front, channel("old") as living:
        assert await is_served(living)
        async with channel("new") as early:
            assert not await is_served(early)
        with capture_logs() as lines:
            tls.client_ca.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
            async with asyncio.timeout(WAIT):
                while not lines:
                    await asyncio.sleep(0.02)
        assert [line["event"] for line in lines] == ["certificates rotated"]
        async with channel("new") as client:
            assert await is_served(client)
        async with channel("old") as late:
            assert not await is_served(late)
        assert await is_served(living)


async def test_a_set_that_cannot_be_used_is_told_and_the_one_before_goes_on(own_tls: Settings) -> None:
    tls = own_tls.front.tls
    before = serial(tls.certificate)
    async with serving(own_tls) as front:
        with capture_logs() as lines:
            Authority("another ca").issue(tls.certificate.parent, "other", SERVER)
            shutil.copy(tls.certificate.parent / "other.pem", tls.certificate)
            async with asyncio.timeout(WAIT):
                while not lines:
                    await asyncio.sleep(0.02)
            assert [(line["event"], line["log_level"], line["field"]) for line in lines] == [
                ("certificates not rotated", "error", "appliance.toml: front.tls.key")
            ]
            assert await shown(front) == before
            async with front.channel("operator") as channel:
                assert await is_served(channel)
            shutil.copy(tls.certificate.parent / "other.key", tls.key)
            await until_shown(front, serial(tls.certificate))


class Files:
    """A set in a directory, and an Identity that looks at it when it is told to."""

    def __init__(self, directory: Path) -> None:
        self.tls = Tls(*(directory / name for name in ("server.pem", "server.key", "ca.pem")))
        self.directory = directory
        self.now = NOW
        self.renew(Authority("ca"))
        self.identity = Identity(self.tls, lambda: self.now)

    def renew(self, authority: Authority, days: int = 90) -> None:
        authority.issue(self.directory, "server", SERVER, days=days)
        self.tls.client_ca.write_bytes(authority.certificate.public_bytes(Encoding.PEM))

    def look(self, times: int = 2) -> list[str]:
        """The events that were logged."""
        return [line["event"] for line in self.lines(times)]

    def lines(self, times: int = 2) -> list[EventDict]:
        """What was logged."""
        with capture_logs() as lines:
            for _ in range(times):
                self.identity.look()
        return list(lines)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_files_that_stand_still_are_not_read_again(files: Files) -> None:
    assert files.look(5) == []


def test_a_set_is_read_once_all_of_it_stands_still(files: Files) -> None:
    key = files.tls.key.read_bytes()
    assert files.look(1) == []
    Authority("another").issue(files.directory, "server", SERVER, days=60)
    renewed = files.tls.key.read_bytes()
    files.tls.key.write_bytes(key)  # its certificate comes first
    assert files.look(1) == [], "the key may be on its way"
    files.tls.key.write_bytes(renewed)
    assert files.look(1) == []
    assert files.look(1) == ["certificates rotated"]
    assert files.identity.not_after - NOW < datetime.timedelta(days=61)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def encrypt(path: Path) -> None:
    key = load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase")))


def edwards(path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def of_an_unknown_kind(path: Path) -> None:
    """Another object identifier in place of id-ecPublicKey (RFC 5480, 2.1.1)."""
    der = ssl.PEM_cert_to_DER_cert(path.read_text())
    known = bytes.fromhex("2a8648ce3d0201")
    assert der.count(known) == 1
    path.write_text(ssl.DER_cert_to_PEM_cert(der.replace(known, known[:-1] + b"\x7f")))


def another(files: Files) -> None:
    Authority("another").issue(files.directory, "another", SERVER)
    shutil.copy(files.directory / "another.key", files.tls.key)


def later(files: Files, days: int) -> None:
    """A new set of which the CA ends after a day and the certificate after so many, on a day between or after."""
    files.renew(Authority("another"), days=days)
    files.now = NOW + datetime.timedelta(days=5)


SPOILT: dict[str, tuple[Callable[[Files], object], str, str]] = {
    "half a certificate": (lambda f: half(f.tls.certificate), "certificate", "no certificates in PEM"),
    "an empty certificate": (lambda f: f.tls.certificate.write_bytes(b""), "certificate", "no certificates in PEM"),
    "no certificate": (lambda f: f.tls.certificate.unlink(), "certificate", "cannot be read"),
    "a certificate that has ended": (lambda f: later(f, 2), "certificate", "is not valid now"),
    "a key of an unknown kind": (lambda f: of_an_unknown_kind(f.tls.certificate), "certificate", "cannot be used"),
    "half a key": (lambda f: half(f.tls.key), "key", "no private key"),
    "no key": (lambda f: f.tls.key.unlink(), "key", "cannot be read"),
    "an encrypted key": (lambda f: encrypt(f.tls.key), "key", "without a passphrase"),
    "a key that TLS does not use": (lambda f: edwards(f.tls.key), "key", "neither an RSA nor an EC key"),
    "another certificate's key": (another, "key", "is not the key of the first certificate"),
    "half a CA": (lambda f: half(f.tls.client_ca), "client_ca", "no certificates in PEM"),
    "no CA": (lambda f: f.tls.client_ca.unlink(), "client_ca", "cannot be read"),
    "a CA that has ended": (lambda f: later(f, 90), "client_ca", "valid now"),
}


@pytest.mark.parametrize(("spoil", "field", "detail"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_set_is_refused_at_the_start_and_told_once_later(
    files: Files, spoil: Callable[[Files], object], field: str, detail: str
) -> None:
    ends = files.identity.not_after
    spoil(files)
    with pytest.raises(SettingError) as caught:
        Identity(files.tls, lambda: files.now)
    assert caught.value.field == f"appliance.toml: front.tls.{field}"
    assert detail in caught.value.detail
    (line,) = files.lines(5)
    assert (line["event"], line["field"]) == ("certificates not rotated", f"appliance.toml: front.tls.{field}")
    assert line["hint"] and detail in line["detail"]
    assert files.identity.not_after == ends
    files.now = NOW
    files.renew(Authority("mended"), days=60)
    assert files.look() == ["certificates rotated"]


def test_links_are_followed_so_that_a_whole_directory_can_be_switched(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Files(tmp_path / name)
    (tmp_path / "now").symlink_to("one")
    files = Tls(*(tmp_path / name for name in ("server.pem", "server.key", "ca.pem")))
    for path in (files.certificate, files.key, files.client_ca):
        path.symlink_to(f"now/{path.name}")
    identity = Identity(files, lambda: NOW)
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "now")
    with capture_logs() as lines:
        identity.look()
        identity.look()
    assert [int(line["serial"], 16) for line in lines] == [serial(tmp_path / "two" / "server.pem")]


def test_the_end_of_the_certificate_is_warned_of_once_a_day_until_it_is_rotated(files: Files) -> None:
    files.now = files.identity.not_after - datetime.timedelta(days=14, seconds=1)
    assert files.look(3) == []
    files.now += datetime.timedelta(seconds=2)
    (line,) = files.lines(3)
    assert (line["event"], line["log_level"]) == ("certificate ends soon", "warning")
    assert line["ends"] == files.identity.not_after.isoformat()
    files.now += datetime.timedelta(days=1)
    assert files.look(3) == ["certificate ends soon"]
    files.now = NOW
    files.renew(Authority("renewed"), days=365)
    files.look()
    files.now = NOW + datetime.timedelta(days=300)
    assert files.look(3) == []


def test_a_short_certificate_is_warned_of_in_the_last_third_of_its_time(files: Files) -> None:
    files.renew(Authority("short"), days=3)
    files.look()
    files.now = files.identity.not_after - datetime.timedelta(hours=25)
    assert files.look() == []
    files.now += datetime.timedelta(hours=2)
    assert files.look() == ["certificate ends soon"]
