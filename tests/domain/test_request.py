"""Every check of a request, by field and reason, and the digests that tell repeated calls from other ones."""

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import load
from appliance.domain.keyset import KeySetState
from appliance.domain.package import KeyType
from appliance.domain.request import (
    RequestedCard,
    RequestedIssue,
    call_digest,
    canonical,
    content_digest,
    validate,
    validate_issuance_name,
    validate_request_id,
)
from appliance.errors import ApplianceError, Reason

SETTINGS = load(Path(__file__).parents[2] / "hsm_config" / "appliance.toml")
PROFILE = SETTINGS.profiles["jpki-user-authentication"]
ISSUERS = SETTINGS.sim_issuers
NOW = datetime(2026, 10, 1, 12, 30, 15, 500_000, tzinfo=UTC)
DAY = 86_400
SECONDS = int(NOW.timestamp())
CODE = "K7Q2M9XA"
KEY = bytes(range(32))

CARD = RequestedCard(
    issuer="OU=Japan Agency for Local Authority Information Systems,OU=JPKI for user authentication,O=JPKI,C=JP",
    serial=bytes.fromhex("0123456789"),
    not_after=SECONDS + 1000 * DAY,
)
REQUEST = RequestedIssue(
    request_id="7d3c5f0e-3f1b-4d0a-9d5e-0c6f4b1a2e3d",
    person_id="applicant-000001",
    subject_common_name="997794E9AGCIEG13221003A",
    not_after=SECONDS + 900 * DAY,
    card_certificate=CARD,
    sim_issuer="simIssuers/example-mno",
    iccid="8981309114170753644",
    kvn=0,
    applet_aid=b"",
    key_type=1,
    activation_code=CODE,
)


def refusal(request: RequestedIssue) -> tuple[Reason, str]:
    """Reason and field with which it is refused."""
    with pytest.raises(ApplianceError) as refused:
        validate(request, ISSUERS, PROFILE, NOW)
    assert refused.value.hint
    assert request.activation_code not in f"{refused.value} {refused.value.facts}" or not request.activation_code
    return refused.value.reason, refused.value.field


def test_a_request_without_fault_becomes_an_order_with_defaults_resolved() -> None:
    order = validate(REQUEST, ISSUERS, PROFILE, NOW)
    assert order.request_id == REQUEST.request_id
    assert (order.person_id, order.subject_common_name) == (REQUEST.person_id, REQUEST.subject_common_name)
    assert order.not_after == datetime.fromtimestamp(SECONDS + 900 * DAY, UTC)
    assert (order.card_issuer, order.card_serial) == (CARD.issuer, CARD.serial)
    assert order.card_not_after == datetime.fromtimestamp(SECONDS + 1000 * DAY, UTC)
    assert (order.sim_issuer, order.kvn, order.profile) == ("example-mno", 2, "jpki-user-authentication")
    assert order.iccid.digits == REQUEST.iccid
    assert order.applet_aid == bytes.fromhex("D392F000260100000001")
    assert order.key_type is KeyType.RSA_2048
    assert order.activation_code == CODE


def test_what_is_named_is_taken_instead_of_the_default() -> None:
    order = validate(replace(REQUEST, kvn=1, applet_aid=b"\xa0" * 16, key_type=3), ISSUERS, PROFILE, NOW)
    assert (order.kvn, order.applet_aid, order.key_type) == (1, b"\xa0" * 16, KeyType.EC_P384)


def test_the_activation_code_is_in_no_representation() -> None:
    assert CODE not in repr(REQUEST) + str(REQUEST) + repr(validate(REQUEST, ISSUERS, PROFILE, NOW))


@pytest.mark.parametrize(
    ("wished", "card", "expected"),
    [
        (900 * DAY, 1000 * DAY, timedelta(days=900)),
        (1000 * DAY, 900 * DAY, timedelta(days=900)),
        (3000 * DAY, 2000 * DAY, timedelta(days=PROFILE.validity_max_days)),
        (DAY + 1, DAY + 1, timedelta(days=1, seconds=1)),
    ],
)
def test_the_end_is_capped_by_card_and_profile(wished: int, card: int, expected: timedelta) -> None:
    request = replace(REQUEST, not_after=SECONDS + wished, card_certificate=replace(CARD, not_after=SECONDS + card))
    assert validate(request, ISSUERS, PROFILE, NOW).not_after == NOW.replace(microsecond=0) + expected


