"""IssuanceService over mutual TLS, with the real ledger and a fake vault."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_status import rpc_status

from appliance.api.v1 import issuance_pb2 as pb
from appliance.client import ApiError, IssuerClient
from appliance.domain.package import SimPackage
from appliance.server.calls import MAX_REQUEST

from .fake_vault import CAPACITY, FakeVault
from .site import WAIT, Front, request

ISSUE = "/appliance.api.v1.IssuanceService/Issue"


@dataclass
class Issuer:
    """The issuer role at a front with one fake vault."""

    client: IssuerClient
    channel: grpc.aio.Channel
    vault: FakeVault

    async def refused(self, wanted: pb.IssueRequest) -> ApiError:
        """The refusal of this request."""
        with pytest.raises(ApiError) as caught:
            await self.client.issue(wanted)
        return caught.value

    @asynccontextmanager
    async def held(self, wanted: pb.IssueRequest) -> AsyncIterator[asyncio.Task[pb.Issuance]]:
        """The call, with its item in the vault's hand until the context ends; then the call ends too."""
        self.vault.let_go.clear()
        call = asyncio.create_task(self.client.issue(wanted))
        await asyncio.wait_for(self.vault.taken.acquire(), WAIT)
        yield call
        self.vault.let_go.set()
        await asyncio.wait([call])

    async def people(self) -> list[tuple[str, int]]:
        """Person and state of everything that was ever reserved."""
        return [(i.person_id, i.state) async for i in self.client.list_issuances(pb.ListIssuancesRequest())]


@pytest.fixture
async def issuer(front: Front, vault: FakeVault) -> AsyncIterator[Issuer]:
    async with front.channel("issuer") as channel:
        yield Issuer(IssuerClient(channel), channel, vault)


async def test_issue_answers_a_ready_issuance_that_the_vault_made_once(issuer: Issuer) -> None:
    wanted = request()
    issued = await issuer.client.issue(wanted)
    (item,) = issuer.vault.items
    assert issued.state == pb.ISSUANCE_STATE_READY
    assert (issued.request_id, issued.person_id, issued.sim_issuer, issued.iccid, issued.kvn) == (
        wanted.request_id, "person-1", "simIssuers/mno-a", wanted.iccid, 0x30,
    )  # fmt: skip
    assert (issued.package_counter, issued.certificate_serial) == (item.package_counter, item.certificate_serial)
    assert item.activation_code == wanted.activation_code
    assert item.not_after_seconds == wanted.not_after.seconds
    assert issued.package == b""
    assert await issuer.people() == [("person-1", pb.ISSUANCE_STATE_READY)]


async def test_the_package_is_shown_to_whoever_asks_for_it_while_the_issuance_is_ready(issuer: Issuer) -> None:
    issued = await issuer.client.issue(request())
    wanted = pb.GetIssuanceRequest(name=issued.name, view=pb.ISSUANCE_VIEW_WITH_PACKAGE)
    shown = await issuer.client.get_issuance(wanted)
    assert SimPackage.decode(shown.package).header.counter == issued.package_counter
    assert (await issuer.client.get_issuance(pb.GetIssuanceRequest(name=issued.name))).package == b""
    await issuer.client.abandon(pb.AbandonRequest(request_id=str(uuid.uuid4()), name=issued.name))
    assert (await issuer.client.get_issuance(wanted)).package == b""


async def test_a_repeated_request_gets_the_same_bytes_whatever_has_happened_since(issuer: Issuer) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = issuer.channel.unary_unary(ISSUE)
    raw = request().SerializeToString()
    first = await call(raw)
    name = pb.IssueResponse.FromString(first).issuance.name
    await issuer.client.abandon(pb.AbandonRequest(request_id=str(uuid.uuid4()), name=name))
    issuer.vault.busy = True
    assert await call(raw) == first
    assert len(issuer.vault.items) == 1


async def test_a_repeated_request_is_answered_when_no_vault_is_there(issuer: Issuer) -> None:
    wanted = request()
    issued = await issuer.client.issue(wanted)
    await issuer.vault.die()
    assert await issuer.client.issue(wanted) == issued


async def test_a_request_id_with_other_content_is_refused(issuer: Issuer) -> None:
    first = request()
    await issuer.client.issue(first)
    for other in (
        request(request_id=first.request_id, person_id="person-2"),
        request(request_id=first.request_id, activation_code="37KKHDJHPFJF"),
    ):
        error = await issuer.refused(other)
        assert (error.code, error.reason, error.field) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED", "request_id")
    assert len(issuer.vault.items) == 1


async def test_a_second_live_issuance_for_a_person_is_refused_and_named(issuer: Issuer) -> None:
    first = await issuer.client.issue(request())
    error = await issuer.refused(request())
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "PERSON_HAS_LIVE_ISSUANCE")
    assert error.metadata["issuance"] == first.name
    assert len(issuer.vault.items) == 1


