"""The front's composition root: everything that `appliance serve` is made of, its start and its stop.

The front has no PIN and no PKCS#11. It stops in an order that loses nothing: not ready, no new calls, calls in work
end, issuances under way end, and only then ledger and vault links close.
"""

import argparse
import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from appliance import config, logs
from appliance.api.v1 import delivery_pb2, issuance_pb2, operations_pb2
from appliance.api.v1.delivery_pb2_grpc import add_DeliveryServiceServicer_to_server
from appliance.api.v1.issuance_pb2_grpc import add_IssuanceServiceServicer_to_server
from appliance.api.v1.operations_pb2_grpc import add_OperationsServiceServicer_to_server
from appliance.config import Settings, load
from appliance.domain.certificate import last_second
from appliance.domain.profile import CaMode, CertificateProfile
from appliance.domain.setting import SettingError
from appliance.issuing.certification import Certification
from appliance.issuing.delivery import Delivery
from appliance.issuing.issue import Issuing
from appliance.issuing.lifecycle import Lifecycle
from appliance.issuing.vaults import Vaults
from appliance.ledger import Ledger
from appliance.ledger.store import utc_now
from appliance.server import messages
from appliance.server.access import REFLECTION
from appliance.server.calls import Calls
from appliance.server.delivery_service import DeliveryService
from appliance.server.health import serve_locally
from appliance.server.identity import Identity
from appliance.server.issuance_service import IssuanceService
from appliance.server.operations_service import OperationsService
from appliance.server.readiness import Readiness
from appliance.supervisor import harden

MIN_CONTENT_KEY: Final = 32
"""Bytes; as much as the digest that it keys."""
_SERVER_OPTIONS: Final = (
    # Two servers on one port would take turns silently.
    ("grpc.so_reuseport", 0),
    # Clients may keep idle channels alive with pings.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
)
SERVICES: Final = (
    issuance_pb2.DESCRIPTOR.services_by_name["IssuanceService"].full_name,
    delivery_pb2.DESCRIPTOR.services_by_name["DeliveryService"].full_name,
    operations_pb2.DESCRIPTOR.services_by_name["OperationsService"].full_name,
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    reflection.SERVICE_NAME,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the public API until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="appliance serve", description=main.__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the appliance's settings, appliance.toml")
    arguments = parser.parse_args(argv)
    harden()
    os.umask(0o077)
    # Each connection holds a descriptor, also an idle one.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    logs.configure("front")
    settings = load(arguments.config)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_until_signalled(settings))
    return 0


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    *,
    clock: Callable[[], datetime] = utc_now,
    started: Callable[[int], None] = lambda _: None,
) -> None:
    """Serves until `stop` is set, then drains.

    Args:
        settings: of the whole appliance.
        stop: set it to stop.
        clock: aware times.
        started: told the port when calls are accepted; a listen address with port 0 gets a free one.

    Raises:
        ApplianceError: SETTINGS_INVALID, LEDGER_SCHEMA_MISMATCH, LEDGER_UNAVAILABLE.
    """
    front = settings.front
    profile = settings.profiles[front.profile]
    content_key = _read_content_key(front.content_key_file)
    identity = Identity(front.tls, clock)
    async with contextlib.AsyncExitStack() as closing:
        ledger = Ledger.open(front.ledger, clock=clock)
        closing.callback(ledger.close)
        vaults = await closing.enter_async_context(Vaults(settings.vault.socket_directory))
        calls = Calls(front.clients, max_concurrent=front.max_concurrent)
        readiness = Readiness(vaults, ledger, calls)
        issuing = Issuing(
            ledger,
            vaults,
            issuers=settings.sim_issuers,
            profile=profile,
            content_key=content_key,
            clock=clock,
            answer=messages.issue_answer,
            ca_end=_ca_end(profile),
            certificate_wait=timedelta(days=front.certificate_wait_days),
        )
        certification = Certification(
            ledger, vaults, content_key=content_key, clock=clock, answer=messages.submit_answer
        )
        delivery = Delivery(
            ledger, vaults, issuers=settings.sim_issuers, content_key=content_key, answer=messages.receipt_answer
        )
        lifecycle = Lifecycle(ledger, content_key=content_key, abandoned=messages.abandon_answer)
        server = grpc.aio.server(interceptors=[calls], options=_SERVER_OPTIONS)
        add_IssuanceServiceServicer_to_server(IssuanceService(issuing, certification, lifecycle, ledger), server)
        add_DeliveryServiceServicer_to_server(DeliveryService(delivery), server)
        add_OperationsServiceServicer_to_server(
            OperationsService(vaults, ledger, calls, readiness, identity, settings.sim_issuers, clock()), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(readiness.health, server)
        _add_reflection(server)
        port = _listen(server, front.listen, identity)
        readiness.tell()
        await server.start()
        closing.push_async_callback(server.stop, 0)
        if front.health_socket:
            await closing.enter_async_context(serve_locally(readiness.health, front.health_socket))
        for following in (readiness.follow(), identity.follow(), certification.follow()):
            closing.callback(asyncio.create_task(following).cancel)
        logs.get().info("front serves", address=front.listen, port=port)
        started(port)

        await stop.wait()
        logs.get().info("front drains")
        calls.draining = True
        readiness.tell()
        await calls.drain(front.drain_seconds)
        await server.stop(grace=0)
        await issuing.drain(front.drain_seconds)
    logs.get().info("front stopped")


async def _serve_until_signalled(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Whoever started this process may have had them blocked, and that is inherited.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    await serve(settings, stop)


def _ca_end(profile: CertificateProfile) -> datetime | None:
    """The issuing CA's last second, which no certificate outlives; an external CA decides for itself."""
    return None if profile.ca_mode is CaMode.EXTERNAL else last_second(config.ca_certificate(profile))


def _read_content_key(path: Path) -> bytes:
    try:
        key = path.read_bytes()
    except OSError as error:
        raise _unusable("content_key_file", f"{path} cannot be read: {error.strerror}.") from None
    if len(key) < MIN_CONTENT_KEY:
        raise _unusable("content_key_file", f"{path.name} has {len(key)} bytes; {MIN_CONTENT_KEY} are needed.")
    return key


def _add_reflection(server: grpc.aio.Server) -> None:
    """In place of `enable_server_reflection`, which knows the old name alone."""
    info = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(SERVICES).ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": info}) for service in REFLECTION]
    )


def _listen(server: grpc.aio.Server, address: str, identity: Identity) -> int:
    try:
        return server.add_secure_port(address, identity.credentials())
    except RuntimeError:
        raise _unusable("listen", f"{address} is taken, or not an address of this machine.") from None


def _unusable(name: str, detail: str) -> SettingError:
    return SettingError(f"appliance.toml: front.{name}", detail, "Correct appliance.toml or what it names.")
