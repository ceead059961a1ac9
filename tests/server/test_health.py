"""Health as grpc.health.v1 says, to clients that read and in spite of one that does not."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.server.health import FOLLOWING, Health

from .fake_vault import FakeVault
from .site import WAIT, Front, until_ready

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
DATA, HEADERS, SETTINGS = 0x0, 0x1, 0x4
END_STREAM, END_HEADERS = 0x1, 0x4
INITIAL_WINDOW_SIZE = 0x4


def of(service: str) -> Any:
    return health_pb2.HealthCheckRequest(service=service)


async def told(watch: Any) -> int:
    """The next status of this Watch."""
    return int((await asyncio.wait_for(watch.read(), WAIT)).status)


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
async def stub(health: Health, sockets: Path) -> AsyncIterator[Any]:
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.add_insecure_port(f"unix:{sockets}/health.sock")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{sockets}/health.sock") as channel:
        yield health_pb2_grpc.HealthStub(channel)
    await server.stop(grace=None)


async def test_check_tells_what_was_set_last_and_knows_no_other_service(health: Health, stub: Any) -> None:
    assert (await stub.Check(of(""))).status == SERVING
    for status in (SERVING, NOT_SERVING):
        health.set("a", status)
        assert (await stub.Check(of("a"))).status == status
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(of("b"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watch_tells_the_status_at_once_then_each_change_and_none_twice(health: Health, stub: Any) -> None:
    health.set("a", SERVING)
    watch, other = stub.Watch(of("a")), stub.Watch(of("b"))
    assert await told(watch) == SERVING
    assert await told(other) == SERVICE_UNKNOWN
    health.set("a", SERVING)
    health.set("b", SERVING)
    # A service that becomes known is a change; when this one has been told of it, the first was awake too.
    assert await told(other) == SERVING
    health.set("a", NOT_SERVING)
    assert await told(watch) == NOT_SERVING


async def test_a_change_while_a_watch_writes_is_told_after_it(health: Health) -> None:
    watch = health.Watch(of(""), None)
    assert (await anext(watch)).status == SERVING  # it writes until it is asked again
    health.set("", NOT_SERVING)
    assert (await asyncio.wait_for(anext(watch), WAIT)).status == NOT_SERVING


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, section 4.1."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field without indexing: RFC 7541, section 6.2.2."""
    return b"\x00" + b"".join(bytes([len(text)]) + text.encode("ascii") for text in (name, value))


WATCH = b"".join(
    literal(name, value)
    for name, value in (
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/grpc.health.v1.Health/Watch"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
)


@asynccontextmanager
async def watching_without_a_window(front: Front, service: str) -> AsyncIterator[None]:
    """A Watch whose client takes no byte of data. Its headers have come, so the front is in its first write."""
    context = ssl.create_default_context(cafile=front.tls / "ca.pem")
    context.load_cert_chain(front.tls / "auditor.pem", front.tls / "auditor.key")
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("localhost", front.port, ssl=context)
    message = of(service).SerializeToString()
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    writer.write(frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0)))
    writer.write(frame(HEADERS, END_HEADERS, 1, WATCH))
    writer.write(frame(DATA, END_STREAM, 1, struct.pack(">BI", 0, len(message)) + message))
    async with asyncio.timeout(WAIT):
        kind = SETTINGS
        while kind != HEADERS:
            head = await reader.readexactly(9)
            kind = head[3]
            assert kind != DATA
            await reader.readexactly(int.from_bytes(head[:3], "big"))
    try:
        yield
    finally:
        writer.close()


async def test_a_client_that_does_not_read_holds_up_neither_readiness_nor_check_nor_the_stop(
    front: Front, vault: FakeVault, sockets: Path
) -> None:
    async with watching_without_a_window(front, FOLLOWING[0]), front.channel("operator") as channel:
        await vault.die()
        await until_ready(front, ready=False)
        async with FakeVault(sockets, "v0-2"):
            await until_ready(front)
            for service in FOLLOWING:
                answer = await health_pb2_grpc.HealthStub(channel).Check(of(service), timeout=WAIT)
                assert answer.status == SERVING
            front.stop.set()
            await asyncio.wait_for(front.serving, WAIT)
