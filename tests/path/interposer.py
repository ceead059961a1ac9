"""Stands between the front and one vault: to the front it is the vault, and it can stop an Issue on either side of it.

It ends with its vault: its connections break as the vault's would, and what it held is lost.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc

from appliance.vault.v1 import vault_pb2 as pb
from appliance.vault.v1.vault_pb2_grpc import (
    VaultServiceServicer,
    VaultServiceStub,
    add_VaultServiceServicer_to_server,
)

from .programs import WAIT

T = TypeVar("T")


class Gate:
    """A place that every Issue call passes; one call can be stopped here, and stands until somebody breaks it off."""

    def __init__(self) -> None:
        self._armed = False
        self._standing = threading.Event()

    @contextmanager
    def armed(self) -> Iterator["Gate"]:
        """The next call is stopped."""
        self._standing.clear()
        self._armed = True
        try:
            yield self
        finally:
            self._armed = False

    def wait(self) -> None:
        """Returns when a call stands here."""
        assert self._standing.wait(WAIT), "no call came to the gate"

    def pass_through(self, context: grpc.ServicerContext) -> None:
        """Returns at once, or, where the gate is armed, when the call has been broken off."""
        if self._armed:
            self._armed = False
            broken = threading.Event()
            if context.add_callback(broken.set):
                self._standing.set()
                broken.wait()


class Interposer(VaultServiceServicer):
    """Serves in `directory` under the name of the vault's socket."""

    def __init__(self, vault: Path, directory: Path) -> None:
        self.before, self.after = Gate(), Gate()
        self.forwarded: list[pb.IssueItem] = []
        """Every item that reached the vault."""
        self._channel = grpc.insecure_channel(f"unix:{vault}")
        self._vault = VaultServiceStub(self._channel)
        self._server = grpc.server(ThreadPoolExecutor(16))
        add_VaultServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{directory / vault.name}")
        self._server.start()

    def end(self) -> None:
        """Breaks all calls and connections off, and removes its socket."""
        self._server.stop(0).wait(WAIT)
        self._channel.close()

    def Issue(self, request: pb.IssueRequest, context: grpc.ServicerContext) -> Iterator[pb.IssueResponse]:  # noqa: N802 (the proto's)
        """Past both gates."""
        self.before.pass_through(context)
        if not context.is_active():
            return
        self.forwarded += request.items
        responses = _forward(context, lambda: list(self._vault.Issue(request)))
        self.after.pass_through(context)
        yield from responses

    def OpenChannels(  # noqa: N802 (the proto's)
        self, request: pb.OpenChannelsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.OpenChannelsResponse]:
        """As it is."""
        yield from _forward(context, lambda: list(self._vault.OpenChannels(request)))

    def VerifyReceipts(  # noqa: N802 (the proto's)
        self, request: pb.VerifyReceiptsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.VerifyReceiptsResponse]:
        """As it is."""
        yield from _forward(context, lambda: list(self._vault.VerifyReceipts(request)))

    def GetStatus(  # noqa: N802 (the proto's)
        self, request: pb.GetStatusRequest, context: grpc.ServicerContext
    ) -> pb.GetStatusResponse:
        """As it is."""
        return _forward(context, lambda: self._vault.GetStatus(request))


def _forward(context: grpc.ServicerContext, call: Callable[[], T]) -> T:
    try:
        return call()
    except grpc.RpcError as error:
        _pass_on(context, error)


def _pass_on(context: grpc.ServicerContext, error: Any) -> NoReturn:
    context.set_trailing_metadata(error.trailing_metadata())
    context.abort(error.code(), error.details())
    raise AssertionError("abort raises")
