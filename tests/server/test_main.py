"""The front as a whole: start, readiness, stop, and as a process with its log."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.api.v1 import issuance_pb2
from appliance.client import IssuerClient, TsmClient, connect
from appliance.config import Settings
from appliance.domain.package import SimPackage
from appliance.errors import ApplianceError, Reason
from appliance.issuing.vaults import Vaults
from appliance.ledger import Ledger
from appliance.server.calls import Calls
from appliance.server.health import FOLLOWING
from appliance.server.main import serve
from appliance.server.readiness import Readiness

from .fake_vault import K_ENC, FakeVault
from .site import ACTIVATION_CODE, CLIENTS, ISSUER, TSM_A, WAIT, Front, request, serving, until_ready, with_front
from .test_delivery_service import fetch
from .test_issuance_service import Issuer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(channel: grpc.aio.Channel, service: str) -> int:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def test_readiness_follows_the_vaults_and_liveness_does_not(settings: Settings, sockets: Path) -> None:
    async with serving(settings) as front, front.channel("operator") as channel:
        for service in FOLLOWING:
            assert await health(channel, service) == NOT_SERVING
        async with FakeVault(sockets):
            await until_ready(front)
            for service in FOLLOWING:
                assert await health(channel, service) == SERVING
        await until_ready(front, ready=False)
        async with FakeVault(sockets, "v0-2"):
            await until_ready(front)
        for service in ("", "appliance.api.v1.OperationsService"):
            assert await health(channel, service) == SERVING


async def test_readiness_follows_the_ledger(settings: Settings, sockets: Path) -> None:
    ledger = Ledger.open(settings.front.ledger)
    async with FakeVault(sockets), Vaults(sockets) as vaults:
        await vaults.wait_ready(WAIT)
        readiness = Readiness(vaults, ledger, Calls({}, max_concurrent=1))
        following = asyncio.create_task(readiness.follow())
        async with asyncio.timeout(WAIT):
            while not readiness.ready:
                await asyncio.sleep(0.01)
            ledger.close()
            while readiness.ready:
                await asyncio.sleep(0.01)
        following.cancel()


async def test_a_stopping_front_refuses_new_calls_and_finishes_those_in_work(front: Front, vault: FakeVault) -> None:
    async with front.channel("issuer") as channel:
        issuer = Issuer(IssuerClient(channel), channel, vault)
        async with issuer.held(request("one")) as call:
            front.stop.set()
            await until_ready(front, ready=False)
            error = await issuer.refused(request("two"))
            assert (error.code, error.reason, error.retry_seconds) == ("UNAVAILABLE", "DRAINING", 1.0)
            assert not front.serving.done()
        assert call.result().state == issuance_pb2.ISSUANCE_STATE_READY
        await asyncio.wait_for(front.serving, WAIT)


async def test_a_stopping_front_finishes_an_issuance_whose_caller_has_left(front: Front, vault: FakeVault) -> None:
    wanted = request()
    async with front.channel("issuer") as channel:
        issuer = Issuer(IssuerClient(channel), channel, vault)
        async with issuer.held(wanted) as call:
            call.cancel()
            front.stop.set()
            with pytest.raises(grpc.aio.AioRpcError):
                while await health(channel, "") == SERVING:
                    await asyncio.sleep(0.01)
            assert not front.serving.done()
        await asyncio.wait_for(front.serving, WAIT)
    async with serving(front.settings) as again, again.channel("issuer") as channel:
        assert (await IssuerClient(channel).issue(wanted)).state == issuance_pb2.ISSUANCE_STATE_READY
    assert len(vault.items) == 1


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda s: s.front.content_key_file.write_bytes(bytes(31)), "front.content_key_file"),
        (lambda s: s.front.content_key_file.unlink(), "front.content_key_file"),
        (lambda s: s.front.tls.key.write_bytes(b"no key"), "front.tls.key"),
        (lambda s: s.front.tls.client_ca.unlink(), "front.tls.client_ca"),
    ],
)
async def test_what_the_settings_name_must_be_usable(
    own_tls: Settings, spoil: Callable[[Settings], object], field: str
) -> None:
    spoil(own_tls)
    with pytest.raises(ApplianceError) as caught:
        await serve(own_tls, asyncio.Event())
    assert (caught.value.reason, caught.value.field) == (Reason.SETTINGS_INVALID, f"appliance.toml: {field}")


async def test_a_port_that_is_taken_is_refused(settings: Settings) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = with_front(settings, listen=f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(ApplianceError, match="is taken"):
            await serve(taken, asyncio.Event())


async def test_a_ledger_that_was_not_migrated_is_refused(settings: Settings, tmp_path: Path) -> None:
    empty = with_front(settings, ledger=f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(ApplianceError) as caught:
        await serve(empty, asyncio.Event())
    assert caught.value.reason is Reason.LEDGER_SCHEMA_MISMATCH


def test_the_front_has_not_loaded_pkcs11() -> None:
    code = "import sys, appliance.server.main; print([name for name in sys.modules if 'pkcs11' in name])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


@dataclass
class Process:
    """`appliance serve` as a process of its own."""

    popen: asyncio.subprocess.Process
    log: Path
    port: int = 0

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    async def line(self, event: str) -> dict[str, object]:
        """The first line of the log that tells this event."""
        async with asyncio.timeout(WAIT):
            while True:
                for line in self.lines():
                    if line["event"] == event:
                        return line
                await asyncio.sleep(0.05)


@asynccontextmanager
async def process(config: Path, log: Path, *under: str) -> AsyncIterator[Process]:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    # A parent that waits for its children with sigwait has these blocked, and children inherit that.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with log.open("wb") as stderr:
            command = (*under, sys.executable, "-m", "appliance", "serve", "--config", str(config))
            popen = await asyncio.create_subprocess_exec(*command, env=environment, stderr=stderr)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        yield Process(popen, log)
    finally:
        if popen.returncode is None:
            popen.kill()
        await popen.wait()


def write_settings(settings: Settings, directory: Path) -> Path:
    """The settings as files."""
    front, tls = settings.front, settings.front.tls
    clients = "".join(
        f'[front.clients."{uri}"]\nrole = "{CLIENTS[uri].role}"\nsim_issuers = {list(CLIENTS[uri].sim_issuers)}\n'
        for uri in (ISSUER, TSM_A)
    )
    (directory / "appliance.toml").write_text(f"""