def test_an_end_after_the_issuing_cas_own_is_refused_and_not_cut_short() -> None:
    request = replace(
        REQUEST, not_after=SECONDS + 900 * DAY, card_certificate=replace(CARD, not_after=SECONDS + 999 * DAY)
    )
    end = validate(request, ISSUERS, PROFILE, NOW).not_after
    assert validate(request, ISSUERS, PROFILE, NOW, ca_end=end).not_after == end
    with pytest.raises(ApplianceError) as refused:
        validate(request, ISSUERS, PROFILE, NOW, ca_end=end - timedelta(seconds=1))
    assert (refused.value.reason, refused.value.field) == (Reason.TIME_INVALID, "not_after")
    assert f"{end:%Y-%m-%dT%H:%M:%SZ}" in refused.value.detail
    capped = replace(request, card_certificate=replace(CARD, not_after=SECONDS + 800 * DAY))
    assert validate(capped, ISSUERS, PROFILE, NOW, ca_end=end - timedelta(days=1)).not_after < end


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("request_id", "", Reason.REQUEST_ID_INVALID),
        ("request_id", "7d3c5f0e3f1b4d0a9d5e0c6f4b1a2e3d", Reason.REQUEST_ID_INVALID),
        ("request_id", "7D3C5F0E-3F1B-4D0A-9D5E-0C6F4B1A2E3D", Reason.REQUEST_ID_INVALID),
        ("request_id", "7d3c5f0e-3f1b-4d0a-9d5e-0c6f4b1a2e3d\n", Reason.REQUEST_ID_INVALID),
        ("request_id", "{7d3c5f0e-3f1b-4d0a-9d5e-0c6f4b1a2e3}", Reason.REQUEST_ID_INVALID),
        ("person_id", "", Reason.FIELD_INVALID),
        ("person_id", "x" * 65, Reason.FIELD_INVALID),
        ("person_id", "two words", Reason.FIELD_INVALID),
        ("person_id", "申請者", Reason.FIELD_INVALID),
        ("subject_common_name", "", Reason.NAME_INVALID),
        ("subject_common_name", "Yamada Taro", Reason.NAME_INVALID),
        ("subject_common_name", "997794E9AGCIEG13221003A\n", Reason.NAME_INVALID),
        ("subject_common_name", "9" * 33, Reason.NAME_INVALID),
        ("not_after", None, Reason.TIME_INVALID),
        ("not_after", SECONDS - 1, Reason.TIME_INVALID),
        ("not_after", SECONDS + DAY, Reason.TIME_INVALID),  # half a second too early
        ("not_after", 253_402_300_800, Reason.TIME_INVALID),  # the year 10000
        ("not_after", 1 << 62, Reason.TIME_INVALID),
        ("not_after", -(1 << 62), Reason.TIME_INVALID),
        ("card_certificate", None, Reason.FIELD_INVALID),
        ("sim_issuer", "", Reason.NAME_INVALID),
        ("sim_issuer", "example-mno", Reason.NAME_INVALID),
        ("sim_issuer", "simIssuers/Example", Reason.NAME_INVALID),
        ("sim_issuer", "simIssuers/example-mno/keySets/2", Reason.NAME_INVALID),
        ("sim_issuer", "simIssuers/other-mno", Reason.SIM_ISSUER_UNKNOWN),
        ("iccid", "", Reason.ICCID_INVALID),
        ("iccid", "898130911417075364", Reason.ICCID_INVALID),
        ("iccid", "8981309114170753645", Reason.ICCID_INVALID),
        ("iccid", "898130911417075364x", Reason.ICCID_INVALID),
        ("iccid", "898130911417075364400", Reason.ICCID_INVALID),
        ("kvn", 128, Reason.KVN_INVALID),
        ("kvn", 1 << 31, Reason.KVN_INVALID),
        ("kvn", 3, Reason.KEY_SET_UNKNOWN),
        ("applet_aid", b"\xa0" * 4, Reason.AID_INVALID),
        ("applet_aid", b"\xa0" * 17, Reason.AID_INVALID),
        ("key_type", 0, Reason.KEY_TYPE_INVALID),
        ("key_type", 4, Reason.KEY_TYPE_INVALID),
        ("key_type", -1, Reason.KEY_TYPE_INVALID),
        ("activation_code", "", Reason.ACTIVATION_CODE_INVALID),
        ("activation_code", "K7Q2M9X", Reason.ACTIVATION_CODE_INVALID),
        ("activation_code", "K7Q2M9XAK7Q2M9XAK", Reason.ACTIVATION_CODE_INVALID),
        ("activation_code", "k7q2m9xa", Reason.ACTIVATION_CODE_INVALID),
        ("activation_code", "K7Q2-M9XA", Reason.ACTIVATION_CODE_INVALID),
        ("activation_code", "１２３４５６７８", Reason.ACTIVATION_CODE_INVALID),
    ],
)
def test_a_bad_field_is_refused_with_its_name_and_reason(field: str, value: Any, reason: Reason) -> None:
    assert refusal(replace(REQUEST, **{field: value})) == (reason, field)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("issuer", "", Reason.FIELD_INVALID),
        ("issuer", "O=" + "x" * 255, Reason.FIELD_INVALID),
        ("issuer", "J-LIS", Reason.FIELD_INVALID),
        ("issuer", "O=JPKI,C=Japan", Reason.FIELD_INVALID),
        ("serial", b"", Reason.FIELD_INVALID),
        ("serial", b"\x01" * 21, Reason.FIELD_INVALID),
        ("serial", b"\x00\x01", Reason.FIELD_INVALID),
        ("not_after", None, Reason.TIME_INVALID),
        ("not_after", SECONDS - 1, Reason.TIME_INVALID),
        ("not_after", SECONDS + DAY, Reason.TIME_INVALID),
        ("not_after", 1 << 62, Reason.TIME_INVALID),
    ],
)
def test_a_bad_field_of_the_card_certificate_is_refused(field: str, value: Any, reason: Reason) -> None:
    request = replace(REQUEST, card_certificate=replace(CARD, **{field: value}))
    assert refusal(request) == (reason, f"card_certificate.{field}")


