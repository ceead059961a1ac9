"""A whole front for tests: throwaway TLS identities, settings, and the real server in this process."""

import asyncio
import datetime
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.api.v1.issuance_pb2 import KEY_TYPE_EC_P256, CardCertificate, IssueRequest
from appliance.client import connect
from appliance.config import (
    Client,
    Environment,
    FrontSettings,
    ModuleSettings,
    Role,
    Settings,
    Tls,
    VaultSettings,
)
from appliance.domain.keyset import Channel, KeySet, KeySetState, MasterKey, SimIssuer
from appliance.domain.profile import CertificateProfile
from appliance.ledger.store import utc_now
from appliance.server.main import serve

from .fake_vault import SSD_AID

WAIT = 20.0
"""Seconds that a test waits for what must come; the machine may be busy."""
APPLET_AID = "D392F000260100000001"
ACTIVATION_CODE = "37KKHDJHPFJE"
ISSUER, TSM_A, TSM_B, OPERATOR, AUDITOR = (
    f"urn:appliance:role:{name}" for name in ("issuer:j-lis", "tsm:a", "tsm:b", "operator:desk", "auditor:x")
)
CLIENTS = {
    ISSUER: Client(Role.ISSUER),
    TSM_A: Client(Role.TSM, ("mno-a",)),
    TSM_B: Client(Role.TSM, ("mno-b",)),
    OPERATOR: Client(Role.OPERATOR),
    AUDITOR: Client(Role.AUDITOR),
}
_IDENTITIES: dict[str, Iterable[str]] = {
    "issuer": [ISSUER],
    "tsm-a": [TSM_A],
    "tsm-b": [TSM_B],
    "operator": [OPERATOR],
    "auditor": [AUDITOR],
    "two-uris": [ISSUER, OPERATOR],
    "no-uri": [],
    "unknown": ["urn:appliance:role:issuer:stranger"],
}


def make_identities(directory: Path) -> None:
    """A CA, a server and one client for each of `_IDENTITIES`, and a client `foreign` of another CA."""
    ca, foreign = Authority("ca"), Authority("foreign ca")
    (directory / "ca.pem").write_bytes(ca.certificate.public_bytes(Encoding.PEM))
    ca.issue(directory, "server", [x509.DNSName("localhost")])
    ca.issue(directory, "issuing-ca", [], days=3650)
    for name, uris in _IDENTITIES.items():
        ca.issue(directory, name, [x509.UniformResourceIdentifier(uri) for uri in uris])
    foreign.issue(directory, "foreign", [x509.UniformResourceIdentifier(ISSUER)])