environment = "demo"
[module]
path = "/none"
token_label = "DEMO"
token_serial = "1"
[vault]
socket_directory = "{settings.vault.socket_directory}"
[front]
listen = "localhost:0"
ledger = "{front.ledger}"
content_key_file = "{front.content_key_file}"
profile = "test"
[front.tls]
certificate = "{tls.certificate}"
key = "{tls.key}"
client_ca = "{tls.client_ca}"
{clients}""")
    (directory / "sim_issuers").mkdir()
    (directory / "profiles").mkdir()
    issuer = settings.sim_issuers["mno-a"]
    key_set = issuer.key_sets[0]
    (directory / "sim_issuers" / "mno-a.toml").write_text(f"""
name = "mno-a"
applet_aid = "{issuer.applet_aid}"
ssd_aid = "{issuer.ssd_aid}"
[[key_sets]]
kvn = {key_set.kvn}
state = "ACTIVE"
bind = {{ label = "b", kcv = "000001", kdf_kcv = "000000" }}
chan = {{ label = "c", kcv = "000002", kdf_kcv = "000000" }}
channel = {{ kvn = 1 }}
""")
    profile = settings.profiles["test"]
    (directory / "profiles" / "test.toml").write_text(f"""
name = "test"
policy_oid = "1.2.3"
key_types = ["EC_P256"]
common_name_pattern = "{profile.common_name_pattern}"
validity_max_days = 1830
crl_url = ""
ocsp_url = ""
ca_issuers_url = ""
ca_label = "CA"
ca_certificate = "{profile.ca_certificate}"
""")
    return directory / "appliance.toml"


async def test_the_process_serves_stops_when_told_and_logs_json_without_secrets(
    settings: Settings, vault: FakeVault, tls: Path, tmp_path: Path
) -> None:
    wanted = request()
    async with process(write_settings(settings, tmp_path), tmp_path / "log") as front:
        await front.line("ready")
        target = f"localhost:{(await front.line('front serves'))['port']}"
        async with (
            connect(target, tls / "ca.pem", tls / "issuer.pem", tls / "issuer.key") as issuer,
            connect(target, tls / "ca.pem", tls / "tsm-a.pem", tls / "tsm-a.key") as tsm,
        ):
            issued = await IssuerClient(issuer).issue(wanted)
            await TsmClient(tsm).fetch_script(fetch(issued.name))
            name = issuance_pb2.GetIssuanceRequest(name=issued.name, view=issuance_pb2.ISSUANCE_VIEW_WITH_PACKAGE)
            package = SimPackage.decode((await IssuerClient(issuer).get_issuance(name)).package)
        front.popen.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(front.popen.wait(), WAIT) == 0
    lines = front.lines()
    assert [line["event"] for line in lines][-1] == "front stopped"
    assert all(line["service"] == "front" and line["level"] and line["timestamp"] for line in lines)
    assert {"Issue", "FetchScript", "GetIssuance"} <= {
        str(line["method"]).rpartition("/")[2]
        for line in lines
        if line["event"] == "call" and line["outcome"] == "OK" and line["request_id"]
    }
    (completed,) = [line for line in lines if line["event"] == "issuance ready"]
    assert (completed["request_id"], completed["issuance"]) == (wanted.request_id, issued.name)
    log = front.log.read_text().lower()
    for secret in (
        ACTIVATION_CODE,
        package.wrapped.hex(),
        K_ENC.hex(),
        settings.front.content_key_file.read_bytes().hex(),
    ):
        assert secret.lower() not in log
    for personal in (wanted.person_id, wanted.iccid, wanted.subject_common_name):
        assert personal.lower() not in log
    assert len(vault.items) == 1


async def test_the_process_leaves_no_core_and_opens_as_many_files_as_it_may(settings: Settings, tmp_path: Path) -> None:
    """`prlimit` replaces itself by the process, which starts with a low soft limit."""
    config = write_settings(settings, tmp_path)
    async with process(config, tmp_path / "log", "prlimit", "--nofile=256:", "--") as front:
        await front.line("front serves")
        directory = Path(f"/proc/{front.popen.pid}")
        lines = (directory / "limits").read_text("ascii").splitlines()
        assert (directory / "mem").stat().st_uid == 0  # PR_SET_DUMPABLE 0: proc(5)
    limits = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    assert limits["Max core file size"] == ["0", "0"]
    soft, hard = limits["Max open files"]
    assert soft == hard != "256"


async def test_a_handshake_that_fails_leaves_no_line_that_is_not_json(settings: Settings, tmp_path: Path) -> None:
    async with process(write_settings(settings, tmp_path), tmp_path / "log") as front:
        port = str((await front.line("front serves"))["port"])
        reader, writer = await asyncio.open_connection("localhost", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.wait_for(reader.read(), WAIT)  # until the front has closed the connection
        writer.close()
        front.popen.send_signal(signal.SIGTERM)
        await asyncio.wait_for(front.popen.wait(), WAIT)
    assert front.lines()[-1]["event"] == "front stopped"
