"""The client as its users have it: against a real front over mutual TLS."""

import asyncio
from pathlib import Path

import pytest

from appliance.api.v1 import issuance_pb2
from appliance.client import ApiError, IssuerClient, connect
from appliance.config import Settings
from tests.server.fake_vault import FakeVault
from tests.server.site import WAIT, request, serving


async def test_a_refusal_says_what_where_and_what_to_do(settings: Settings) -> None:
    async with serving(settings) as front, front.channel("issuer") as channel:
        with pytest.raises(ApiError) as caught:
            await IssuerClient(channel, retry_seconds=WAIT).issue(request(iccid="8981309114170753645"))
    error = caught.value
    assert (error.code, error.reason, error.field) == ("INVALID_ARGUMENT", "ICCID_INVALID", "iccid")
    assert "check digit" in error.detail
    assert error.hint
    assert error.retry_seconds == 0
    assert str(error) == f"INVALID_ARGUMENT ICCID_INVALID: {error.detail} {error.hint}"


async def test_a_call_is_repeated_as_it_is_where_that_can_help(settings: Settings, sockets: Path) -> None:
    async with serving(settings) as front, front.channel("issuer") as channel:
        patient = IssuerClient(channel, retry_seconds=WAIT)
        call = asyncio.create_task(patient.issue(request()))
        with pytest.raises(ApiError) as caught:
            await IssuerClient(channel).issue(request("other"))
        assert (caught.value.reason, caught.value.retry_seconds) == ("VAULTS_UNAVAILABLE", 2.0)
        async with FakeVault(sockets) as vault:
            issued = await call
        assert issued.state == issuance_pb2.ISSUANCE_STATE_READY
        assert len(vault.items) == 1


async def test_repeating_ends_in_the_last_error(settings: Settings) -> None:
    async with serving(settings) as front, front.channel("issuer") as channel:
        with pytest.raises(ApiError) as caught:
            await IssuerClient(channel, retry_seconds=0.1).issue(request())
    assert caught.value.reason == "VAULTS_UNAVAILABLE"


async def test_a_server_that_is_not_there_is_unavailable(tls: Path) -> None:
    async with connect("localhost:1", tls / "ca.pem", tls / "issuer.pem", tls / "issuer.key") as channel:
        with pytest.raises(ApiError) as caught:
            await IssuerClient(channel, retry_seconds=0).issue(request())
    assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "")


async def test_listing_leaves_the_request_as_it_was(settings: Settings, sockets: Path) -> None:
    async with (
        FakeVault(sockets),
        serving(settings) as front,
        front.channel("issuer") as channel,
    ):
        client = IssuerClient(channel, retry_seconds=WAIT)
        for person in ("one", "two", "three"):
            await client.issue(request(person))
        wanted = issuance_pb2.ListIssuancesRequest(page_size=1)
        assert [issuance.person_id async for issuance in client.list_issuances(wanted)] == ["one", "two", "three"]
        assert wanted == issuance_pb2.ListIssuancesRequest(page_size=1)
