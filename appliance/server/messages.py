"""Records as messages of the public API, and requests as the values that the domain validates."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from appliance.apdu.engine import Form
from appliance.api.v1 import delivery_pb2, issuance_pb2
from appliance.domain.issuance import IssuanceRecord, State
from appliance.domain.request import IssueOrder, RequestedCard, RequestedIssue
from appliance.errors import ApplianceError, Reason
from appliance.issuing.delivery import Played

_STATES: Final = {issuance_pb2.IssuanceState.Value(f"ISSUANCE_STATE_{state}"): state for state in State}
_STATE_NUMBERS: Final = {state: number for number, state in _STATES.items()}
_FORMS: Final = {
    delivery_pb2.SCRIPT_FORM_UNSPECIFIED: Form.TEXT,
    delivery_pb2.SCRIPT_FORM_EXPANDED_DEFINITE: Form.EXPANDED_DEFINITE,
    delivery_pb2.SCRIPT_FORM_EXPANDED_INDEFINITE: Form.EXPANDED_INDEFINITE,
}


def requested_issue(request: issuance_pb2.IssueRequest) -> RequestedIssue:
    """What arrived, with nothing checked."""
    card = request.card_certificate
    return RequestedIssue(
        request_id=request.request_id,
        person_id=request.person_id,
        subject_common_name=request.subject_common_name,
        not_after=request.not_after.seconds if request.HasField("not_after") else None,
        card_certificate=RequestedCard(
            issuer=card.issuer,
            serial=card.serial,
            not_after=card.not_after.seconds if card.HasField("not_after") else None,
        )
        if request.HasField("card_certificate")
        else None,
        sim_issuer=request.sim_issuer,
        iccid=request.iccid,
        kvn=request.kvn,
        applet_aid=request.applet_aid,
        key_type=request.key_type,
        activation_code=request.activation_code,
    )


def requested_state(number: int) -> State | None:
    """The state to list; None for all.

    Raises:
        ApplianceError: FIELD_INVALID.
    """
    if number == issuance_pb2.ISSUANCE_STATE_UNSPECIFIED:
        return None
    if number not in _STATES:
        raise ApplianceError(
            Reason.FIELD_INVALID,
            f"State {number} is not known.",
            hint="Use a value of IssuanceState, or none for all.",
            field="state",
        )
    return _STATES[issuance_pb2.IssuanceState.ValueType(number)]


def issuance(record: IssuanceRecord, *, with_package: bool = False) -> issuance_pb2.Issuance:
    """An issuance as it stands, with its package where it is wanted and there is one."""
    return issuance_pb2.Issuance(
        name=f"issuances/{record.id}",
        request_id=record.request_id,
        state=_STATE_NUMBERS[record.state],
        person_id=record.person_id,
        sim_issuer=f"simIssuers/{record.sim_issuer}",
        iccid=record.iccid,
        kvn=record.kvn,
        applet_aid=record.applet_aid,
        key_type=issuance_pb2.KeyType.ValueType(record.key_type),
        create_time=_timestamp(record.created),
        update_time=_timestamp(record.updated),
        certificate_serial=record.certificate_serial or b"",
        certificate=record.certificate or b"",
        package_counter=record.counter or 0,
        package_sha256=record.package_sha256 or b"",
        package=(record.package or b"") if with_package else b"",
        end_reason=record.end_reason,
        certificate_request=record.certificate_request or b"",
        certificate_due_time=_timestamp(record.certificate_due) if record.certificate_due else None,
    )


def preview(order: IssueOrder) -> issuance_pb2.Issuance:
    """What would be issued: no name, no state, no times."""
    return issuance_pb2.Issuance(
        request_id=order.request_id,
        person_id=order.person_id,
        sim_issuer=f"simIssuers/{order.sim_issuer}",
        iccid=order.iccid.digits,
        kvn=order.kvn,
        applet_aid=order.applet_aid,
        key_type=issuance_pb2.KeyType.ValueType(order.key_type),
    )


def requested_form(form: int) -> Form:
    """How a script is to be written beside its commands.

    Raises:
        ApplianceError: FIELD_INVALID.
    """
    if form not in _FORMS:
        raise ApplianceError(
            Reason.FIELD_INVALID,
            f"Form {form} is not known.",
            hint="Use a value of ScriptForm, or none for text.",
            field="form",
        )
    return _FORMS[delivery_pb2.ScriptForm.ValueType(form)]


def script(
    record: IssuanceRecord, sequence_counter: int, written: Mapping[Form, bytes]
) -> delivery_pb2.FetchScriptResponse:
    """A rendered script: its commands, and the form that was asked for."""
    answer = delivery_pb2.FetchScriptResponse(iccid=record.iccid, sequence_counter=sequence_counter)
    for form, content in written.items():
        if form is Form.TEXT:
            answer.text = content.decode("ascii")
        else:
            answer.MergeFromString(content)
    return answer


def requested_proof(request: delivery_pb2.ReportReceiptRequest) -> bytes | Played:
    """The receipt, or the played script that brought it, with nothing checked."""
    if request.WhichOneof("proof") != "played":
        return request.receipt
    script = request.played
    return Played(script.request_id, script.sequence_counter, tuple(script.responses), tuple(script.remote_responses))


def issue_answer(record: IssuanceRecord) -> bytes:
    """The answer to Issue, to be stored; never with the package, because it is kept for ever."""
    return issuance_pb2.IssueResponse(issuance=issuance(record)).SerializeToString(deterministic=True)


def submit_answer(record: IssuanceRecord) -> bytes:
    """The answer to SubmitCertificate, to be stored; never with the package."""
    return issuance_pb2.SubmitCertificateResponse(issuance=issuance(record)).SerializeToString(deterministic=True)


def abandon_answer(record: IssuanceRecord) -> bytes:
    """The answer to Abandon, to be stored."""
    return issuance_pb2.AbandonResponse(issuance=issuance(record)).SerializeToString(deterministic=True)


def receipt_answer(record: IssuanceRecord) -> bytes:
    """The answer to ReportReceipt, to be stored."""
    return delivery_pb2.ReportReceiptResponse(issuance=issuance(record)).SerializeToString(deterministic=True)


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
