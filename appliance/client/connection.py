"""A channel with a client certificate, and calls over it: one kind of error, and repeats only where they are safe.

Every call that makes something carries its request_id, so repeating it after a cut connection makes nothing twice.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import grpc

from appliance.api.status import parse

UNAVAILABLE_PAUSE: Final = 0.5
"""Seconds before a repeat where the server named no other time."""
_OPTIONS: Final = (
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A call is repeated by `call`, which knows when that is wanted, or not at all.
    ("grpc.enable_retries", 0),
)

Request = TypeVar("Request")
Response = TypeVar("Response")


@dataclass(eq=False)
class ApiError(Exception):
    """A call that was refused or failed.

    Args:
        code: status code by its gRPC name, such as "NOT_FOUND".
        reason: name of an ErrorReason without its prefix; "" where no appliance answered.
        detail: what is wrong.
        hint: the way out.
        field: path of the offending field, or "".
        metadata: the values that change from case to case.
        retry_seconds: after so many the same call can succeed; 0 where it cannot.
    """

    code: str
    reason: str
    detail: str
    hint: str
    field: str
    metadata: Mapping[str, str]
    retry_seconds: float

    def __str__(self) -> str:
        return f"{self.code} {self.reason}: {self.detail} {self.hint}".rstrip()


def connect(target: str, ca: Path, certificate: Path, key: Path) -> grpc.aio.Channel:
    """A channel to an appliance; close it after use, or use it as a context.

    Args:
        target: host:port; the server's certificate must be for this host.
        ca: CA of the server's certificate, PEM.
        certificate, key: of this client, PEM.
    """
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), certificate.read_bytes())
    return grpc.aio.secure_channel(target, credentials, options=_OPTIONS)


async def call(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    *,
    timeout: float | None,
    retry_seconds: float,
) -> Response:
    """One answer.

    Args:
        method: of a stub.
        request: sent again as it is.
        timeout: seconds for each sending; None waits for ever.
        retry_seconds: for so long the call is repeated where the server says that this can help, or was not reached.

    Raises:
        ApiError
    """
    until = time.monotonic() + retry_seconds
    while True:
        try:
            return await method(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            failed = ApiError(**parse(error)._asdict())
        pause = failed.retry_seconds or (UNAVAILABLE_PAUSE if failed.code == "UNAVAILABLE" else 0)
        if not pause or time.monotonic() + pause > until:
            raise failed
        await asyncio.sleep(pause)
