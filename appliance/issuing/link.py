"""The front's link to one incarnation of a vault: its channel, its last status, and how many items are on their way.

Of `issuing` only this module calls: what leaves it is a response, an ApplianceError or VaultLost.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from pathlib import Path
from typing import Final, TypeVar

import grpc

from appliance import logs
from appliance.api.status import parse
from appliance.errors import ApplianceError, Reason
from appliance.vault.v1 import vault_pb2 as pb
from appliance.vault.v1.vault_pb2_grpc import VaultServiceStub

STATUS_SECONDS: Final = 0.5
STATUS_TIMEOUT: Final = 2.0
CALL_TIMEOUT: Final = 180.0
"""Longer than a full queue of RSA keys takes and than any module call may: the supervisor ends a vault that hangs."""

_CHANNEL_OPTIONS: Final = (
    # After a long outage a channel must come back as fast as a vault does.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # An attempt reaches a vault once; whether it is tried again, the ledger decides.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
NOT_TAKEN: Final = frozenset({Reason.VAULTS_BUSY, Reason.DRAINING})
"""With these a vault says that it has not touched the item: another one may have it unchanged."""

T = TypeVar("T")


class VaultLost(Exception):  # noqa: N818 (an event that the use case handles, not an error that anybody is shown)
    """The vault went away with the item in hand; how far it came, nobody knows."""


class Link:
    """One incarnation of a vault; `status` is None while it does not answer."""

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self.name = path.stem
        self.status: pb.GetStatusResponse | None = None
        self.in_flight = 0
        self._foreign = 0
        self.changed = changed
        self._channel = grpc.aio.insecure_channel(f"unix:{path}", options=_CHANNEL_OPTIONS)
        self.stub = VaultServiceStub(self._channel)
        self._watching = asyncio.create_task(self._watch())

    @property
    def serving(self) -> bool:
        """Whether an item may be sent: a broken connection shows here before the next status does."""
        return self.status is not None and self._channel.get_state() is grpc.ChannelConnectivity.READY

    @property
    def capacity(self) -> int:
        """How many items of this front it takes at once: others' were counted at the last look."""
        return max(0, self.status.queue_capacity - self._foreign) if self.status and self.serving else 0

    @property
    def load(self) -> int:
        """Items that are there already."""
        return self._foreign + self.in_flight

    @property
    def room(self) -> int:
        """How many more items it takes."""
        return self.capacity - self.in_flight

    def full(self) -> None:
        """Send nothing more until the next look."""
        self._foreign = self.status.queue_capacity if self.status else 0

    def lost(self) -> None:
        """Send nothing more until it answers again."""
        self.status = None

    async def close(self) -> None:
        """Ends the link; calls under way finish or break by themselves."""
        self._watching.cancel()
        self.status = None
        await self._channel.close(grace=CALL_TIMEOUT)

    async def _watch(self) -> None:
        while True:
            served = self.serving
            try:
                status = await self.stub.GetStatus(pb.GetStatusRequest(), timeout=STATUS_TIMEOUT)
            except grpc.aio.AioRpcError:
                self.status = None
            else:
                self._foreign = max(0, status.queue_length - self.in_flight)
                self.status = status
            if served != self.serving:
                logs.get().info("vault serves" if self.serving else "vault does not answer", vault=self.name)
            self.changed()
            await asyncio.sleep(STATUS_SECONDS)


async def responses(call: AsyncIterable[T]) -> AsyncIterator[T]:
    """What a vault streams.

    Raises:
        VaultLost, ApplianceError: the call ended with it.
    """
    try:
        async for response in call:
            yield response
    except grpc.aio.AioRpcError as error:
        parsed = parse(error)
        if parsed.reason not in Reason.__members__:
            raise VaultLost from None
        raise ApplianceError(
            Reason(parsed.reason), parsed.detail, hint=parsed.hint, field=parsed.field, **parsed.metadata
        ) from None


def refusal(failure: pb.Failure) -> ApplianceError:
    """What became of an item that failed."""
    if failure.reason not in Reason.__members__:
        hint = "Vault and front are of different versions."
        return ApplianceError(Reason.INTERNAL, failure.detail, hint=hint, said=failure.reason)
    facts = dict(failure.facts)
    return ApplianceError(Reason(failure.reason), failure.detail, hint=failure.hint, field=failure.field, **facts)
