"""grpc.health.v1: what each service's status is, for whoever asks or watches. No client can hold up a change.

In place of the servicer of grpcio-health-checking, which writes to watchers under the lock that a change needs: one
that does not read would keep the front from stopping.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.domain.setting import SettingError

FOLLOWING: Final = ("appliance.api.v1.IssuanceService", "appliance.api.v1.DeliveryService")
"""Services whose status is the node's readiness."""

Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc_health ships no types
    """Check and Watch; the empty service name serves from the start."""

    def __init__(self) -> None:
        self._statuses = {"": health_pb2.HealthCheckResponse.SERVING}
        self._changed = asyncio.Event()

    def set(self, service: str, status: int) -> None:
        """Sets a `HealthCheckResponse.ServingStatus` and wakes those who watch."""
        self._statuses[service] = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Context) -> Any:  # noqa: N802 (the proto's)
        """The status now, or NOT_FOUND."""
        if request.service not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND, "This service is not served here.")
        return health_pb2.HealthCheckResponse(status=self._statuses[request.service])

    async def Watch(self, request: Any, _context: object) -> AsyncIterator[Any]:  # noqa: N802 (the proto's)
        """The status now and after each change, until the call ends; a slow reader misses what has passed."""
        told = None
        while True:
            changed = self._changed  # before the write: a change during it must not be lost
            status = self._statuses.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            await changed.wait()


@asynccontextmanager
async def serve_locally(health: Health, path: Path) -> AsyncIterator[None]:
    """The same answers, and nothing else, on a Unix socket: for `appliance health`, which has no certificate.

    Raises:
        SettingError: there can be no socket at this path.
    """
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError:
        raise SettingError(
            "appliance.toml: front.health_socket",
            f"There can be no socket at {path}.",
            "Name a path of at most 107 bytes in a directory that only the front's user may write to.",
        ) from None
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)
