"""The vault's API on the wire: protobuf to orders, results and errors to protobuf. Handlers never touch the engine."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import grpc

from appliance.api.status import abort
from appliance.domain.package import KeyType, PendingPackage
from appliance.errors import ApplianceError, Reason
from appliance.hsm.engine import Engine
from appliance.hsm.orders import ChannelKeys, ChannelOrder, CompletionOrder, ReceiptOrder, SealOrder
from appliance.vault.hsm_thread import HsmThread, Stamps
from appliance.vault.v1 import vault_pb2 as pb
from appliance.vault.v1.vault_pb2_grpc import VaultServiceServicer

MAX_KEYS = 100
"""Items of a batch that makes keys: half a minute of RSA."""
MAX_CHECKS = 1000
"""Items of a batch that derives or verifies: its message stays below gRPC's default limit of 4 MiB."""

Context = grpc.aio.ServicerContext[Any, Any]
Item = TypeVar("Item")
Made = TypeVar("Made")


class VaultService(VaultServiceServicer):
    """Serves one engine.

    Args:
        name: slot and generation, such as v0-3.
        engine: to read its description; it is asked through the thread alone.
        thread: runs the engine.
        stamps: what the thread is doing.
        issuers: CA certificates by profile name, DER.
    """

    def __init__(
        self, name: str, engine: Engine, thread: HsmThread[Engine], stamps: Stamps, issuers: Mapping[str, bytes]
    ) -> None:
        self._name = name
        self._engine = engine
        self._thread = thread
        self._stamps = stamps
        self._issuers = issuers

    # The methods' names are the service's.

    async def Issue(self, request: pb.IssueRequest, context: Context) -> AsyncIterator[pb.IssueResponse]:  # noqa: N802
        """Seals; each package streams as it is made."""
        async for item, made in self._each(context, request.items, MAX_KEYS, _seal, quick=False):
            if isinstance(made, ApplianceError):
                yield pb.IssueResponse(index=item.index, failure=_failure(made))
            elif isinstance(made, PendingPackage):
                yield pb.IssueResponse(index=item.index, pending=_pending(made))
            else:
                yield pb.IssueResponse(index=item.index, package=made)

    async def CompletePackages(  # noqa: N802
        self, request: pb.CompletePackagesRequest, context: Context
    ) -> AsyncIterator[pb.CompletePackagesResponse]:
        """Completes what waits for its certificate."""
        async for item, made in self._each(context, request.items, MAX_CHECKS, _complete, quick=True):
            if isinstance(made, ApplianceError):
                yield pb.CompletePackagesResponse(index=item.index, failure=_failure(made))
            else:
                yield pb.CompletePackagesResponse(index=item.index, package=made)

    async def OpenChannels(  # noqa: N802
        self, request: pb.OpenChannelsRequest, context: Context
    ) -> AsyncIterator[pb.OpenChannelsResponse]:
        """Derives session keys."""
        async for item, made in self._each(context, request.items, MAX_CHECKS, _open_channel, quick=True):
            if isinstance(made, ApplianceError):
                yield pb.OpenChannelsResponse(index=item.index, failure=_failure(made))
            else:
                yield pb.OpenChannelsResponse(index=item.index, keys=_channel_keys(made))

    async def VerifyReceipts(  # noqa: N802
        self, request: pb.VerifyReceiptsRequest, context: Context
    ) -> AsyncIterator[pb.VerifyReceiptsResponse]:
        """Verifies receipts."""
        async for item, made in self._each(context, request.items, MAX_CHECKS, _verify_receipt, quick=True):
            failure = _failure(made) if isinstance(made, ApplianceError) else None
            yield pb.VerifyReceiptsResponse(index=item.index, failure=failure)

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:  # noqa: ARG002, N802
        """Reads the stamps."""
        call, age = self._stamps.current()
        description = self._engine.description
        return pb.GetStatusResponse(
            vault=self._name,
            module=description.module,
            token_label=description.token_label,
            token_serial=description.token_serial,
            queue_length=self._thread.waiting,
            queue_capacity=self._thread.capacity,
            current_call=call,
            current_call_milliseconds=int(age * 1000),
            items_done=self._thread.done,
            key_sets=[
                pb.KeySet(sim_issuer=held.sim_issuer, kvn=held.kvn, bind_kcv=held.bind_kcv, chan_kcv=held.chan_kcv)
                for held in self._engine.key_sets
            ],
            issuers=self._issuers,
        )

    async def _each(
        self,
        context: Context,
        items: Sequence[Item],
        limit: int,
        job: Callable[[Item], Callable[[Engine], Made]],
        *,
        quick: bool,
    ) -> AsyncIterator[tuple[Item, Made | ApplianceError]]:
        """Each item with its result, as it is made. What is wrong with an item is that item's failure alone."""
        if not 1 <= len(items) <= limit:
            detail = f"A batch of {len(items)} items."
            await abort(
                context,
                ApplianceError(Reason.FIELD_INVALID, detail, hint=f"Send 1 to {limit} items.", field="items"),
            )
        try:
            batch = self._thread.submit([job(item) for item in items], quick=quick)
        except ApplianceError as refusal:
            await abort(context, refusal)
        with batch as made:
            async for position, result in made:
                yield items[position], result


