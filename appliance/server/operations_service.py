"""OperationsService of operations.proto."""

from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from appliance.api.v1 import operations_pb2 as pb
from appliance.api.v1.operations_pb2_grpc import OperationsServiceServicer
from appliance.domain.keyset import SimIssuer
from appliance.issuing.vaults import Vaults
from appliance.ledger import Ledger
from appliance.server.calls import Calls
from appliance.server.identity import Identity
from appliance.server.readiness import Readiness
from appliance.vault.v1 import vault_pb2

Context = grpc.aio.ServicerContext[Any, Any]


class OperationsService(OperationsServiceServicer):
    """For the operator role; never waits for the HSM."""

    def __init__(
        self,
        vaults: Vaults,
        ledger: Ledger,
        calls: Calls,
        readiness: Readiness,
        identity: Identity,
        issuers: Mapping[str, SimIssuer],
        started: datetime,
    ) -> None:
        self._vaults = vaults
        self._ledger = ledger
        self._calls = calls
        self._readiness = readiness
        self._identity = identity
        self._states = {
            (issuer.name, key_set.kvn): key_set.state for issuer in issuers.values() for key_set in issuer.key_sets
        }
        self._start_time = Timestamp()
        self._start_time.FromDatetime(started)

    async def GetStatus(  # noqa: N802 (the proto's)
        self, _request: pb.GetStatusRequest, _context: Context
    ) -> pb.GetStatusResponse:
        """See operations.proto."""
        ledger = await self._ledger.status()
        certificate_end = Timestamp()
        certificate_end.FromDatetime(self._identity.not_after)
        return pb.GetStatusResponse(
            version=_version(),
            ready=self._readiness.ready,
            draining=self._calls.draining,
            start_time=self._start_time,
            vaults=map(self._vault, self._vaults.status()),
            ledger=pb.LedgerStatus(
                schema_version=ledger.schema_version, issuances=ledger.issuances, audit_entries=ledger.audit_entries
            ),
            certificate_end_time=certificate_end,
        )

    def _vault(self, status: vault_pb2.GetStatusResponse) -> pb.VaultStatus:
        age = Duration()
        age.FromMilliseconds(status.current_call_milliseconds)
        return pb.VaultStatus(
            vault=status.vault,
            module=status.module,
            token_label=status.token_label,
            token_serial=status.token_serial,
            queue_length=status.queue_length,
            queue_capacity=status.queue_capacity,
            current_call=status.current_call,
            current_call_age=age,
            key_sets=map(self._key_set, status.key_sets),
            items_done=status.items_done,
        )

    def _key_set(self, key_set: vault_pb2.KeySet) -> pb.KeySetStatus:
        return pb.KeySetStatus(
            name=f"simIssuers/{key_set.sim_issuer}/keySets/{key_set.kvn}",
            state=self._states.get((key_set.sim_issuer, key_set.kvn), ""),
            bind_kcv=key_set.bind_kcv.hex().upper(),
            chan_kcv=key_set.chan_kcv.hex().upper(),
        )


def _version() -> str:
    try:
        return version("jpki-sim-appliance")
    except PackageNotFoundError:  # run from a source tree
        return "unreleased"
