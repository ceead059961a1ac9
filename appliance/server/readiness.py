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
from appliance.server.health import FOLLOWING, Health

OPERATIONS: Final = "appliance.api.v1.OperationsService"
PROBE_SECONDS: Final = 1.0
"""How often the ledger is probed, and at most how late a failed commit is told; a change of the vaults is at once."""
PROBE_TIMEOUT: Final = 10.0
"""A ledger that takes longer to answer a probe than it waits for a lock does not answer."""

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
        self._ledger_answers = False
        self._told: bool | None = None

    @property
    def ready(self) -> bool:
        """Whether Issue would be served now."""
        return not self._missing()

    async def follow(self) -> None:
        """Runs until it is cancelled."""
        probing = asyncio.create_task(self._probe())
        try:
            while True:
                self.tell()
                await self._vaults.change(PROBE_SECONDS)
        finally:
            probing.cancel()

    def tell(self) -> None:
        """Sets the health of the following services to what it is now."""
        missing = self._missing()
        ready = not missing
        if self._told == ready:
            return
        if self._told is None:
            self.health.set(OPERATIONS, _STATUS[True])
        self._told = ready
        if ready:
            logs.get().info("ready")
        else:
            logs.get().info("not ready", missing=missing)
        for service in FOLLOWING:
            self.health.set(service, _STATUS[ready])

    def _missing(self) -> list[str]:
        """What an Issue call would need and not find."""
        there = {
            "vault": self._vaults.ready,
            "ledger": self._ledger_answers and self._ledger.commits,
            "time": not self._calls.draining,
        }
        return [name for name, is_there in there.items() if not is_there]

    async def _probe(self) -> None:
        """Beside `follow`, so that a ledger that hangs does not keep the vaults from being followed."""
        last = ""
        while True:
            try:
                async with asyncio.timeout(PROBE_TIMEOUT):
                    await self._ledger.probe()
            except (ApplianceError, TimeoutError) as error:
                self._ledger_answers = False
                told = str(error) or f"no answer within {PROBE_TIMEOUT:g} s"
                if told != last:
                    logs.get().error("ledger does not work", detail=told)
                last = told
            else:
                self._ledger_answers = True
                last = ""
            self.tell()
            await asyncio.sleep(PROBE_SECONDS)
