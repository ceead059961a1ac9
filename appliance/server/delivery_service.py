"""DeliveryService of delivery.proto."""

from typing import Any

import grpc

from appliance.apdu.engine import Form
from appliance.api.v1 import delivery_pb2 as pb
from appliance.api.v1.delivery_pb2_grpc import DeliveryServiceServicer
from appliance.issuing.delivery import Delivery
from appliance.server import messages
from appliance.server.access import current_caller

Context = grpc.aio.ServicerContext[Any, Any]


class DeliveryService(DeliveryServiceServicer):
    """For the tsm role; a caller sees what its SIM issuers' SIMs are to get."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    async def FetchScript(  # noqa: N802 (the proto's)
        self, request: pb.FetchScriptRequest, _context: Context
    ) -> pb.FetchScriptResponse:
        """See delivery.proto."""
        caller, form = current_caller(), messages.requested_form(request.form)
        record, written = await self._delivery.fetch_script(
            caller.uri,
            caller.sim_issuers,
            request.request_id,
            request.issuance,
            request.sequence_counter,
            (Form.COMMANDS, form),
        )
        return messages.script(record, request.sequence_counter, written)

    async def ReportReceipt(  # noqa: N802 (the proto's)
        self, request: pb.ReportReceiptRequest, _context: Context
    ) -> pb.ReportReceiptResponse:
        """See delivery.proto."""
        caller = current_caller()
        answer = await self._delivery.report_receipt(
            caller.uri, caller.sim_issuers, request.request_id, request.issuance, messages.requested_proof(request)
        )
        return pb.ReportReceiptResponse.FromString(answer)
