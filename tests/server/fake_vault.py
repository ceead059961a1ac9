"""A vault that is none: it speaks VaultService on a Unix socket and answers by the book, with no HSM behind it.

Packages are those of vectors/sim_package.json with the ordered header; a receipt is good when it is `good_receipt` of
what it is for. What a test wants to go wrong, it sets.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import grpc

from appliance.apdu.scp03 import Mode, card_challenge, derive_session_keys
from appliance.api.status import abort
from appliance.domain.package import Header, KeyType, SimPackage
from appliance.domain.receipt import RECEIPT_LENGTHS
from appliance.errors import ApplianceError, Reason
from appliance.vault.v1 import vault_pb2 as pb
from appliance.vault.v1.vault_pb2_grpc import VaultServiceServicer, add_VaultServiceServicer_to_server

CAPACITY = 4
SSD_AID = bytes.fromhex("A000000151000000")
K_ENC, K_MAC = bytes.fromhex("404142434445464748494A4B4C4D4E4F"), bytes.fromhex("505152535455565758595A5B5C5D5E5F")
"""Static channel keys of every SIM."""
_CASES = json.loads((Path(__file__).parents[1] / "vectors" / "sim_package.json").read_text())["cases"]
_PACKAGES = {case["key_type"]: SimPackage.decode(bytes.fromhex(case["package"])) for case in _CASES}

Context = grpc.aio.ServicerContext[Any, Any]


class FakeVault(VaultServiceServicer):
    """One incarnation; use as a context.

    items, channels: what it was asked.
    let_go: while it is cleared, every item is held; `taken` counts those that were begun.
    external: its profile has an external CA, whose certificates it takes unseen.
    completions: what it was asked to complete.
    refusal: answered to every item.
    busy: its queue is full.
    broken: it breaks calls without a reason.
    truncates: its packages lack their last byte.
    deadly: the common name of an item that kills it; `dead` is set then.
    """

    def __init__(self, directory: Path, name: str = "v0-1") -> None:
        self.name = name
        self.items: list[pb.IssueItem] = []
        self.channels: list[pb.ChannelItem] = []
        self.completions: list[pb.CompletionItem] = []
        self.external = False
        self.let_go = asyncio.Event()
        self.let_go.set()
        self.taken = asyncio.Semaphore(0)
        self.refusal: ApplianceError | None = None
        self.busy = False
        self.broken = False
        self.truncates = False
        self.deadly = ""
        self.dead = asyncio.Event()
        self._address = f"unix:{directory / name}.sock"
        self._server = grpc.aio.server()

    async def __aenter__(self) -> Self:
        add_VaultServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self._address)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def die(self) -> None:
        """Breaks every call under way, as a process that is killed does."""
        await self._server.stop(grace=None)
        self.dead.set()

    async def Issue(self, request: pb.IssueRequest, context: Context) -> AsyncIterator[pb.IssueResponse]:  # noqa: N802 (the proto's)
        for item in request.items:
            failure = await self._handle(context)
            self.items.append(item)
            self.taken.release()
            await self.let_go.wait()
            if item.subject_common_name == self.deadly:
                self._dying = asyncio.create_task(self.die())
                await asyncio.Event().wait()
            package = package_for(item)[: -1 if self.truncates else None]
            if failure:
                yield pb.IssueResponse(failure=failure)
            elif self.external:
                yield pb.IssueResponse(pending=pending_for(item))
            else:
                yield pb.IssueResponse(package=package)

    async def CompletePackages(  # noqa: N802 (the proto's)
        self, request: pb.CompletePackagesRequest, context: Context
    ) -> AsyncIterator[pb.CompletePackagesResponse]:
        for item in request.items:
            failure = await self._handle(context)
            self.completions.append(item)
            self.taken.release()
            await self.let_go.wait()
            made = SimPackage(Header.decode(item.header), item.wrapped_key, item.certificate, bytes(16)).encode()
            package = made[: -1 if self.truncates else None]
            yield (
                pb.CompletePackagesResponse(failure=failure)
                if failure
                else pb.CompletePackagesResponse(package=package)
            )

    async def OpenChannels(  # noqa: N802 (the proto's)
        self, request: pb.OpenChannelsRequest, context: Context
    ) -> AsyncIterator[pb.OpenChannelsResponse]:
        for item in request.items:
            failure = await self._handle(context)
            self.channels.append(item)
            if failure:
                yield pb.OpenChannelsResponse(index=item.index, failure=failure)
            else:
                yield pb.OpenChannelsResponse(index=item.index, keys=_keys(item))

    async def VerifyReceipts(  # noqa: N802 (the proto's)
        self, request: pb.VerifyReceiptsRequest, context: Context
    ) -> AsyncIterator[pb.VerifyReceiptsResponse]:
        for item in request.items:
            failure = await self._handle(context)
            if not failure and item.receipt != good_receipt(item.header, item.certificate):
                failure = pb.Failure(
                    reason=Reason.RECEIPT_REJECTED, detail="Not this one's.", hint="-", field="receipt"
                )
            yield pb.VerifyReceiptsResponse(failure=failure)

    async def GetStatus(self, _request: pb.GetStatusRequest, _context: Context) -> pb.GetStatusResponse:  # noqa: N802 (the proto's)
        return pb.GetStatusResponse(
            vault=self.name,
            module="fake",
            token_label="DEMO",
            token_serial="1",
            queue_length=CAPACITY if self.busy else 0,
            queue_capacity=CAPACITY,
            items_done=len(self.items),
            key_sets=[pb.KeySet(sim_issuer="mno-a", kvn=0x30, bind_kcv=b"\x01\x02\xab", chan_kcv=b"\x04\x05\x06")],
        )

    async def _handle(self, context: Context) -> pb.Failure | None:
        if self.busy:
            await abort(context, ApplianceError(Reason.VAULTS_BUSY, "Full.", hint="Later."))
        if self.broken:
            await context.abort(grpc.StatusCode.UNKNOWN)
        if self.refusal:
            return pb.Failure(reason=self.refusal.reason, detail=self.refusal.detail, hint=self.refusal.hint)
        return None


def package_for(item: pb.IssueItem) -> bytes:
    """The vector's package of this key type, with the header that was ordered."""
    known = _PACKAGES[item.key_type]
    header = replace(
        known.header,
        iccid=item.iccid,
        applet_aid=item.applet_aid,
        kvn=item.kvn,
        counter=item.package_counter,
        key_type=KeyType(item.key_type),
    )
    return replace(known, header=header).encode()


def pending_for(item: pb.IssueItem) -> pb.PendingPackage:
    """The same, waiting for its certificate."""
    sealed = SimPackage.decode(package_for(item))
    return pb.PendingPackage(
        header=sealed.header.encode(),
        wrapped_key=sealed.wrapped,
        interim_mac=b"interim mac 16 b",
        certificate_request=b"request for " + item.subject_common_name.encode(),
    )


def good_receipt(header: bytes, certificate: bytes) -> bytes:
    """The receipt that the fake takes for this package."""
    seed = hashlib.sha256(header + certificate).digest()
    return (seed * 16)[: RECEIPT_LENGTHS[Header.decode(header).key_type]]


def _keys(item: pb.ChannelItem) -> pb.ChannelKeys:
    challenge = card_challenge(K_ENC, item.sequence_counter, SSD_AID, Mode(len(item.host_challenge)))
    keys = derive_session_keys(K_ENC, K_MAC, item.host_challenge, challenge)
    s_rmac = keys.s_rmac if item.with_s_rmac else b""
    return pb.ChannelKeys(card_challenge=challenge, s_enc=keys.s_enc, s_mac=keys.s_mac, s_rmac=s_rmac)
