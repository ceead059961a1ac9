"""Who may call what: a table of methods and roles. What is not in the table is refused.

gRPC has verified the client's certificate; here its one URI SAN says who the client is. Its common name and other
names mean nothing.
"""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from appliance.config import Client, Role
from appliance.errors import ApplianceError, Reason

_ISSUANCE: Final = "/appliance.api.v1.IssuanceService/"
_DELIVERY: Final = "/appliance.api.v1.DeliveryService/"
_OPERATIONS: Final = "/appliance.api.v1.OperationsService/"
HEALTH: Final = "/grpc.health.v1.Health/"
REFLECTION: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""Its service under both names, the new one first, as grpcurl asks; the messages are the same."""

_ISSUER: Final = frozenset({Role.ISSUER})
_TSM: Final = frozenset({Role.TSM})
_OPERATOR: Final = frozenset({Role.OPERATOR})
_ANY: Final = frozenset(Role)

ACCESS: Final[Mapping[str, frozenset[Role]]] = {
    f"{_ISSUANCE}Issue": _ISSUER,
    f"{_ISSUANCE}SubmitCertificate": _ISSUER,
    f"{_ISSUANCE}GetIssuance": _ISSUER,
    f"{_ISSUANCE}ListIssuances": _ISSUER,
    f"{_ISSUANCE}Abandon": _ISSUER,
    f"{_DELIVERY}FetchScript": _TSM,
    f"{_DELIVERY}ReportReceipt": _TSM,
    f"{_OPERATIONS}GetStatus": _OPERATOR,
    f"{HEALTH}Check": _ANY,
    f"{HEALTH}Watch": _ANY,
    **{f"/{service}/ServerReflectionInfo": _OPERATOR for service in REFLECTION},
}


@dataclass(frozen=True)
class Caller:
    """A client that the settings know; `sim_issuers` are those whose deliveries a TSM sees."""

    uri: str
    role: Role
    sim_issuers: tuple[str, ...]


_CALLER: Final[ContextVar[Caller]] = ContextVar("caller")


def identify(auth_context: Mapping[str, Iterable[bytes]], clients: Mapping[str, Client]) -> Caller:
    """The caller that a connection's authentication context names.

    Raises:
        ApplianceError: CLIENT_IDENTITY_INVALID.
    """
    uris = list(auth_context.get("peer_uri", ()))
    if len(uris) != 1:
        raise _unknown(f"The client certificate has {len(uris)} URI SANs instead of one.")
    uri = uris[0].decode("utf-8", "replace")
    client = clients.get(uri)
    if client is None:
        raise _unknown("The settings do not know the URI SAN of the client certificate.")
    return Caller(uri, client.role, client.sim_issuers)


def authorise(method: str, caller: Caller) -> None:
    """Returns only if the caller's role may call this method, and makes it the current caller.

    Raises:
        ApplianceError: ROLE_NOT_ALLOWED.
    """
    if caller.role not in ACCESS.get(method, frozenset()):
        raise ApplianceError(
            Reason.ROLE_NOT_ALLOWED,
            f"The role {caller.role} may not call this method.",
            hint="Connect with the certificate of a role that may, as the API's description says.",
            role=caller.role,
            method=method,
        )
    _CALLER.set(caller)


def current_caller() -> Caller:
    """The caller of the call in hand."""
    return _CALLER.get()


def _unknown(detail: str) -> ApplianceError:
    return ApplianceError(
        Reason.CLIENT_IDENTITY_INVALID,
        detail,
        hint="Use a certificate with one URI SAN, and let the operator declare it under front.clients.",
    )