async def test_after_abandon_the_person_can_be_issued_anew(issuer: Issuer) -> None:
    first = await issuer.client.issue(request())
    abandon = pb.AbandonRequest(request_id=str(uuid.uuid4()), name=first.name)
    ended = await issuer.client.abandon(abandon)
    assert (ended.state, ended.end_reason) == (pb.ISSUANCE_STATE_ABANDONED, "ISSUANCE_ENDED")
    assert await issuer.client.abandon(abandon) == ended
    second = await issuer.client.issue(request())
    assert second.package_counter > first.package_counter
    with pytest.raises(ApiError) as caught:
        await issuer.client.abandon(pb.AbandonRequest(request_id=str(uuid.uuid4()), name=first.name))
    assert caught.value.reason == "ISSUANCE_ENDED"


async def test_validate_only_says_what_would_be_issued_and_stores_nothing(issuer: Issuer) -> None:
    issuer.vault.busy = True
    shown = await issuer.client.issue(request(validate_only=True))
    assert (shown.name, shown.kvn, shown.applet_aid.hex().upper()) == ("", 0x30, "D392F000260100000001")
    assert (await issuer.refused(request(validate_only=True, iccid="123"))).reason == "ICCID_INVALID"
    assert await issuer.people() == []


BAD: dict[str, tuple[Callable[[pb.IssueRequest], object], str, str]] = {
    "no request id": (lambda r: r.ClearField("request_id"), "REQUEST_ID_INVALID", "request_id"),
    "no person": (lambda r: r.ClearField("person_id"), "FIELD_INVALID", "person_id"),
    "a name outside the profile": (
        lambda r: setattr(r, "subject_common_name", "Yamada"), "NAME_INVALID", "subject_common_name",
    ),
    "no end": (lambda r: r.ClearField("not_after"), "TIME_INVALID", "not_after"),
    "an end in the past": (lambda r: setattr(r.not_after, "seconds", 1), "TIME_INVALID", "not_after"),
    "no card": (lambda r: r.ClearField("card_certificate"), "FIELD_INVALID", "card_certificate"),
    "a card without serial": (
        lambda r: r.card_certificate.ClearField("serial"), "FIELD_INVALID", "card_certificate.serial",
    ),
    "an ended card": (
        lambda r: setattr(r.card_certificate.not_after, "seconds", 1), "TIME_INVALID", "card_certificate.not_after",
    ),
    "no name of a SIM issuer": (lambda r: setattr(r, "sim_issuer", "mno-a"), "NAME_INVALID", "sim_issuer"),
    "an unknown SIM issuer": (
        lambda r: setattr(r, "sim_issuer", "simIssuers/mno-z"), "SIM_ISSUER_UNKNOWN", "sim_issuer",
    ),
    "a short ICCID": (lambda r: setattr(r, "iccid", "898130911417075364"), "ICCID_INVALID", "iccid"),
    "a wrong check digit": (lambda r: setattr(r, "iccid", "8981309114170753645"), "ICCID_INVALID", "iccid"),
    "a KVN out of range": (lambda r: setattr(r, "kvn", 128), "KVN_INVALID", "kvn"),
    "an unknown KVN": (lambda r: setattr(r, "kvn", 0x32), "KEY_SET_UNKNOWN", "kvn"),
    "a PREPARED key set": (lambda r: setattr(r, "kvn", 0x31), "KEY_SET_NOT_USABLE", "kvn"),
    "a short AID": (lambda r: setattr(r, "applet_aid", b"\xd3\x92"), "AID_INVALID", "applet_aid"),
    "no key type": (lambda r: r.ClearField("key_type"), "KEY_TYPE_INVALID", "key_type"),
    "a short activation code": (
        lambda r: setattr(r, "activation_code", "1234567"), "ACTIVATION_CODE_INVALID", "activation_code",
    ),
}  # fmt: skip


async def test_each_bad_field_is_named_and_nothing_is_reserved(issuer: Issuer) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = issuer.channel.unary_unary(ISSUE)
    for what, (spoil, reason, field) in BAD.items():
        wanted = request()
        spoil(wanted)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(wanted.SerializeToString())
        status = rpc_status.from_call(caught.value)
        details = {detail.type_url.rpartition(".")[2]: detail for detail in status.details}
        info, bad = ErrorInfo(), BadRequest()
        assert details["ErrorInfo"].Unpack(info)
        assert details["BadRequest"].Unpack(bad)
        assert (info.domain, info.reason) == ("appliance", reason), what
        assert [violation.field for violation in bad.field_violations] == [field], what
        assert info.metadata["hint"], what
    assert await issuer.people() == []
    assert issuer.vault.items == []


