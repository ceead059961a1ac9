"""What holds for every call, whatever it does."""

import asyncio
import datetime
import uuid
from collections.abc import Sequence

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs
from structlog.typing import EventDict

from appliance.api.status import parse
from appliance.client import ApiError, IssuerClient
from appliance.config import Settings
from appliance.ledger.store import utc_now
from appliance.server import calls

from .fake_vault import FakeVault
from .site import ACTIVATION_CODE, ISSUER, WAIT, Front, request, serving, until_ready, with_front
from .test_access import REFLECTIONS, refusal
from .test_issuance_service import Issuer


class Clock:
    """The machine's clock until it breaks, as a defect somewhere inside would."""

    broken = False

    def __call__(self) -> datetime.datetime:
        if self.broken:
            raise ValueError(f"the clock was given {ACTIVATION_CODE}")
        return utc_now()


async def lines_of_calls(lines: Sequence[EventDict], count: int) -> list[EventDict]:
    """The lines of so many calls: the client may have its answer a moment before the server has logged it."""
    async with asyncio.timeout(10):
        while len(called := [line for line in lines if line["event"] == "call"]) < count:
            await asyncio.sleep(0.01)
    return called


async def test_a_defect_leaves_as_internal_with_the_request_id_alone(settings: Settings, vault: FakeVault) -> None:
    clock, wanted = Clock(), request()
    async with serving(settings, clock) as front, front.channel("issuer") as channel:
        await until_ready(front)
        clock.broken = True
        with pytest.raises(ApiError) as caught, capture_logs() as lines:
            try:
                await IssuerClient(channel).issue(wanted)
            finally:
                await lines_of_calls(lines, 1)
        clock.broken = False
    error = caught.value
    assert (error.code, error.reason) == ("INTERNAL", "INTERNAL")
    assert error.metadata == {"request_id": wanted.request_id}
    assert "clock" not in str(error)
    assert [line["event"] for line in lines if line["event"] in {"defect", "call"}] == ["defect", "call"]
    assert vault.items == []


async def test_every_call_leaves_one_line_with_client_method_and_outcome(front: Front, vault: FakeVault) -> None:
    async with front.channel("issuer") as channel:
        issuer = Issuer(IssuerClient(channel), channel, vault)
        with capture_logs() as lines:
            await issuer.client.issue(request())
            await issuer.refused(request(iccid="1"))
            called = await lines_of_calls(lines, 2)
    assert [(line["client"], line["method"].rpartition("/")[2], line["outcome"]) for line in called] == [
        (ISSUER, "Issue", "OK"),
        (ISSUER, "Issue", "ICCID_INVALID"),
    ]
    assert called[1]["field"] == "iccid"
    assert "detail" not in called[1]


async def test_more_calls_than_the_settings_permit_are_refused(settings: Settings, vault: FakeVault) -> None:
    async with serving(with_front(settings, max_concurrent=1)) as front, front.channel("issuer") as channel:
        await until_ready(front)
        issuer = Issuer(IssuerClient(channel), channel, vault)
        async with issuer.held(request("one")):
            error = await issuer.refused(request("two"))
            assert (error.code, error.reason, error.retry_seconds) == ("RESOURCE_EXHAUSTED", "NODE_BUSY", 1.0)
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        await issuer.client.issue(request(str(uuid.uuid4())))


async def test_more_streams_than_the_node_serves_are_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MAX_STREAMS", 2)
    async with serving(settings) as front, front.channel("operator") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        for watch in watches:
            await watch.read()
        for method in ("/grpc.health.v1.Health/Watch", *REFLECTIONS):
            error = await refusal(channel, method)
            assert (error.code, error.reason, error.retry_seconds) == ("RESOURCE_EXHAUSTED", "NODE_BUSY", 1.0)
        await health.Check(health_pb2.HealthCheckRequest())
        watches[0].cancel()
        async with asyncio.timeout(WAIT):
            while not await accepted(health):
                await asyncio.sleep(0.01)


async def accepted(health: health_pb2_grpc.HealthStub) -> bool:
    """Whether one more Watch gets its first answer."""
    try:
        await health.Watch(health_pb2.HealthCheckRequest()).read()
    except grpc.aio.AioRpcError as error:
        assert parse(error).reason == "NODE_BUSY"
        return False
    return True
