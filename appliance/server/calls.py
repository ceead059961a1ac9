"""What holds for every call: identity and role first, then size, drain and load; its errors; its line in the log.

Every error leaves as one status of the error model. A defect leaves as INTERNAL, with nothing of its exception but the
request id under which the log has it.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from appliance import logs
from appliance.api.status import abort
from appliance.config import Client
from appliance.domain.request import validate_request_id
from appliance.errors import REASONS, ApplianceError, Code, Reason
from appliance.server.access import ACCESS, HEALTH, authorise, identify

MAX_REQUEST: Final = 64 * 1024
"""Bytes; ten times the largest request that breaks no rule. gRPC itself stops reading at 4 MiB."""
MAX_STREAMS: Final = 256
"""Health watches and reflections at once; one for each connection of many clients. They last as long as a client likes,
so they are counted apart from the calls, whose places they would keep."""
_OURS: Final = frozenset({Code.INTERNAL, Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED})
"""Errors that are no fault of the client: the log has their detail too."""

Handler = Any  # grpc's types know the handlers of threaded servers alone
Context = grpc.aio.ServicerContext[Any, Any]


class Calls(grpc.aio.ServerInterceptor):
    """Wraps every method's handler.

    Args:
        clients: those that may connect, by URI.
        max_concurrent: calls in work at once; more are refused.
    """

    def __init__(self, clients: Mapping[str, Client], *, max_concurrent: int) -> None:
        self.draining = False
        self._clients = clients
        self._max_concurrent = max_concurrent
        self._in_work = 0
        self._streams = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler with its guard; for a method outside the table, the guard alone."""
        method = handler_call_details.method
        handler = await continuation(handler_call_details) if method in ACCESS else None
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._refuse(method))
        if handler.unary_unary:
            answer = self._answer(method, handler)
            return grpc.unary_unary_rpc_method_handler(answer, response_serializer=handler.response_serializer)
        kind, behaviour = (
            (grpc.unary_stream_rpc_method_handler, handler.unary_stream)
            if handler.unary_stream
            else (grpc.stream_stream_rpc_method_handler, handler.stream_stream)
        )
        return kind(self._stream(method, behaviour), handler.request_deserializer, handler.response_serializer)

    async def drain(self, seconds: float) -> None:
        """Refuses new calls and returns when those in work have ended, or after `seconds`."""
        self.draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            logs.get().warning("calls cut off", count=self._in_work)

    def _answer(self, method: str, handler: Handler) -> Callable[[bytes, Context], Awaitable[Any]]:
        async def answer(raw: bytes, context: Context) -> Any:
            async with self._call(method, context):
                request = _read(handler, raw)
                logs.bind(request_id=_request_id(request))
                if method.startswith(HEALTH):
                    return await handler.unary_unary(request, context)
                with self._work():
                    return await handler.unary_unary(request, context)

        return answer

    def _stream(self, method: str, behaviour: Callable[[Any, Context], Any]) -> Callable[[Any, Context], Any]:
        async def stream(request: Any, context: Context) -> None:
            async with self._call(method, context):
                with self._streaming():
                    responses = behaviour(request, context)
                    if isinstance(responses, AsyncIterator):
                        async for response in responses:
                            await context.write(response)
                    else:
                        await responses

        return stream

    def _refuse(self, method: str) -> Callable[[Any, Context], Awaitable[None]]:
        async def refuse(_: Any, context: Context) -> None:
            async with self._call(method, context):
                raise AssertionError("a method outside the table was authorised")

        return refuse

    @asynccontextmanager
    async def _call(self, method: str, context: Context) -> AsyncIterator[None]:
        started = time.monotonic()
        line: dict[str, str] = {"method": method, "outcome": "OK"}
        try:
            caller = identify(context.auth_context(), self._clients)
            line["client"] = caller.uri
            authorise(method, caller)
            yield
        except ApplianceError as error:
            line |= _told(error)
            await abort(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError) as ended:
            line["outcome"] = "CANCELLED" if isinstance(ended, asyncio.CancelledError) else "ABORTED"
            raise
        except Exception:  # noqa: BLE001 (the door: nothing of a defect may reach the client)
            logs.get().exception("defect")
            line |= _told(_defect())
            await abort(context, _defect())
        finally:
            if not (method.startswith(HEALTH) and line["outcome"] in {"OK", "CANCELLED"}):
                logs.get().info("call", **line, seconds=round(time.monotonic() - started, 4))

    @contextmanager
    def _work(self) -> Iterator[None]:
        if self.draining:
            raise ApplianceError(
                Reason.DRAINING, "This node is stopping.", hint="Send the same call to another node, or here later."
            )
        if self._in_work >= self._max_concurrent:
            raise _busy(f"{self._in_work} calls in work")
        self._in_work += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_work -= 1
            if not self._in_work:
                self._idle.set()

    @contextmanager
    def _streaming(self) -> Iterator[None]:
        if self._streams >= MAX_STREAMS:
            raise _busy(f"{self._streams} streams")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


def _busy(having: str) -> ApplianceError:
    return ApplianceError(
        Reason.NODE_BUSY,
        f"This node has {having} and takes no more.",
        hint="Send the same call again a little later.",
    )


def _read(handler: Handler, raw: bytes) -> Any:
    if len(raw) > MAX_REQUEST:
        raise ApplianceError(
            Reason.MESSAGE_TOO_LARGE,
            f"The request has {len(raw)} bytes; {MAX_REQUEST} are accepted.",
            hint="No request needs as much; keep to the limits of its fields.",
            limit=MAX_REQUEST,
        )
    try:
        return handler.request_deserializer(raw)
    except DecodeError:
        raise ApplianceError(
            Reason.FIELD_INVALID,
            "The request is not a message of this method.",
            hint="Generate the client from the published proto files.",
        ) from None


def _request_id(request: Any) -> str:
    """The client's own id where it has the form of one, so that nothing else gets into the log."""
    try:
        return validate_request_id(getattr(request, "request_id", ""))
    except ApplianceError:
        return str(uuid.uuid4())


def _told(error: ApplianceError) -> dict[str, str]:
    told = {"outcome": str(error.reason)}
    if error.field:
        told["field"] = error.field
    if REASONS[error.reason].code in _OURS:
        told["detail"] = error.detail
    return told


def _defect() -> ApplianceError:
    return ApplianceError(
        Reason.INTERNAL,
        "The appliance has a defect.",
        hint="Tell the operator the request_id; the log has it.",
        request_id=logs.bound("request_id"),
    )