async def test_too_little_time_is_refused_before_anything_is_reserved(issuer: Issuer) -> None:
    hurried = IssuerClient(issuer.channel, timeout=0.15)
    await hurried.issue(request(validate_only=True))  # so that the connection stands
    for key_type in (pb.KEY_TYPE_RSA_2048, pb.KEY_TYPE_EC_P384):
        with pytest.raises(ApiError) as caught:
            await hurried.issue(request(key_type=key_type))
        assert (caught.value.code, caught.value.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT")
    assert await issuer.people() == []


async def test_full_vaults_are_refused_before_anything_is_reserved(issuer: Issuer) -> None:
    issuer.vault.let_go.clear()
    held = [asyncio.create_task(issuer.client.issue(request(f"held-{n}"))) for n in range(CAPACITY)]
    for _ in held:
        await asyncio.wait_for(issuer.vault.taken.acquire(), WAIT)
    error = await issuer.refused(request("late"))
    assert (error.code, error.reason, error.retry_seconds) == ("RESOURCE_EXHAUSTED", "VAULTS_BUSY", 1.0)
    issuer.vault.let_go.set()
    await asyncio.gather(*held)
    assert {person for person, _ in await issuer.people()} == {f"held-{n}" for n in range(CAPACITY)}


async def test_without_a_vault_nothing_is_reserved(issuer: Issuer) -> None:
    await issuer.vault.die()
    error = await issuer.refused(request())
    assert (error.code, error.reason, error.retry_seconds) == ("UNAVAILABLE", "VAULTS_UNAVAILABLE", 2.0)
    assert await issuer.people() == []


async def test_a_cancelled_call_does_not_stop_the_issuance(issuer: Issuer) -> None:
    issuer.vault.let_go.clear()
    wanted = request()
    call = asyncio.create_task(issuer.client.issue(wanted))
    await asyncio.wait_for(issuer.vault.taken.acquire(), WAIT)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    again = asyncio.create_task(issuer.client.issue(wanted))
    issuer.vault.let_go.set()
    assert (await again).state == pb.ISSUANCE_STATE_READY
    assert len(issuer.vault.items) == 1


async def test_concurrent_calls_of_one_request_make_one_issuance(issuer: Issuer) -> None:
    issuer.vault.let_go.clear()
    wanted = request()
    calls = [asyncio.create_task(issuer.client.issue(wanted)) for _ in range(5)]
    await asyncio.wait_for(issuer.vault.taken.acquire(), WAIT)
    other = await issuer.refused(request(request_id=wanted.request_id, person_id="person-2"))
    assert other.reason == "REQUEST_ID_REUSED"
    issuer.vault.let_go.set()
    answers = await asyncio.gather(*calls)
    assert all(answer == answers[0] for answer in answers)
    assert len(issuer.vault.items) == 1


async def test_issuances_are_listed_by_pages_person_and_state(issuer: Issuer) -> None:
    names = [(await issuer.client.issue(request(f"person-{n}"))).name for n in range(5)]
    await issuer.client.abandon(pb.AbandonRequest(request_id=str(uuid.uuid4()), name=names[0]))

    async def listed(wanted: pb.ListIssuancesRequest) -> list[str]:
        return [issuance.name async for issuance in issuer.client.list_issuances(wanted)]

    assert await listed(pb.ListIssuancesRequest(page_size=2)) == names
    assert await listed(pb.ListIssuancesRequest(person_id="person-3")) == [names[3]]
    assert await listed(pb.ListIssuancesRequest(state=pb.ISSUANCE_STATE_ABANDONED)) == [names[0]]
    for wrong, reason, field in (
        (pb.ListIssuancesRequest(page_size=1001), "FIELD_INVALID", "page_size"),
        (pb.ListIssuancesRequest(page_size=-1), "FIELD_INVALID", "page_size"),
        (pb.ListIssuancesRequest(page_token="x"), "PAGE_TOKEN_INVALID", "page_token"),
        (pb.ListIssuancesRequest.FromString(b"\x20\x63"), "FIELD_INVALID", "state"),  # field 4 with 99
    ):
        with pytest.raises(ApiError) as caught:
            await listed(wrong)
        assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [("issuances/1", "INVALID_ARGUMENT", "NAME_INVALID"), (f"issuances/{'0' * 32}", "NOT_FOUND", "ISSUANCE_NOT_FOUND")],
)
async def test_an_issuance_that_is_not_there_is_not_found(issuer: Issuer, name: str, code: str, reason: str) -> None:
    with pytest.raises(ApiError) as caught:
        await issuer.client.get_issuance(pb.GetIssuanceRequest(name=name))
    assert (caught.value.code, caught.value.reason) == (code, reason)
    with pytest.raises(ApiError) as caught:
        await issuer.client.abandon(pb.AbandonRequest(request_id=str(uuid.uuid4()), name=name))
    assert (caught.value.code, caught.value.reason) == (code, reason)


async def test_what_is_no_message_or_too_large_is_told_apart_from_overload(issuer: Issuer) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = issuer.channel.unary_unary(ISSUE)
    for raw, code, reason in (
        (b"\xff" * 10, "INVALID_ARGUMENT", "FIELD_INVALID"),
        (request(person_id="x" * MAX_REQUEST).SerializeToString(), "RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(raw)
        info = ErrorInfo()
        rpc_status.from_call(caught.value).details[0].Unpack(info)
        assert (caught.value.code().name, info.reason) == (code, reason)