class Authority:
    """A CA whose key is forgotten with the object."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.certificate = self._sign(self._name, self._key.public_key(), x509.BasicConstraints(True, 0))

    def issue(self, directory: Path, name: str, names: list[x509.GeneralName], days: int = 1) -> None:
        """Writes NAME.pem, valid for so many days from an hour ago, and NAME.key."""
        key = ec.generate_private_key(ec.SECP256R1())
        extension = x509.SubjectAlternativeName(names or [x509.DNSName("nobody")])
        certificate = self._sign(_name(name), key.public_key(), extension, days)
        (directory / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        (directory / f"{name}.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType, days: int = 1
    ) -> x509.Certificate:
        start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
        return (
            x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days=days))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(self._key, hashes.SHA256())
        )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def sim_issuer(name: str, first_key: int, *, i: str = "70", security_level: str = "03") -> SimIssuer:
    """An issuer with an ACTIVE key set 30 and a PREPARED key set 31."""
    key_sets = (
        KeySet(0x30, KeySetState.ACTIVE, *_masters(name, first_key), Channel(0x01, 128, i, security_level)),
        KeySet(0x31, KeySetState.PREPARED, *_masters(name, first_key + 2), Channel(0x02)),
    )
    return SimIssuer(name, APPLET_AID, SSD_AID.hex(), key_sets)


def _masters(name: str, number: int) -> tuple[MasterKey, MasterKey]:
    bind, chan = (MasterKey(f"{name}-{n}", f"{n:06X}", "000000") for n in (number, number + 1))
    return bind, chan


def settings(directory: Path, tls: Path, sockets: Path) -> Settings:
    """Settings of a front in this directory, on a free port."""
    (directory / "content.key").write_bytes(bytes(range(32)))
    profile = CertificateProfile(
        name="test",
        policy_oid="1.2.3",
        key_types=("RSA_2048", "EC_P256", "EC_P384"),
        common_name_pattern="[0-9A-Z]{8,32}",
        validity_max_days=1830,
        crl_url="",
        ocsp_url="",
        ca_issuers_url="",
        ca_label="CA",
        ca_certificate=tls / "issuing-ca.pem",
    )
    return Settings(
        environment=Environment.DEMO,
        module=ModuleSettings(Path("/none"), "DEMO", "1"),
        vault=VaultSettings(sockets),
        front=FrontSettings(
            content_key_file=directory / "content.key",
            profile="test",
            tls=Tls(tls / "server.pem", tls / "server.key", tls / "ca.pem"),
            clients=CLIENTS,
            listen="localhost:0",
            ledger=f"sqlite:///{directory / 'ledger.db'}",
            drain_seconds=WAIT,
        ),
        sim_issuers={"mno-a": sim_issuer("mno-a", 1), "mno-b": sim_issuer("mno-b", 11, i="71", security_level="33")},
        profiles={"test": profile},
    )


@dataclass
class Front:
    """A front that serves."""

    port: int
    settings: Settings
    tls: Path
    stop: asyncio.Event
    serving: asyncio.Task[None]

    def channel(self, identity: str) -> grpc.aio.Channel:
        """A channel of this client; use it as a context."""
        return connect(
            f"localhost:{self.port}", *(self.tls / f for f in ("ca.pem", f"{identity}.pem", f"{identity}.key"))
        )


@asynccontextmanager
async def serving(declared: Settings, clock: Callable[[], datetime.datetime] = utc_now) -> AsyncIterator[Front]:
    """The front of these settings, from its first accepted call to its last."""
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(declared, stop, clock=clock, started=port.set_result))
    await asyncio.wait([task, port], timeout=WAIT, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        yield Front(port.result(), declared, declared.front.tls.client_ca.parent, stop, task)
    finally:
        stop.set()
        await asyncio.wait_for(task, WAIT)


def request(person: str = "person-1", **changes: Any) -> IssueRequest:
    """A request that breaks no rule, with these changes."""
    made = IssueRequest(
        request_id=str(uuid.uuid4()),
        person_id=person,
        subject_common_name="0000000001ABCDEFGHIJ000000000A1A",
        card_certificate=CardCertificate(issuer="C=JP,O=JPKI", serial=b"\x12\x34"),
        sim_issuer="simIssuers/mno-a",
        iccid="8981309114170753644",
        key_type=KEY_TYPE_EC_P256,
        activation_code=ACTIVATION_CODE,
    )
    now = datetime.datetime.now(datetime.UTC)
    made.not_after.FromDatetime(now + datetime.timedelta(days=1000))
    made.card_certificate.not_after.FromDatetime(now + datetime.timedelta(days=1500))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def with_front(declared: Settings, **changes: Any) -> Settings:
    """The settings with another front."""
    return replace(declared, front=replace(declared.front, **changes))


async def until_ready(front: Front, *, ready: bool = True) -> None:
    """Returns when the health of IssuanceService is so."""
    wanted = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
    async with asyncio.timeout(WAIT), front.channel("auditor") as channel:
        watched = health_pb2.HealthCheckRequest(service="appliance.api.v1.IssuanceService")
        async for health in health_pb2_grpc.HealthStub(channel).Watch(watched):
            if health.status == wanted:
                return
