"""One client class for each role, with the calls that it may make. Every method raises ApiError.

A request carries the request_id that its sender chose: keep it, and send the same again after a failure.
"""

from collections.abc import AsyncIterator
from functools import cached_property
from typing import TYPE_CHECKING, Final, TypeVar

import grpc

from appliance.api.v1 import delivery_pb2, issuance_pb2, operations_pb2
from appliance.api.v1.delivery_pb2_grpc import DeliveryServiceStub
from appliance.api.v1.issuance_pb2_grpc import IssuanceServiceStub
from appliance.api.v1.operations_pb2_grpc import OperationsServiceStub
from appliance.client.connection import call

if TYPE_CHECKING:
    from appliance.api.v1.delivery_pb2_grpc import DeliveryServiceAsyncStub
    from appliance.api.v1.issuance_pb2_grpc import IssuanceServiceAsyncStub
    from appliance.api.v1.operations_pb2_grpc import OperationsServiceAsyncStub

DEFAULT_TIMEOUT: Final = 30.0
"""Seconds; an RSA key takes a second, a queue of them more."""

Request = TypeVar("Request")
Response = TypeVar("Response")


class _Client:
    """Calls over one channel.

    Args:
        channel: of `connect`.
        timeout: seconds for each sending of a call.
        retry_seconds: for so long a call is repeated, as it is, where that can help; 0: never.
    """

    def __init__(
        self, channel: grpc.aio.Channel, *, timeout: float = DEFAULT_TIMEOUT, retry_seconds: float = 0.0
    ) -> None:
        self._channel = channel
        self._timeout = timeout
        self._retry_seconds = retry_seconds

    async def _call(self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
        return await call(method, request, timeout=self._timeout, retry_seconds=self._retry_seconds)


class IssuerClient(_Client):
    """The issuer role: IssuanceService."""

    async def issue(self, request: issuance_pb2.IssueRequest) -> issuance_pb2.Issuance:
        """The issuance that the request makes, as it was when its key was made: READY, or AWAITING_CERTIFICATE."""
        return (await self._call(self._stub.Issue, request)).issuance

    async def submit_certificate(self, request: issuance_pb2.SubmitCertificateRequest) -> issuance_pb2.Issuance:
        """The issuance that the external CA's certificate has completed."""
        return (await self._call(self._stub.SubmitCertificate, request)).issuance

    async def get_issuance(self, request: issuance_pb2.GetIssuanceRequest) -> issuance_pb2.Issuance:
        """The issuance as it stands now."""
        return (await self._call(self._stub.GetIssuance, request)).issuance

    async def list_issuances(self, request: issuance_pb2.ListIssuancesRequest) -> AsyncIterator[issuance_pb2.Issuance]:
        """Issuances, oldest first, fetched page by page; `request` is left as it was."""
        wanted = issuance_pb2.ListIssuancesRequest()
        wanted.CopyFrom(request)
        while True:
            page = await self._call(self._stub.ListIssuances, wanted)
            for issuance in page.issuances:
                yield issuance
            wanted.page_token = page.next_page_token
            if not wanted.page_token:
                return

    async def abandon(self, request: issuance_pb2.AbandonRequest) -> issuance_pb2.Issuance:
        """The ended issuance."""
        return (await self._call(self._stub.Abandon, request)).issuance

    @cached_property
    def _stub(self) -> "IssuanceServiceAsyncStub":
        return IssuanceServiceStub(self._channel)


class TsmClient(_Client):
    """The tsm role: DeliveryService."""

    async def fetch_script(self, request: delivery_pb2.FetchScriptRequest) -> delivery_pb2.FetchScriptResponse:
        """The script for one value of the SIM's sequence counter."""
        return await self._call(self._stub.FetchScript, request)

    async def report_receipt(self, request: delivery_pb2.ReportReceiptRequest) -> issuance_pb2.Issuance:
        """The ACTIVE issuance, after the receipt was verified that came alone or with a played script."""
        return (await self._call(self._stub.ReportReceipt, request)).issuance

    @cached_property
    def _stub(self) -> "DeliveryServiceAsyncStub":
        return DeliveryServiceStub(self._channel)


class OperatorClient(_Client):
    """The operator role: OperationsService."""

    async def status(self) -> operations_pb2.GetStatusResponse:
        """The state of the node."""
        return await self._call(self._stub.GetStatus, operations_pb2.GetStatusRequest())

    @cached_property
    def _stub(self) -> "OperationsServiceAsyncStub":
        return OperationsServiceStub(self._channel)
