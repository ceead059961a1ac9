"""Readiness: whether this node would serve an Issue call now, for operators and for grpc.health.v1.

The services that need vault and ledger follow them; the empty service name is liveness, and serves while the process
does.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from grpc_health.v1 import health_pb2

from appliance import logs
from appliance.errors import ApplianceError
from appliance.issuing.vaults import Vaults
from appliance.ledger import Ledger
from appliance.server.calls import Calls
from appliance.server.health import Health

FOLLOWING: Final = ("appliance.api.v1.IssuanceService", "appliance.api.v1.DeliveryService")
OPERATIONS: Final = "appliance.api.v1.OperationsService"
PROBE_SECONDS: Final = 1.0
"""How often the ledger is read; a change of the vaults is seen at once."""

_STATUS: Final[Mapping[bool, int]] = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}


class Readiness:
    """Follows vaults, ledger and drain."""

    def __init__(self, vaults: Vaults, ledger: Ledger, calls: Calls) -> None:
        self.health = Health()
        self._vaults = vaults
        self._ledger = ledger
        self._calls = calls
        self._ledger_reads = False
        self._told: bool | None = None

    @property
    def ready(self) -> bool:
        """Whether Issue would be served now."""
        return self._vaults.ready and self._ledger_reads and not self._calls.draining

    async def follow(self) -> None:
        """Runs until it is cancelled."""
        clock = asyncio.get_running_loop().time
        probe_at = clock()
        while True:
            if clock() >= probe_at:
                self._ledger_reads = await self._probe()
                probe_at = clock() + PROBE_SECONDS
            self.tell()
            await self._vaults.change(PROBE_SECONDS)

    def tell(self) -> None:
        """Sets the health of the following services to what it is now."""
        if self._told == self.ready:
            return
        if self._told is None:
            self.health.set(OPERATIONS, _STATUS[True])
        self._told = self.ready
        logs.get().info("ready" if self.ready else "not ready")
        for service in FOLLOWING:
            self.health.set(service, _STATUS[self.ready])

    async def _probe(self) -> bool:
        try:
            await self._ledger.list(page_size=1)
        except ApplianceError:
            return False
        return True
