"""Stands between the front and one vault: to the front it is the vault, and it can stop an Issue on either side of it.

It ends with its vault: its connections break as the vault's would, and what it held is lost.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import grpc

from appliance.vault.v1 import vault_pb2 as pb

from .programs import WAIT

ISSUE: Final = "/appliance.vault.v1.VaultService/Issue"

FLUSH: Final = 0.5
"""Seconds for the answers of a vault that has ended by itself to reach the front."""


class Gate:
    """A place that every Issue call passes; calls can be stopped here until they are let go or broken off."""

    def __init__(self) -> None:
        self._wanted = 0
        self._standing: list[threading.Event] = []
        self._lock = threading.Lock()

    def stop(self, calls: int = 1) -> None:
        """The next calls, so many, are stopped."""
        with self._lock:
            self._wanted = calls

    @property
    def standing(self) -> tuple[threading.Event, ...]:
        """The calls that stand here, in the order in which they came; one that is set goes on."""
        return tuple(self._standing)

    def pass_through(self, context: grpc.ServicerContext) -> None:
        """Returns at once or, for a call that is stopped, when it has been let go or broken off."""
        go_on = threading.Event()
        with self._lock:
            if not self._wanted or not context.add_callback(go_on.set):
                return
            self._wanted -= 1
            self._standing.append(go_on)
        go_on.wait()
        with self._lock:
            self._standing.remove(go_on)


class Interposer(grpc.GenericRpcHandler):
    """Serves in `directory` under the name of the vault's socket, every method alike: bytes in, bytes out."""

    def __init__(self, vault: Path, directory: Path) -> None:
        self.before, self.after = Gate(), Gate()
        self.forwarded: list[pb.IssueItem] = []
        """Every item that reached the vault."""
        self.answered = 0
        """How many Issue calls the front has the answer to."""
        self._channel = grpc.insecure_channel(f"unix:{vault}")
        self._connected = False
        self._server = grpc.server(ThreadPoolExecutor(16), handlers=[self])
        self._server.add_insecure_port(f"unix:{directory / vault.name}")
        self._server.start()
        self._channel.subscribe(self._follow)

    def end(self) -> None:
        """Breaks all calls and connections off, and removes its socket."""
        self._server.stop(0).wait(WAIT)
        self._channel.close()

    def _follow(self, state: grpc.ChannelConnectivity) -> None:
        if self._connected and state is not grpc.ChannelConnectivity.READY:
            self._server.stop(FLUSH)
        self._connected = state is grpc.ChannelConnectivity.READY

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """On the wire, a call with one message is a stream of one."""
        method = handler_call_details.method
        through = self._issue if method == ISSUE else self._forward
        return grpc.stream_stream_rpc_method_handler(lambda requests, context: through(method, list(requests), context))

    def _issue(self, method: str, requests: list[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self.before.pass_through(context)
        if context.is_active():
            self.forwarded += pb.IssueRequest.FromString(*requests).items
            responses = list(self._forward(method, requests, context))
            self.after.pass_through(context)
            yield from responses
            self.answered += 1

    def _forward(self, method: str, requests: list[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            yield from self._channel.stream_stream(method, bytes, bytes)(iter(requests))
        except grpc.RpcError as error:
            context.set_trailing_metadata(tuple((item.key, item.value) for item in error.trailing_metadata()))
            context.abort(error.code(), error.details() or "")
