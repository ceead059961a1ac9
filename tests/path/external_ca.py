"""An appliance whose certificates another CA issues, and the calls that bring them."""

import uuid
from typing import Any, Final

from appliance.api.v1 import issuance_pb2 as pb
from appliance.demo import published
from tests.foreign_ca import ForeignCa

from .callers import Caller
from .programs import WAIT
from .site import Site

SUBMIT: Final = "/appliance.api.v1.IssuanceService/SubmitCertificate"


def leave_certificates_to(ca: ForeignCa, site: Site) -> None:
    """The demo's profile names this CA in place of its own."""
    path = site.directory / "profiles" / f"{published.PROFILE}.toml"
    own = ("ca_mode", "ca_label", "ca_certificate")
    kept = [line for line in path.read_text("utf-8").splitlines() if not line.startswith(own)]
    certificate = site.directory / "j-lis.pem"
    certificate.write_bytes(ca.pem)
    path.write_text("\n".join([*kept, 'ca_mode = "external"', f'ca_certificate = "{certificate}"', ""]), "utf-8")


def begin_submit(caller: Caller, request: pb.SubmitCertificateRequest) -> Any:
    """A call under way; its result is the answer's bytes."""
    submit = caller.channel.unary_unary(
        SUBMIT, request_serializer=pb.SubmitCertificateRequest.SerializeToString, response_deserializer=bytes
    )
    return submit.future(request, timeout=WAIT)


def submission(ca: ForeignCa, waiting: pb.Issuance, certificate: bytes = b"") -> pb.SubmitCertificateRequest:
    """The request that brings what waits its certificate: this one, or one that the CA issues now."""
    made = certificate or ca.issue(waiting.certificate_request)
    return pb.SubmitCertificateRequest(request_id=str(uuid.uuid4()), name=waiting.name, certificate=made)
