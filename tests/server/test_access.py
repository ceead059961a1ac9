"""Who may call what, over real mutual TLS."""

from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import Default
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from appliance.api.status import ParsedError, parse
from appliance.client import ApiError, OperatorClient
from appliance.config import Role
from appliance.server.access import ACCESS
from appliance.server.main import SERVICES

from .site import WAIT, Front

IDENTITIES = {Role.ISSUER: "issuer", Role.TSM: "tsm-a", Role.OPERATOR: "operator", Role.AUDITOR: "auditor"}
REFLECTIONS = [f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")]
GET_STATUS = "/appliance.api.v1.OperationsService/GetStatus"


async def refusal(channel: grpc.aio.Channel, method: str) -> ParsedError:
    """The refusal of an empty message; on the wire, one message and its end serve for every kind of method.

    A stream would not do: refused before it has sent its message, the client reports its own failure to send.
    """
    call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", timeout=WAIT).read()
    return parse(caught.value)


def test_the_table_has_every_method_that_is_served_and_no_other() -> None:
    services = [Default().FindServiceByName(name) for name in SERVICES]
    served = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    # Health's List has a descriptor and is not implemented; reflection's new name has it the other way.
    assert set(ACCESS) == served - {"/grpc.health.v1.Health/List"} | set(REFLECTIONS)


async def test_a_role_outside_the_methods_row_is_refused(front: Front) -> None:
    for role, identity in IDENTITIES.items():
        async with front.channel(identity) as channel:
            for method in (method for method, roles in ACCESS.items() if role not in roles):
                error = await refusal(channel, method)
                assert (error.code, error.reason) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED"), (role, method)
                assert error.metadata == {"role": role, "method": method}


@pytest.mark.parametrize("method", ["/appliance.api.v1.IssuanceService/Revoke", "/other.Service/Call"])
@pytest.mark.parametrize("identity", IDENTITIES.values())
async def test_a_method_outside_the_table_is_refused_to_everybody(front: Front, method: str, identity: str) -> None:
    async with front.channel(identity) as channel:
        error = await refusal(channel, method)
    assert (error.code, error.reason) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")


@pytest.mark.parametrize(
    ("identity", "said"), [("two-uris", "2 URI SANs"), ("no-uri", "0 URI SANs"), ("unknown", "do not know")]
)
async def test_a_certificate_without_exactly_one_known_uri_is_refused(front: Front, identity: str, said: str) -> None:
    async with front.channel(identity) as channel:
        with pytest.raises(ApiError, match=said) as caught:
            await OperatorClient(channel).status()
        assert (caught.value.code, caught.value.reason) == ("UNAUTHENTICATED", "CLIENT_IDENTITY_INVALID")
        assert (await refusal(channel, "/other.Service/Call")).reason == "CLIENT_IDENTITY_INVALID"
        with pytest.raises(grpc.aio.AioRpcError):
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())


async def test_without_a_client_certificate_there_is_no_connection(front: Front) -> None:
    credentials = grpc.ssl_channel_credentials((front.tls / "ca.pem").read_bytes())
    async with grpc.aio.secure_channel(f"localhost:{front.port}", credentials) as channel:
        error = await refusal(channel, GET_STATUS)
    assert (error.code, error.reason) == ("UNAVAILABLE", "")


async def test_a_certificate_of_another_authority_gets_no_connection(front: Front) -> None:
    async with front.channel("foreign") as channel:
        error = await refusal(channel, GET_STATUS)
    assert (error.code, error.reason) == ("UNAVAILABLE", "")


async def test_without_tls_there_is_no_connection(front: Front) -> None:
    async with grpc.aio.insecure_channel(f"localhost:{front.port}") as channel:
        error = await refusal(channel, GET_STATUS)
    assert (error.code, error.reason) == ("UNAVAILABLE", "")


@pytest.mark.parametrize("method", REFLECTIONS)
async def test_an_operator_can_reflect_under_the_new_name_and_the_old(front: Front, method: str) -> None:
    async with front.channel("operator") as channel:
        reflect: grpc.aio.StreamStreamMultiCallable[Any, Any] = channel.stream_stream(
            method,
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        wanted = reflection_pb2.ServerReflectionRequest(list_services="")
        response: Any = await reflect(iter([wanted]), timeout=WAIT).read()
    assert {service.name for service in response.list_services_response.service} == set(SERVICES)


@pytest.mark.parametrize("method", REFLECTIONS)
@pytest.mark.parametrize("identity", ["issuer", "tsm-a", "auditor"])
async def test_nobody_else_can_reflect(front: Front, method: str, identity: str) -> None:
    async with front.channel(identity) as channel:
        error = await refusal(channel, method)
    assert (error.code, error.reason) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")


async def test_everybody_who_is_known_can_ask_for_health(front: Front) -> None:
    for identity in IDENTITIES.values():
        async with front.channel(identity) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
