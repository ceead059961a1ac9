"""IssuanceService of issuance.proto."""

from typing import Any, Final

import grpc

from appliance.api.v1 import issuance_pb2 as pb
from appliance.api.v1.issuance_pb2_grpc import IssuanceServiceServicer
from appliance.domain.request import validate_issuance_name
from appliance.errors import ApplianceError, Reason
from appliance.issuing.certification import Certification
from appliance.issuing.issue import Issuing
from appliance.issuing.lifecycle import Lifecycle
from appliance.ledger import Ledger
from appliance.server import messages
from appliance.server.access import current_caller

DEFAULT_PAGE: Final = 50
MAX_PAGE: Final = 1000

Context = grpc.aio.ServicerContext[Any, Any]


class IssuanceService(IssuanceServiceServicer):
    """For the issuer role."""

    def __init__(self, issuing: Issuing, certification: Certification, lifecycle: Lifecycle, ledger: Ledger) -> None:
        self._issuing = issuing
        self._certification = certification
        self._lifecycle = lifecycle
        self._ledger = ledger

    async def Issue(self, request: pb.IssueRequest, context: Context) -> pb.IssueResponse:  # noqa: N802 (the proto's)
        """See issuance.proto."""
        fields = messages.requested_issue(request)
        if request.validate_only:
            return pb.IssueResponse(issuance=messages.preview(self._issuing.check(fields)))
        answer = await self._issuing.issue(current_caller().uri, fields, context.time_remaining())
        return pb.IssueResponse.FromString(answer)

    async def SubmitCertificate(  # noqa: N802 (the proto's)
        self, request: pb.SubmitCertificateRequest, _context: Context
    ) -> pb.SubmitCertificateResponse:
        """See issuance.proto."""
        answer = await self._certification.submit(
            current_caller().uri, request.request_id, request.name, request.certificate
        )
        return pb.SubmitCertificateResponse.FromString(answer)

    async def GetIssuance(  # noqa: N802 (the proto's)
        self, request: pb.GetIssuanceRequest, _context: Context
    ) -> pb.GetIssuanceResponse:
        """See issuance.proto."""
        if request.view not in pb.IssuanceView.values():
            raise _invalid("view", f"View {request.view} is not known.", "Use a value of IssuanceView.")
        record = await self._ledger.get(validate_issuance_name(request.name, "name"))
        with_package = request.view == pb.ISSUANCE_VIEW_WITH_PACKAGE
        return pb.GetIssuanceResponse(issuance=messages.issuance(record, with_package=with_package))

    async def ListIssuances(  # noqa: N802 (the proto's)
        self, request: pb.ListIssuancesRequest, _context: Context
    ) -> pb.ListIssuancesResponse:
        """See issuance.proto."""
        if not 0 <= request.page_size <= MAX_PAGE:
            raise _invalid(
                "page_size",
                f"A page of {request.page_size} issuances is not possible.",
                f"Ask for 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}.",
            )
        records, next_token = await self._ledger.list(
            page_size=request.page_size or DEFAULT_PAGE,
            page_token=request.page_token,
            person_id=request.person_id,
            state=messages.requested_state(request.state),
        )
        return pb.ListIssuancesResponse(issuances=map(messages.issuance, records), next_page_token=next_token)

    async def Abandon(self, request: pb.AbandonRequest, _context: Context) -> pb.AbandonResponse:  # noqa: N802 (the proto's)
        """See issuance.proto."""
        answer = await self._lifecycle.abandon(current_caller().uri, request.request_id, request.name)
        return pb.AbandonResponse.FromString(answer)


def _invalid(field: str, detail: str, hint: str) -> ApplianceError:
    return ApplianceError(Reason.FIELD_INVALID, detail, hint=hint, field=field)
