"""The target that is the request as a value: every rule of the domain, and the digest that knows a request again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from google.protobuf.message import DecodeError

from appliance.api.v1 import issuance_pb2
from appliance.domain.request import MIN_VALIDITY, canonical, validate
from appliance.errors import Reason
from appliance.server.messages import preview, requested_issue, requested_state
from tests.fuzz.certificates import NOW, PROFILE
from tests.fuzz.protobufs import beside
from tests.fuzz.target import Choices, Run, Target, chunk, refused_with
from tests.server.site import request, sim_issuer

ISSUERS = {"mno-a": sim_issuer("mno-a", 1)}
REFUSALS = (
    Reason.FIELD_INVALID,
    Reason.REQUEST_ID_INVALID,
    Reason.ICCID_INVALID,
    Reason.AID_INVALID,
    Reason.KVN_INVALID,
    Reason.NAME_INVALID,
    Reason.TIME_INVALID,
    Reason.KEY_TYPE_INVALID,
    Reason.ACTIVATION_CODE_INVALID,
    Reason.SIM_ISSUER_UNKNOWN,
    Reason.KEY_SET_UNKNOWN,
    Reason.KEY_SET_NOT_USABLE,
)


@contextmanager
def open_request() -> Iterator[Run]:
    """An input has two requests."""

    def run(data: bytes) -> None:
        choices = Choices(data)
        try:
            first, second = (
                requested_issue(issuance_pb2.IssueRequest.FromString(part))
                for part in (choices.chunk(), choices.rest())
            )
        except DecodeError:
            return
        same = replace(first, request_id="") == replace(second, request_id="")
        assert (canonical(first) == canonical(second)) == same
        for fields in (first, second):
            with refused_with(Reason.FIELD_INVALID):
                requested_state(fields.kvn)
            with refused_with(*REFUSALS):
                order = validate(fields, ISSUERS, PROFILE, NOW)
                assert order.not_after - NOW >= MIN_VALIDITY
                assert order.not_after <= min(datetime.fromtimestamp(fields.not_after or 0, UTC), order.card_not_after)
                assert order.iccid.from_ef_coding(order.iccid.ef_coding) == order.iccid
                assert preview(order).SerializeToString()

    yield run


def requests() -> Iterator[bytes]:
    plain = request(request_id="01234567-89ab-cdef-0123-456789abcdef")
    plain.not_after.seconds = plain.card_certificate.not_after.seconds = int(NOW.timestamp()) + 90_000_000
    full = issuance_pb2.IssueRequest.FromString(plain.SerializeToString())
    full.kvn, full.applet_aid, full.validate_only = 0x30, b"applet", True
    for other in (plain, full, *beside(full)):
        yield chunk(full.SerializeToString()) + other.SerializeToString()


REQUEST = Target(open_request, requests, 1024)