def test_a_key_type_that_the_profile_leaves_out_is_refused() -> None:
    with pytest.raises(ApplianceError) as refused:
        validate(REQUEST, ISSUERS, replace(PROFILE, key_types=("EC_P256",)), NOW)
    assert (refused.value.reason, refused.value.field) == (Reason.KEY_TYPE_INVALID, "key_type")


def test_a_prepared_key_set_is_refused() -> None:
    issuer = ISSUERS["example-mno"]
    prepared = replace(issuer, key_sets=(replace(issuer.key_set(1), state=KeySetState.PREPARED),))
    for kvn in (0, 1):
        with pytest.raises(ApplianceError) as refused:
            validate(replace(REQUEST, kvn=kvn), {"example-mno": prepared}, PROFILE, NOW)
        assert (refused.value.reason, refused.value.field) == (Reason.KEY_SET_NOT_USABLE, "kvn")


def test_no_refusal_repeats_what_identifies_the_person() -> None:
    with pytest.raises(ApplianceError) as refused:
        validate(replace(REQUEST, subject_common_name="Yamada Taro"), ISSUERS, PROFILE, NOW)
    assert "Yamada" not in f"{refused.value} {refused.value.facts}"


CHANGED = replace(
    REQUEST,
    request_id="00000000-0000-4000-8000-000000000000",
    person_id="applicant-000002",
    subject_common_name="997794E9AGCIEG13221003B",
    not_after=SECONDS + 901 * DAY,
    card_certificate=replace(CARD, serial=b"\x01"),
    sim_issuer="simIssuers/other",
    iccid="8981309114170753645",
    kvn=2,
    applet_aid=bytes.fromhex("D392F000260100000001"),
    key_type=2,
    activation_code="K7Q2M9XB",
)


@pytest.mark.parametrize("field", [it.name for it in fields(RequestedIssue) if it.name != "request_id"])
def test_content_differs_where_any_field_differs(field: str) -> None:
    other = replace(REQUEST, **{field: getattr(CHANGED, field)})
    assert content_digest(other, KEY) != content_digest(REQUEST, KEY)


@pytest.mark.parametrize(
    "card",
    [None, replace(CARD, issuer="O=JPKI,C=JP"), replace(CARD, not_after=None), replace(CARD, not_after=0)],
)
def test_content_differs_where_the_card_certificate_differs(card: RequestedCard | None) -> None:
    assert canonical(replace(REQUEST, card_certificate=card)) != canonical(REQUEST)


def test_content_is_the_same_under_another_request_id() -> None:
    assert content_digest(replace(REQUEST, request_id=CHANGED.request_id), KEY) == content_digest(REQUEST, KEY)


def test_the_digest_cannot_be_computed_without_the_key() -> None:
    digest = content_digest(REQUEST, KEY)
    assert len(digest) == 32
    assert digest != content_digest(REQUEST, bytes(32))


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
def test_parts_of_a_call_do_not_run_into_each_other(one: list[bytes], other: list[bytes]) -> None:
    assert (call_digest(KEY, "Abandon", *one) == call_digest(KEY, "Abandon", *other)) == (one == other)


def test_calls_of_two_methods_differ() -> None:
    assert call_digest(KEY, "Abandon", b"x") != call_digest(KEY, "ReportReceipt", b"x")


def test_a_uuid_in_lower_case_is_a_request_id() -> None:
    assert validate_request_id(REQUEST.request_id) == REQUEST.request_id


def test_an_issuance_is_named_by_its_id() -> None:
    assert validate_issuance_name("issuances/" + "0f" * 16, "name") == "0f" * 16


@pytest.mark.parametrize(
    "name",
    ["", "0f" * 16, "issuances/", "issuances/" + "0F" * 16, "issuances/" + "0f" * 16 + "\n", "issuance/" + "0f" * 16],
)
def test_what_names_no_issuance_is_refused_for_the_field(name: str) -> None:
    with pytest.raises(ApplianceError) as refused:
        validate_issuance_name(name, "issuance")
    assert (refused.value.reason, refused.value.field) == (Reason.NAME_INVALID, "issuance")
