"""Errors on the wire, over a real grpc.aio server and in memory."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from appliance.api.status import DOMAIN, abort, parse, parse_status, to_status
from appliance.errors import REASONS, ApplianceError, Reason

ERROR = ApplianceError(
    Reason.ICCID_INVALID, "The check digit is 3.", hint="Give the printed digits.", field="iccid", length=19, digit="3"
)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_survives_the_wire(reason: Reason) -> None:
    error = ApplianceError(reason, "What.", hint="How.", field="a.b", fact="x")
    status = Status.FromString(to_status(error).SerializeToString())
    again = parse_status(status)
    assert (again.reason, again.detail, again.hint, again.field, again.metadata) == (
        reason, "What.", "How.", "a.b", {"fact": "x"},
    )  # fmt: skip
    assert again.code == REASONS[reason].code
    assert sum(detail.Is(ErrorInfo.DESCRIPTOR) for detail in status.details) == 1
    retries = [detail for detail in status.details if detail.Is(RetryInfo.DESCRIPTOR)]
    assert len(retries) == (1 if REASONS[reason].retry_seconds else 0)


def test_bad_request_stands_only_where_a_field_is_at_fault() -> None:
    def has_bad_request(error: ApplianceError) -> bool:
        return any(detail.Is(BadRequest.DESCRIPTOR) for detail in to_status(error).details)

    assert has_bad_request(ERROR)
    assert not has_bad_request(ApplianceError(Reason.INTERNAL, "x", hint="y"))


def test_a_status_of_another_origin_has_no_reason() -> None:
    parsed = parse_status(Status(code=code_pb2.NOT_FOUND, message="no such bucket"))
    assert (parsed.code, parsed.reason, parsed.detail) == ("NOT_FOUND", "", "no such bucket")


class Refusing(grpc.GenericRpcHandler):
    """Answers every method with `ERROR`, but /plain with an error that is not the appliance's."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        async def handle(_request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            if handler_call_details.method == "/plain":
                await context.abort(grpc.StatusCode.NOT_FOUND, "plain")
            await abort(context, ERROR)

        return grpc.unary_unary_rpc_method_handler(handle)


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[str]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Refusing(),))
    target = f"unix:{tmp_path}/s"
    server.add_insecure_port(target)
    await server.start()
    yield target
    await server.stop(0)


async def failure_of(target: str, method: str) -> grpc.RpcError:
    async with grpc.aio.insecure_channel(target) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        with pytest.raises(grpc.RpcError) as caught:
            await call(b"")
    return caught.value


async def test_an_aborted_call_is_parsed_with_all_its_details(target: str) -> None:
    assert parse(await failure_of(target, "/any"))._asdict() == {
        "code": "INVALID_ARGUMENT",
        "reason": "ICCID_INVALID",
        "detail": "The check digit is 3.",
        "hint": "Give the printed digits.",
        "field": "iccid",
        "metadata": {"length": "19", "digit": "3"},
        "retry_seconds": 0.0,
    }


async def test_an_error_without_details_is_parsed_too(target: str) -> None:
    assert parse(await failure_of(target, "/plain"))[:3] == ("NOT_FOUND", "", "plain")


def test_the_domain_is_the_published_one() -> None:
    info = ErrorInfo()
    assert to_status(ERROR).details[0].Unpack(info)
    assert info.domain == DOMAIN == "appliance"
