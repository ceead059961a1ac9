"""SubmitCertificate over real mutual TLS, with an external CA behind a fake vault."""

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from appliance.api.v1 import delivery_pb2
from appliance.api.v1 import issuance_pb2 as pb
from appliance.client import ApiError, IssuerClient, TsmClient
from appliance.config import Settings
from appliance.domain.package import SimPackage
from appliance.domain.profile import CaMode
from appliance.errors import ApplianceError
from tests.foreign_ca import ForeignCa
from tests.server.fake_vault import FakeVault
from tests.server.site import WAIT, Front, request, serving, until_ready, with_front
from tests.server.test_issuance_service import Issuer

CERTIFICATE, OTHER = ForeignCa().der, ForeignCa().der
SUBMIT = "/appliance.api.v1.IssuanceService/SubmitCertificate"
WAITS = pb.ISSUANCE_STATE_AWAITING_CERTIFICATE


@pytest.fixture
async def issuer(front: Front, vault: FakeVault) -> AsyncIterator[Issuer]:
    vault.external = True
    async with front.channel("issuer") as channel:
        yield Issuer(IssuerClient(channel), channel, vault)


def submission(name: str, certificate: bytes = CERTIFICATE, **changes: str) -> pb.SubmitCertificateRequest:
    request_id = changes.get("request_id", str(uuid.uuid4()))
    return pb.SubmitCertificateRequest(request_id=request_id, name=name, certificate=certificate)


async def refused(issuer: Issuer, wanted: pb.SubmitCertificateRequest) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await issuer.client.submit_certificate(wanted)
    return caught.value


async def test_issue_answers_a_certificate_request_that_get_and_list_show_while_it_waits(issuer: Issuer) -> None:
    wanted = request()
    issued = await issuer.client.issue(wanted)
    assert issued.state == WAITS
    assert issued.certificate_request == b"request for " + wanted.subject_common_name.encode()
    due = issued.certificate_due_time.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(days=13, hours=23) < due <= timedelta(days=14)
    assert (issued.certificate, issued.certificate_serial, issued.package_sha256) == (b"", b"", b"")
    assert issued.package_counter == issuer.vault.items[0].package_counter
    for view in (pb.ISSUANCE_VIEW_BASIC, pb.ISSUANCE_VIEW_WITH_PACKAGE):
        assert await issuer.client.get_issuance(pb.GetIssuanceRequest(name=issued.name, view=view)) == issued
    listed = [one async for one in issuer.client.list_issuances(pb.ListIssuancesRequest(state=WAITS))]
    assert listed == [issued]


async def test_certificate_makes_it_ready_with_its_package(issuer: Issuer) -> None:
    issued = await issuer.client.issue(request())
    ready = await issuer.client.submit_certificate(submission(issued.name))
    assert (ready.state, ready.certificate) == (pb.ISSUANCE_STATE_READY, CERTIFICATE)
    assert (ready.certificate_request, ready.package, ready.HasField("certificate_due_time")) == (b"", b"", False)
    wanted = pb.GetIssuanceRequest(name=issued.name, view=pb.ISSUANCE_VIEW_WITH_PACKAGE)
    package = SimPackage.decode((await issuer.client.get_issuance(wanted)).package)
    assert package.certificate == CERTIFICATE
    assert [one async for one in issuer.client.list_issuances(pb.ListIssuancesRequest(state=WAITS))] == []


async def test_repeated_calls_get_the_same_bytes_whatever_has_happened_since(issuer: Issuer) -> None:
    submit: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = issuer.channel.unary_unary(SUBMIT)
    wanted = request()
    issued = await issuer.client.issue(wanted)
    raw = submission(issued.name).SerializeToString()
    first = await submit(raw)
    await issuer.client.abandon(pb.AbandonRequest(request_id=str(uuid.uuid4()), name=issued.name))
    await issuer.vault.die()
    assert await submit(raw) == first
    assert await issuer.client.issue(wanted) == issued, "as it was when its key was made"


async def test_refusals_name_the_field_and_the_way_out(issuer: Issuer) -> None:
    issued = await issuer.client.issue(request())
    error = await refused(issuer, submission(issued.name, CERTIFICATE + b"\x00"))
    assert (error.code, error.reason, error.field) == ("INVALID_ARGUMENT", "CERTIFICATE_REFUSED", "certificate")
    assert error.metadata["lints"] == "form"
    assert error.hint
    bad_name = await refused(issuer, submission("issuances/1"))
    assert (bad_name.reason, bad_name.field) == ("NAME_INVALID", "name")
    bad_id = await refused(issuer, submission(issued.name, request_id="1"))
    assert (bad_id.reason, bad_id.field) == ("REQUEST_ID_INVALID", "request_id")
    nobody = await refused(issuer, submission(f"issuances/{'0' * 32}"))
    assert (nobody.code, nobody.reason) == ("NOT_FOUND", "ISSUANCE_NOT_FOUND")

    await issuer.client.submit_certificate(submission(issued.name))
    other = await refused(issuer, submission(issued.name, OTHER))
    assert (other.code, other.reason) == ("FAILED_PRECONDITION", "CERTIFICATE_NOT_AWAITED")
    assert other.metadata["state"] == "READY"


