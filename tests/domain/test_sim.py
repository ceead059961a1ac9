"""ICCID, AID and KVN: what is accepted, and which rule a refusal names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.domain.sim import Iccid, luhn_check_digit, validate_aid, validate_kvn
from appliance.errors import ApplianceError, Reason

DIGITS = "8981309114170753644"

iccids = st.text("0123456789", min_size=18, max_size=19).map(lambda body: body + luhn_check_digit(body))


@pytest.mark.parametrize(
    ("body", "check"),
    [
        ("7992739871", "3"),  # the worked example of the Wikipedia article on the Luhn algorithm
        ("401288888888188", "1"),  # a payment scheme's published test number
        ("8901410321111851072", "0"),  # of a 20-digit ICCID: the check digit covers all 19 before it
        ("0", "0"),
    ],
)
def test_published_luhn_digits(body: str, check: str) -> None:
    assert luhn_check_digit(body) == check


@pytest.mark.parametrize(
    ("digits", "coding"),
    [
        (DIGITS, "981803194171703546F4"),  # tests/vectors/sim_package.json
        ("89014103211118510720", "98101430121181157002"),
    ],
)
def test_coding_swaps_nibbles_and_pads_nineteen_digits_with_f(digits: str, coding: str) -> None:
    assert Iccid.parse(digits).ef_coding == bytes.fromhex(coding)
    assert Iccid.from_ef_coding(bytes.fromhex(coding)).digits == digits


@given(iccids)
def test_coding_and_digits_are_two_forms_of_one_iccid(digits: str) -> None:
    iccid = Iccid.parse(digits)
    assert iccid.digits == digits
    assert len(iccid.ef_coding) == 10
    assert Iccid.from_ef_coding(iccid.ef_coding) == iccid


@given(digits=iccids, data=st.data())
def test_every_single_wrong_digit_is_found(digits: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(digits) - 1))
    wrong = data.draw(st.sampled_from([digit for digit in "0123456789" if digit != digits[place]]))
    with pytest.raises(ApplianceError, match="check digit"):
        Iccid.parse(digits[:place] + wrong + digits[place + 1 :])


@pytest.mark.parametrize(
    ("digits", "problem"),
    [
        ("", "not a decimal digit"),
        ("898130911417075364", "has 18 digits"),
        (DIGITS + "00", "has 21 digits"),
        ("898130911417075364F", "not a decimal digit"),
        (" " + DIGITS, "not a decimal digit"),
        (DIGITS + "\n", "not a decimal digit"),
        ("898130911417075364４", "not a decimal digit"),
        ("898130911417075364²", "not a decimal digit"),
        ("8981309114170753645", "check digit is 5, but its digits give 4"),
        (DIGITS + "3", "check digit is 3, but its digits give 9"),
    ],
)
def test_iccid_that_breaks_a_rule_is_refused_naming_it(digits: str, problem: str) -> None:
    with pytest.raises(ApplianceError, match=problem) as refused:
        Iccid.parse(digits)
    assert refused.value.reason is Reason.ICCID_INVALID
    assert refused.value.field == "iccid"


@pytest.mark.parametrize(
    ("coding", "problem"),
    [
        ("981803194171703546", "has 9 bytes"),
        ("981803194171703546F4FF", "has 11 bytes"),
        ("981803194171703546FF", "not a decimal digit"),
        ("9818031941717035464F", "not a decimal digit"),
        ("98F8031941717035460F", "not a decimal digit"),
        ("981803194171703546F5", "check digit is 5, but its digits give 4"),
        ("98180319417170354644", "check digit is 4"),
    ],
)
def test_coding_that_is_no_iccid_is_refused(coding: str, problem: str) -> None:
    with pytest.raises(ApplianceError, match=problem) as refused:
        Iccid.from_ef_coding(bytes.fromhex(coding))
    assert refused.value.reason is Reason.ICCID_INVALID


@pytest.mark.parametrize("length", [5, 16])
def test_aid_within_its_lengths_is_returned(length: int) -> None:
    assert validate_aid(bytes(length), "applet_aid") == bytes(length)


@pytest.mark.parametrize("length", [0, 4, 17])
def test_aid_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ApplianceError, match=f"has {length} bytes") as refused:
        validate_aid(bytes(length), "applet_aid")
    assert (refused.value.reason, refused.value.field) == (Reason.AID_INVALID, "applet_aid")


@pytest.mark.parametrize("kvn", [1, 0x7F])
def test_kvn_within_its_range_is_returned(kvn: int) -> None:
    assert validate_kvn(kvn, "kvn") == kvn


@pytest.mark.parametrize("kvn", [-1, 0, 0x80, 0xFF, 0x101])
def test_kvn_outside_its_range_is_refused(kvn: int) -> None:
    with pytest.raises(ApplianceError, match="outside 1 to 127") as refused:
        validate_kvn(kvn, "sim_issuer.kvn")
    assert (refused.value.reason, refused.value.field) == (Reason.KVN_INVALID, "sim_issuer.kvn")