# Orders are made in the job, so that a value that cannot be one fails its own item.


def _seal(item: pb.IssueItem) -> Callable[[Engine], bytes | PendingPackage]:
    def job(engine: Engine) -> bytes | PendingPackage:
        order = SealOrder(
            sim_issuer=item.sim_issuer,
            kvn=item.kvn,
            iccid=item.iccid,
            applet_aid=item.applet_aid,
            key_type=_key_type(item.key_type),
            package_counter=item.package_counter,
            activation_code=item.activation_code,
            profile=item.profile,
            certificate_serial=item.certificate_serial,
            subject_common_name=item.subject_common_name,
            not_before=_time(item.not_before_seconds, "not_before_seconds"),
            not_after=_time(item.not_after_seconds, "not_after_seconds"),
        )
        return engine.request(order) if engine.has_external_ca(order.profile) else engine.issue(order)

    return job


def _complete(item: pb.CompletionItem) -> Callable[[Engine], bytes]:
    return lambda engine: engine.complete(
        CompletionOrder(
            sim_issuer=item.sim_issuer,
            header=item.header,
            wrapped_key=item.wrapped_key,
            interim_mac=item.interim_mac,
            certificate=item.certificate,
            profile=item.profile,
            subject_common_name=item.subject_common_name,
            latest_end=_time(item.latest_end_seconds, "latest_end_seconds"),
        )
    )


def _open_channel(item: pb.ChannelItem) -> Callable[[Engine], ChannelKeys]:
    return lambda engine: engine.open_channel(
        ChannelOrder(
            sim_issuer=item.sim_issuer,
            kvn=item.kvn,
            iccid=item.iccid,
            sequence_counter=item.sequence_counter,
            host_challenge=item.host_challenge,
            with_s_rmac=item.with_s_rmac,
        )
    )


def _verify_receipt(item: pb.ReceiptItem) -> Callable[[Engine], None]:
    return lambda engine: engine.verify_receipt(
        ReceiptOrder(sim_issuer=item.sim_issuer, header=item.header, certificate=item.certificate, receipt=item.receipt)
    )


def _key_type(value: int) -> KeyType:
    try:
        return KeyType(value)
    except ValueError:
        raise ApplianceError(
            Reason.KEY_TYPE_INVALID,
            f"There is no key type {value}.",
            hint="Send 1 (RSA-2048), 2 (P-256) or 3 (P-384).",
            field="key_type",
        ) from None


def _time(seconds: int, field: str) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        raise ApplianceError(
            Reason.TIME_INVALID,
            f"{seconds} s is no time of this calendar.",
            hint="Send seconds since 1970.",
            field=field,
        ) from None


def _pending(made: PendingPackage) -> pb.PendingPackage:
    return pb.PendingPackage(
        header=made.header.encode(),
        wrapped_key=made.wrapped,
        interim_mac=made.interim_mac,
        certificate_request=made.certificate_request,
    )


def _channel_keys(keys: ChannelKeys) -> pb.ChannelKeys:
    return pb.ChannelKeys(card_challenge=keys.card_challenge, s_enc=keys.s_enc, s_mac=keys.s_mac, s_rmac=keys.s_rmac)


def _failure(error: ApplianceError) -> pb.Failure:
    facts = {name: str(value) for name, value in error.facts.items()}
    return pb.Failure(reason=error.reason, detail=error.detail, hint=error.hint, field=error.field, facts=facts)
