"""Errors on the wire: the one place that turns an `ApplianceError` into a `google.rpc.Status`, and back.

A status carries the code of its reason, exactly one ErrorInfo (domain "appliance"; metadata: the error's facts and its
hint), a BadRequest where a field is at fault, and a RetryInfo where the same call can succeed later (AIP-193).
"""

from typing import Any, NamedTuple, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from appliance.errors import REASONS, ApplianceError

DOMAIN = "appliance"
_HINT = "hint"  # cannot be a fact: it is a parameter of ApplianceError


class ParsedError(NamedTuple):
    """What a caller gets to know about a failed call; `reason` is "" where the error did not come from an appliance."""

    code: str
    reason: str
    detail: str
    hint: str = ""
    field: str = ""
    metadata: dict[str, str] = {}  # noqa: RUF012 (never changed)
    retry_seconds: float = 0.0


def to_status(error: ApplianceError) -> Status:
    """The wire form of an error."""
    rule = REASONS[error.reason]
    status = Status(code=code_pb2.Code.Value(rule.code), message=error.detail)
    metadata = {name: str(value) for name, value in error.facts.items()} | {_HINT: error.hint}
    status.details.add().Pack(ErrorInfo(domain=DOMAIN, reason=error.reason, metadata=metadata))
    if error.field:
        violation = BadRequest.FieldViolation(field=error.field, description=error.detail)
        status.details.add().Pack(BadRequest(field_violations=[violation]))
    if rule.retry_seconds:
        delay = Duration()
        delay.FromNanoseconds(round(rule.retry_seconds * 1e9))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    return status


def parse_status(status: Status) -> ParsedError:
    """Reads a status, whoever wrote it."""
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in status.details:
        for wanted in (info, bad, retry):
            detail.Unpack(wanted)
    ours = info.domain == DOMAIN
    metadata = dict(info.metadata)
    return ParsedError(
        code=code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN",
        reason=info.reason if ours else "",
        detail=status.message,
        hint=metadata.pop(_HINT, "") if ours else "",
        field=bad.field_violations[0].field if bad.field_violations else "",
        metadata=metadata,
        retry_seconds=retry.retry_delay.ToNanoseconds() / 1e9,
    )


def parse(error: grpc.RpcError) -> ParsedError:
    """Reads the error of a failed call, of `grpc` or `grpc.aio`."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # code or message differ from the status inside: somebody between changed them
        status = None
    if status is not None:
        return parse_status(status)
    return ParsedError(code=error.code().name, reason="", detail=error.details() or "")


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: ApplianceError) -> NoReturn:
    """Ends a call with this error."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
