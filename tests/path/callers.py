"""Clients of the public API, each with one channel that retries nothing, so that a test sees what the server did."""

import secrets
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.api import status
from appliance.api.v1 import delivery_pb2, issuance_pb2, operations_pb2
from appliance.api.v1.delivery_pb2_grpc import DeliveryServiceStub
from appliance.api.v1.issuance_pb2_grpc import IssuanceServiceStub
from appliance.api.v1.operations_pb2_grpc import OperationsServiceStub
from appliance.demo import published
from appliance.domain.sim import Iccid, luhn_check_digit

from .programs import WAIT

ISSUANCE_SERVICE: Final = "appliance.api.v1.IssuanceService"
_ISSUE: Final = f"/{ISSUANCE_SERVICE}/Issue"
_OPTIONS: Final = (
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # A front that was killed is there again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


class Caller:
    """One client.

    Args:
        target: host:port.
        ca, certificate, key: PEM files.
    """

    def __init__(self, target: str, ca: Path, certificate: Path, key: Path) -> None:
        identity = grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), certificate.read_bytes())
        self.channel = grpc.secure_channel(target, identity, options=_OPTIONS)

    def close(self) -> None:
        """Ends the connection."""
        self.channel.close()

    def watch_connection(self) -> list[grpc.ChannelConnectivity]:
        """Every state that its connection is in from now on, in a list that grows."""
        states: list[grpc.ChannelConnectivity] = []
        self.channel.subscribe(states.append)
        return states

    def wait_ready(self) -> None:
        """Returns when the server says that it would serve an Issue call."""
        watched = health_pb2.HealthCheckRequest(service=ISSUANCE_SERVICE)
        stub = health_pb2_grpc.HealthStub(self.channel)
        for health in stub.Watch(watched, timeout=WAIT, wait_for_ready=True):
            if health.status == health_pb2.HealthCheckResponse.SERVING:
                return

    def begin_issue(self, request: issuance_pb2.IssueRequest) -> Any:
        """An Issue call under way: `result()` is the answer's bytes as they came, or raises grpc.RpcError."""
        issue = self.channel.unary_unary(
            _ISSUE, request_serializer=issuance_pb2.IssueRequest.SerializeToString, response_deserializer=bytes
        )
        return issue.future(request, timeout=WAIT)

    def issue(self, request: issuance_pb2.IssueRequest) -> bytes:
        """The answer to Issue as it came."""
        return bytes(self.begin_issue(request).result())

    def get(self, name: str, *, with_package: bool = False) -> issuance_pb2.Issuance:
        """The issuance as it stands."""
        view = issuance_pb2.ISSUANCE_VIEW_WITH_PACKAGE if with_package else issuance_pb2.ISSUANCE_VIEW_BASIC
        request = issuance_pb2.GetIssuanceRequest(name=name, view=view)
        return IssuanceServiceStub(self.channel).GetIssuance(request, timeout=WAIT).issuance

    def fetch_script(self, name: str, sequence_counter: int = 1) -> delivery_pb2.FetchScriptResponse:
        """The delivery script."""
        request = delivery_pb2.FetchScriptRequest(
            request_id=str(uuid.uuid4()), issuance=name, sequence_counter=sequence_counter
        )
        return DeliveryServiceStub(self.channel).FetchScript(request, timeout=WAIT)

    def report_receipt(self, name: str, receipt: bytes) -> issuance_pb2.Issuance:
        """The issuance after its receipt."""
        request = delivery_pb2.ReportReceiptRequest(request_id=str(uuid.uuid4()), issuance=name, receipt=receipt)
        return DeliveryServiceStub(self.channel).ReportReceipt(request, timeout=WAIT).issuance

    def status(self) -> operations_pb2.GetStatusResponse:
        """The state of the node."""
        return OperationsServiceStub(self.channel).GetStatus(operations_pb2.GetStatusRequest(), timeout=WAIT)


def issue_request(key_type: int, **changes: Any) -> issuance_pb2.IssueRequest:
    """A request for a new person with a new SIM, with these changes."""
    digits = f"898199{secrets.randbelow(10**12):012d}"
    end = datetime.now(UTC) + timedelta(days=5 * 365)
    request = issuance_pb2.IssueRequest(
        request_id=str(uuid.uuid4()),
        person_id=str(uuid.uuid4()),
        subject_common_name=secrets.token_hex(12).upper(),
        sim_issuer=f"simIssuers/{published.SIM_ISSUER}",
        iccid=digits + luhn_check_digit(digits),
        key_type=issuance_pb2.KeyType.ValueType(key_type),
        activation_code=secrets.token_hex(6).upper(),
    )
    request.not_after.FromDatetime(end)
    request.card_certificate.issuer = "C=JP,O=DEMO ONLY,CN=Card CA"
    request.card_certificate.serial = b"\x01" + secrets.token_bytes(8)
    request.card_certificate.not_after.FromDatetime(end)
    for name, value in changes.items():
        setattr(request, name, value)
    return request


def issued(answer: bytes) -> issuance_pb2.Issuance:
    """The issuance in an answer to Issue."""
    return issuance_pb2.IssueResponse.FromString(answer).issuance


def ef_iccid(request: issuance_pb2.IssueRequest) -> bytes:
    """EF.ICCID of the request's SIM."""
    return Iccid.parse(request.iccid).ef_coding


def refusal(error: grpc.RpcError) -> status.ParsedError:
    """What the server said."""
    return status.parse(error)
