"""The vault's API over a real gRPC server on a Unix socket, with a fake engine that does as the test says."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from appliance.api.status import ParsedError, parse
from appliance.domain.package import Header, KeyType, PendingPackage
from appliance.domain.sim import Iccid
from appliance.errors import ApplianceError, Reason
from appliance.hsm.engine import Engine
from appliance.hsm.orders import (
    ChannelKeys,
    ChannelOrder,
    CompletionOrder,
    LoadedKeySet,
    ReceiptOrder,
    SealOrder,
    TokenDescription,
)
from appliance.vault.hsm_thread import HsmThread, Stamps
from appliance.vault.service import MAX_CHECKS, MAX_KEYS, VaultService
from appliance.vault.v1 import vault_pb2 as pb
from appliance.vault.v1.vault_pb2_grpc import VaultServiceStub, add_VaultServiceServicer_to_server

if TYPE_CHECKING:  # the stub for aio channels is a type alone
    from appliance.vault.v1.vault_pb2_grpc import VaultServiceAsyncStub

WAIT = 20.0
NOW = 1_800_000_000
ITEM = pb.IssueItem(
    index=7,
    sim_issuer="mno",
    kvn=2,
    iccid=bytes(range(10)),
    applet_aid=b"applet",
    key_type=3,
    package_counter=9,
    activation_code="12345678",
    profile="jpki",
    certificate_serial=b"\x40" * 16,
    subject_common_name="CN",
    not_before_seconds=NOW,
    not_after_seconds=NOW + 1,
)
ORDER = SealOrder(
    sim_issuer="mno",
    kvn=2,
    iccid=bytes(range(10)),
    applet_aid=b"applet",
    key_type=KeyType.EC_P384,
    package_counter=9,
    activation_code="12345678",
    profile="jpki",
    certificate_serial=b"\x40" * 16,
    subject_common_name="CN",
    not_before=datetime.fromtimestamp(NOW, UTC),
    not_after=datetime.fromtimestamp(NOW + 1, UTC),
)


PENDING = PendingPackage(
    Header(Iccid.parse("8981309114170753644").ef_coding, b"applet", 2, 9, KeyType.EC_P384, bytes(32), bytes(8)),
    b"wrapped",
    b"request",
    b"interim mac 16 b",
)


class FakeEngine:
    """Notes orders and answers with `answer`; stands still in each while `held`. Profile `external` has such a CA."""

    description = TokenDescription("Module 1.0", "TOKEN", "0123")
    key_sets = (LoadedKeySet("mno", 2, b"\x01\x02\x03", b"\x04\x05\x06"),)

    def __init__(self, stamps: Stamps) -> None:
        self._stamps = stamps
        self._loop = asyncio.get_running_loop()
        self._free = threading.Event()
        self._free.set()
        self.entered = asyncio.Event()
        self.orders: list[object] = []
        self.answer: Callable[[Any], Any] = lambda order: order

    def _do(self, order: object) -> Any:
        self._stamps("sign")
        self._loop.call_soon_threadsafe(self.entered.set)
        assert self._free.wait(WAIT)
        self._stamps("")
        self.orders.append(order)
        return self.answer(order)

    issue = complete = open_channel = verify_receipt = _do

    def has_external_ca(self, profile: str) -> bool:
        return profile == "external"

    def request(self, order: object) -> PendingPackage:
        self._do(order)
        return PENDING

    def close(self) -> None:
        return None

    @contextmanager
    def held(self) -> Iterator[None]:
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()


@dataclass
class Served:
    engine: FakeEngine
    stub: "VaultServiceAsyncStub"
    thread: HsmThread[Any] = field(repr=False)


@pytest.fixture
async def vault(tmp_path: Path) -> AsyncIterator[Served]:
    stamps = Stamps()
    engine = FakeEngine(stamps)
    thread = HsmThread(lambda: engine, capacity=2, recycle_after=10**6)
    service = VaultService("v0-3", cast(Engine, engine), cast(Any, thread), stamps, {"jpki": b"ca"})
    server = grpc.aio.server()
    add_VaultServiceServicer_to_server(service, server)
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        yield Served(engine, VaultServiceStub(channel), thread)
    thread.end()
    await asyncio.wait_for(thread.ended, WAIT)
    await server.stop(0)


async def error_of(call: Any) -> ParsedError:
    with pytest.raises(grpc.RpcError) as caught:
        await anext(aiter(call))
    return parse(caught.value)


async def test_an_item_becomes_exactly_its_order(vault: Served) -> None:
    vault.engine.answer = lambda _: b"package"
    responses = [response async for response in vault.stub.Issue(pb.IssueRequest(items=[ITEM]))]
    assert responses == [pb.IssueResponse(index=7, package=b"package")]
    assert vault.engine.orders == [ORDER]


async def test_under_a_profile_with_an_external_ca_the_answer_is_what_waits_for_the_certificate(vault: Served) -> None:
    item = pb.IssueItem()
    item.CopyFrom(ITEM)
    item.profile = "external"
    responses = [response async for response in vault.stub.Issue(pb.IssueRequest(items=[item]))]
    pending = pb.PendingPackage(
        header=PENDING.header.encode(),
        wrapped_key=b"wrapped",
        interim_mac=b"interim mac 16 b",
        certificate_request=b"request",
    )
    assert responses == [pb.IssueResponse(index=7, pending=pending)]
    assert vault.engine.orders == [replace(ORDER, profile="external")]


async def test_a_completion_becomes_exactly_its_order(vault: Served) -> None:
    vault.engine.answer = lambda _: b"package"
    item = pb.CompletionItem(
        index=3,
        sim_issuer="mno",
        header=b"e1",
        wrapped_key=b"c1",
        interim_mac=b"mac",
        certificate=b"c2",
        profile="external",
        subject_common_name="CN",
        latest_end_seconds=NOW,
    )
    responses = [r async for r in vault.stub.CompletePackages(pb.CompletePackagesRequest(items=[item]))]
    assert responses == [pb.CompletePackagesResponse(index=3, package=b"package")]
    latest_end = datetime.fromtimestamp(NOW, UTC)
    assert vault.engine.orders == [CompletionOrder("mno", b"e1", b"c1", b"mac", b"c2", "external", "CN", latest_end)]


async def test_a_channel_becomes_its_order_and_answers_all_its_keys(vault: Served) -> None:
    vault.engine.answer = lambda _: ChannelKeys(b"challenge", b"enc", b"mac", b"rmac")
    item = pb.ChannelItem(
        index=1, sim_issuer="mno", kvn=2, iccid=b"i", sequence_counter=5, host_challenge=b"h", with_s_rmac=True
    )
    responses = [response async for response in vault.stub.OpenChannels(pb.OpenChannelsRequest(items=[item]))]
    keys = pb.ChannelKeys(card_challenge=b"challenge", s_enc=b"enc", s_mac=b"mac", s_rmac=b"rmac")
    assert responses == [pb.OpenChannelsResponse(index=1, keys=keys)]
    assert vault.engine.orders == [ChannelOrder("mno", 2, b"i", 5, b"h", with_s_rmac=True)]


async def test_a_receipt_becomes_its_order_and_a_good_one_has_no_failure(vault: Served) -> None:
    vault.engine.answer = lambda _: None
    item = pb.ReceiptItem(index=4, sim_issuer="mno", header=b"e1", certificate=b"c2", receipt=b"r")
    responses = [response async for response in vault.stub.VerifyReceipts(pb.VerifyReceiptsRequest(items=[item]))]
    assert responses == [pb.VerifyReceiptsResponse(index=4)]
    assert not responses[0].HasField("failure")
    assert vault.engine.orders == [ReceiptOrder("mno", b"e1", b"c2", b"r")]


CALLS: "dict[str, Callable[[VaultServiceAsyncStub, int], Any]]" = {
    "Issue": lambda stub, count: stub.Issue(pb.IssueRequest(items=[ITEM] * count)),
    "CompletePackages": lambda stub, count: stub.CompletePackages(
        pb.CompletePackagesRequest(items=[pb.CompletionItem(index=7)] * count)
    ),
    "OpenChannels": lambda stub, count: stub.OpenChannels(
        pb.OpenChannelsRequest(items=[pb.ChannelItem(index=7)] * count)
    ),
    "VerifyReceipts": lambda stub, count: stub.VerifyReceipts(
        pb.VerifyReceiptsRequest(items=[pb.ReceiptItem(index=7)] * count)
    ),
}
LIMITS = {name: MAX_KEYS if name == "Issue" else MAX_CHECKS for name in CALLS}


@pytest.mark.parametrize("method", CALLS)
async def test_a_refusal_is_the_items_failure_in_every_field(vault: Served, method: str) -> None:
    def refuse(_: object) -> None:
        raise ApplianceError(Reason.CERTIFICATE_REFUSED, "What.", hint="How.", field="where", fact="x")

    vault.engine.answer = refuse
    (response,) = [response async for response in CALLS[method](vault.stub, 1)]
    assert response.index == 7
    assert response.failure == pb.Failure(
        reason="CERTIFICATE_REFUSED", detail="What.", hint="How.", field="where", facts={"fact": "x"}
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key_type": 0}, "KEY_TYPE_INVALID"),
        ({"key_type": 4}, "KEY_TYPE_INVALID"),
        ({"not_before_seconds": 2**62}, "TIME_INVALID"),
        ({"not_after_seconds": -(2**62)}, "TIME_INVALID"),
    ],
)
async def test_a_value_that_fits_no_order_fails_its_own_item(
    vault: Served, change: dict[str, int], reason: str
) -> None:
    bad = pb.IssueItem()
    bad.CopyFrom(ITEM)
    for name, value in change.items():
        setattr(bad, name, value)
    vault.engine.answer = lambda _: b"package"
    first, second = [response async for response in vault.stub.Issue(pb.IssueRequest(items=[bad, ITEM]))]
    assert (first.failure.reason, first.failure.field) == (reason, *change)
    assert second.package == b"package"
    assert vault.engine.orders == [ORDER]


@pytest.mark.parametrize("method", CALLS)
async def test_a_batch_of_none_or_too_many_is_refused(vault: Served, method: str) -> None:
    for count in (0, LIMITS[method] + 1):
        error = await error_of(CALLS[method](vault.stub, count))
        assert (error.code, error.reason, error.field) == ("INVALID_ARGUMENT", "FIELD_INVALID", "items")
    assert not vault.engine.orders


@pytest.mark.parametrize("method", CALLS)
async def test_a_full_queue_is_resource_exhausted_at_once(vault: Served, method: str) -> None:
    with vault.engine.held():
        held = CALLS["Issue"](vault.stub, 3)
        first = asyncio.ensure_future(anext(aiter(held)))
        await asyncio.wait_for(vault.engine.entered.wait(), WAIT)
        error = await asyncio.wait_for(error_of(CALLS[method](vault.stub, 1)), WAIT)
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "VAULTS_BUSY")
        assert error.metadata == {"waiting": "2", "capacity": "2"}
        assert error.retry_seconds > 0
        held.cancel()
        await asyncio.wait({first})


async def test_a_stopping_vault_says_so(vault: Served) -> None:
    vault.thread.end()
    error = await error_of(CALLS["Issue"](vault.stub, 1))
    assert (error.code, error.reason) == ("UNAVAILABLE", "DRAINING")


async def test_each_result_streams_as_it_is_made(vault: Served) -> None:
    vault.engine.answer = lambda _: b"package"
    call = CALLS["Issue"](vault.stub, 2)
    with vault.engine.held():
        waiting = asyncio.ensure_future(anext(aiter(call)))
        await asyncio.wait_for(vault.engine.entered.wait(), WAIT)
        assert not waiting.done()
        vault.engine.entered.clear()
    assert (await waiting).package == b"package"
    assert [response.package async for response in call] == [b"package"]


@pytest.mark.parametrize("ending", ["cancel", "deadline"])
async def test_items_of_a_call_that_has_ended_are_not_worked_on(vault: Served, ending: str) -> None:
    vault.engine.answer = lambda _: b"package"
    with vault.engine.held():
        call = vault.stub.Issue(pb.IssueRequest(items=[ITEM] * 3), timeout=1.0 if ending == "deadline" else None)
        waiting = asyncio.ensure_future(anext(aiter(call)))
        await asyncio.wait_for(vault.engine.entered.wait(), WAIT)
        if ending == "cancel":
            call.cancel()
        await asyncio.wait({waiting})
        async with asyncio.timeout(WAIT):  # until the server has heard of it
            while (await vault.stub.GetStatus(pb.GetStatusRequest())).queue_length:
                pass
    assert [response.package async for response in CALLS["Issue"](vault.stub, 1)] == [b"package"]
    assert len(vault.engine.orders) == 2, "the item in hand, and the next call's"


async def test_status_answers_from_the_stamps_while_a_call_hangs(vault: Served) -> None:
    with vault.engine.held():
        call = CALLS["Issue"](vault.stub, 3)
        waiting = asyncio.ensure_future(anext(aiter(call)))
        await asyncio.wait_for(vault.engine.entered.wait(), WAIT)
        status = await asyncio.wait_for(vault.stub.GetStatus(pb.GetStatusRequest()), WAIT)
        later = await asyncio.wait_for(vault.stub.GetStatus(pb.GetStatusRequest()), WAIT)
        call.cancel()
        await asyncio.wait({waiting})
    assert status.current_call_milliseconds <= later.current_call_milliseconds
    status.current_call_milliseconds = 0
    assert status == pb.GetStatusResponse(
        vault="v0-3",
        module="Module 1.0",
        token_label="TOKEN",
        token_serial="0123",
        queue_length=2,
        queue_capacity=2,
        current_call="sign",
        items_done=0,
        key_sets=[pb.KeySet(sim_issuer="mno", kvn=2, bind_kcv=b"\x01\x02\x03", chan_kcv=b"\x04\x05\x06")],
        issuers={"jpki": b"ca"},
    )


async def test_status_counts_what_was_done(vault: Served) -> None:
    vault.engine.answer = lambda _: b"package"
    assert len([response async for response in CALLS["Issue"](vault.stub, 2)]) == 2
    assert (await vault.stub.GetStatus(pb.GetStatusRequest())).items_done == 2