async def test_a_tsm_is_told_that_the_certificate_is_awaited(issuer: Issuer, front: Front) -> None:
    issued = await issuer.client.issue(request())
    async with front.channel("tsm-a") as channel:
        wanted = delivery_pb2.FetchScriptRequest(request_id=str(uuid.uuid4()), issuance=issued.name, sequence_counter=1)
        with pytest.raises(ApiError) as caught:
            await TsmClient(channel).fetch_script(wanted)
        assert (caught.value.reason, caught.value.metadata["state"]) == ("ISSUANCE_NOT_READY", "AWAITING_CERTIFICATE")
        assert "SubmitCertificate" in caught.value.hint
        await issuer.client.submit_certificate(submission(issued.name))
        assert (await TsmClient(channel).fetch_script(wanted)).commands


async def test_abandoned_while_it_waits_it_takes_no_certificate(issuer: Issuer) -> None:
    issued = await issuer.client.issue(request())
    ended = await issuer.client.abandon(pb.AbandonRequest(request_id=str(uuid.uuid4()), name=issued.name))
    assert (ended.state, ended.certificate_request) == (pb.ISSUANCE_STATE_ABANDONED, b"")
    assert (await refused(issuer, submission(issued.name))).reason == "ISSUANCE_ENDED"
    assert (await issuer.client.issue(request())).state == WAITS, "the person may be issued anew"


async def test_what_is_overdue_when_the_front_starts_is_abandoned_by_itself(
    settings: Settings, vault: FakeVault
) -> None:
    vault.external = True
    declared = with_front(settings, certificate_wait_days=2)
    async with serving(declared) as front, front.channel("issuer") as channel:
        await until_ready(front)
        issued = await IssuerClient(channel).issue(request())
    due = issued.certificate_due_time.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(days=1, hours=23) < due <= timedelta(days=2)
    with closing(sqlite3.connect(settings.front.ledger.removeprefix("sqlite:///"))) as ledger, ledger:
        ledger.execute("UPDATE issuances SET certificate_due = certificate_due - ?", (2 * 24 * 3600 * 10**6,))
    async with serving(declared) as front, front.channel("issuer") as channel:
        client, wanted = IssuerClient(channel), pb.GetIssuanceRequest(name=issued.name)
        async with asyncio.timeout(WAIT):
            while (found := await client.get_issuance(wanted)).state == WAITS:
                await asyncio.sleep(0.02)
        assert (found.state, found.end_reason) == (pb.ISSUANCE_STATE_ABANDONED, "CERTIFICATE_OVERDUE")
        with pytest.raises(ApiError) as caught:
            await client.submit_certificate(submission(issued.name))
        assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "CERTIFICATE_OVERDUE")


@pytest.mark.parametrize("mode", CaMode)
async def test_an_end_after_the_internal_cas_own_is_refused_before_anything_is_reserved(
    settings: Settings, vault: FakeVault, tmp_path: Path, mode: CaMode
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(ForeignCa(days=100).pem)
    profile = settings.profiles["test"]
    label = "" if mode is CaMode.EXTERNAL else profile.ca_label
    short = replace(profile, ca_certificate=ca, ca_mode=mode, ca_label=label)
    vault.external = mode is CaMode.EXTERNAL
    async with serving(replace(settings, profiles={"test": short})) as front, front.channel("issuer") as channel:
        await until_ready(front)
        client = IssuerClient(channel)
        if mode is CaMode.EXTERNAL:
            assert (await client.issue(request())).state == WAITS, "its CA decides"
            return
        for validate_only in (True, False):
            with pytest.raises(ApiError) as caught:
                await client.issue(request(validate_only=validate_only))
            assert (caught.value.reason, caught.value.field) == ("TIME_INVALID", "not_after")
        assert [one async for one in client.list_issuances(pb.ListIssuancesRequest())] == []
        assert vault.items == []


async def test_a_front_whose_profile_names_no_certificate_does_not_start(settings: Settings, tmp_path: Path) -> None:
    for content in (None, b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"):
        ca = tmp_path / "ca.pem"
        if content:
            ca.write_bytes(content)
        profile = replace(settings.profiles["test"], ca_certificate=ca)
        with pytest.raises(ApplianceError) as caught:
            async with serving(replace(settings, profiles={"test": profile})):
                pass
        assert caught.value.field == "profiles/test.toml: ca_certificate"
