"""The reasons of the code and those of the public API are the same."""

import re
from pathlib import Path

import grpc

from appliance.api.v1 import errors_pb2
from appliance.errors import REASONS, ApplianceError, Reason

PROTO = Path(__file__).parent.parent / "proto/appliance/api/v1/errors.proto"
PREFIX = "ERROR_REASON_"


def test_every_reason_has_a_rule() -> None:
    assert set(REASONS) == set(Reason)


def test_the_public_list_and_the_code_agree() -> None:
    published = {name.removeprefix(PREFIX) for name in dict(errors_pb2.ErrorReason.items())} - {"UNSPECIFIED"}
    assert published == {reason.value for reason in Reason}


def test_each_published_comment_says_code_and_meaning() -> None:
    found = re.findall(rf"// (.*)\n  {PREFIX}(\w+) =", PROTO.read_text("utf-8"))
    commented = {name: comment for comment, name in found}
    commented.pop("UNSPECIFIED")
    assert commented == {reason.value: f"{rule.code}. {rule.meaning}" for reason, rule in REASONS.items()}


def test_every_code_is_a_grpc_status_code() -> None:
    assert {rule.code.value for rule in REASONS.values()} <= set(grpc.StatusCode.__members__)


def test_an_error_names_reason_field_and_way_out() -> None:
    error = ApplianceError(Reason.ICCID_INVALID, "It has 18 digits.", hint="Give 19.", field="iccid", length=18)
    assert str(error) == "ICCID_INVALID: iccid: It has 18 digits. Give 19."
    assert error.facts == {"length": 18}
