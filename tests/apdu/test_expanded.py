"""The expanded remote format: one example written by hand from the clauses, and what decoders of others make of it.

The document is ETSI TS 102 226, clause 5.2; tags are in TS 101 220, tables 7.18 to 7.20; C-APDU and R-APDU are those of
TS 102 223, 8.35 and 8.36; lengths are ISO/IEC 8825-1's.
"""

import pytest
from asn1crypto import parser
from hypothesis import given
from hypothesis import strategies as st
from osmocom.tlv import bertlv_parse_one, comprehensiontlv_parse_one

from appliance.apdu.expanded import Coding, command_template, responses
from appliance.apdu.scp03 import LEVELS, Mode
from appliance.apdu.script import MAX_COMMANDS, Channel, Part, Script, render
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from tests.apdu.test_script import APPLET, CHANNEL, PACKAGE

FIELD = "played.remote_responses[0]"

GET_STATUS = bytes.fromhex("80F28002 02 4F00 00")  # case 4, with Le 00
STORE = bytes.fromhex("84E2B100 80") + bytes(0x80) + b"\x00"  # case 4, 134 bytes: its length needs the form 81
LONGEST = bytes.fromhex("84E23001 FF") + bytes(0xFF)  # case 3, 260 bytes: its length needs the form 82

# Every byte but those of the commands themselves is written here from the clauses.
DEFINITE_EXAMPLE = b"".join(
    (
        b"\xaa",  # Command Scripting template, definite length coding (TS 101 220, table 7.18; TS 102 226, table 5.2)
        b"\x82\x01\x9b",  # 411 = 10 + 137 + 264 bytes follow: 2 more length bytes (ISO/IEC 8825-1, 8.1.3.5)
        b"\x22",  # C-APDU, CR flag 0 (TS 101 220, table 7.19; TS 102 223, 8.35)
        b"\x08",  # 8 bytes (ISO/IEC 8825-1, 8.1.3.4)
        GET_STATUS,  # CLA INS P1 P2 Lc data Le; Le 00: all response data (TS 102 226, 5.2.1.1)
        b"\x22",
        b"\x81\x86",  # 134 bytes: 1 more length byte
        STORE,
        b"\x22",
        b"\x82\x01\x04",  # 260 bytes
        LONGEST,
    )
)
INDEFINITE_EXAMPLE = b"".join(
    (
        b"\xae",  # Command Scripting template for indefinite length coding (TS 102 226, table 5.2a)
        b"\x80",  # no length (ISO/IEC 8825-1, 8.1.3.6)
        b"\x22\x08" + GET_STATUS + b"\x22\x81\x86" + STORE + b"\x22\x82\x01\x04" + LONGEST,  # each of definite length
        b"\x00\x00",  # end of contents (ISO/IEC 8825-1, 8.1.5)
    )
)
ANSWER_EXAMPLE = b"".join(
    (
        b"\xab",  # Response Scripting template for definite length coding (table 7.18; TS 102 226, table 5.10)
        b"\x12",  # 18 bytes
        b"\x80\x01\x03",  # number of executed command TLV objects: 3 (table 7.20; TS 102 226, table 5.11)
        b"\x23\x05\x4f\x01\xaa\x90\x00",  # R-APDU: data, SW1, SW2 (TS 102 223, 8.36)
        b"\x23\x02\x90\x00",  # no data
        b"\x23\x02\x6a\x80",
    )
)
ANSWERED = (b"\x4f\x01\xaa\x90\x00", b"\x90\x00", b"\x6a\x80")


def test_template_of_definite_length_is_the_one_written_by_hand() -> None:
    assert command_template([GET_STATUS, STORE, LONGEST], Coding.DEFINITE) == DEFINITE_EXAMPLE


def test_template_of_indefinite_length_is_the_one_written_by_hand() -> None:
    assert command_template([GET_STATUS, STORE, LONGEST], Coding.INDEFINITE) == INDEFINITE_EXAMPLE


def test_answer_written_by_hand_is_read() -> None:
    assert responses(ANSWER_EXAMPLE, FIELD) == ANSWERED
    assert responses(b"\xaf\x80" + ANSWER_EXAMPLE[5:] + b"\x00\x00", FIELD) == ANSWERED


@pytest.mark.parametrize(
    ("apdus", "coding", "template"),
    [
        # osmocom pySim, its tests of pySim/ota.py.
        (["80f24002024f0000"], Coding.DEFINITE, "aa0a220880f24002024f0000"),
        (["80f24002024f0000", "00a40004023f0000"], Coding.DEFINITE, "aa14220880f24002024f0000220800a40004023f0000"),
        # A server and a UICC over HTTP, a capture of 2019 (docs/scp81-findings.md of anttro/otaman).
        (["80ca008500"], Coding.INDEFINITE, "ae80220580ca0085000000"),
        (["80f28002024f0000"], Coding.INDEFINITE, "ae80220880f28002024f00000000"),
    ],
)
def test_templates_of_others_are_made_alike(apdus: list[str], coding: Coding, template: str) -> None:
    assert command_template(map(bytes.fromhex, apdus), coding).hex() == template


@pytest.mark.parametrize(
    ("template", "answered"),
    [
        # The same capture: GET DATA that a UICC refused.
        ("af8023026a880000", ["6a88"]),
        # GET STATUS answered by a UICC over SMS (tests of anttro/otaman).
        ("ab12800101230d08a0000000030000000f809000", ["08a0000000030000000f809000"]),
        # osmocom pySim's tests: status alone; two commands, the last one refused.
        ("ab0780010123026132", ["6132"]),
        ("ab0d80010223046f21900023026a82", ["6f219000", "6a82"]),
        # More length bytes than needed, as BER permits.
        ("ab8200088001012381029000", ["9000"]),
        ("ab03800100", []),
        ("af800000", []),
    ],
)
def test_answers_of_real_uiccs_and_of_others_are_read(template: str, answered: list[str]) -> None:
    assert [response.hex() for response in responses(bytes.fromhex(template), FIELD)] == answered


def rendered(level: int, mode: Mode) -> Script:
    channel = Channel(CHANNEL.ssd_aid, 0x30, CHANNEL.keys, bytes(mode), bytes(range(mode)), level=level, mode=mode)
    return render(PACKAGE, KeyType.RSA_2048, APPLET, channel)


def apdus_of(part: Part) -> list[bytes]:
    return [command.apdu for command in part.addressed]


every_script = pytest.mark.parametrize(
    "script", [rendered(level, mode) for level in LEVELS for mode in Mode], ids=lambda _: None
)


@every_script
def test_osmocoms_library_reads_the_same_commands(script: Script) -> None:
    """Definite coding: pyosmocom, which osmocom pySim stands on; it knows BER-TLV from COMPREHENSION-TLV."""
    for part in script.parts:
        template = command_template(apdus_of(part), Coding.DEFINITE)
        tag, length, content, behind = bertlv_parse_one(template)
        assert (tag, length, behind) == ({"class": 2, "constructed": True, "tag": 0x0A}, len(content), b"")
        read = []
        while content:
            tag, _, apdu, content = comprehensiontlv_parse_one(content)
            assert tag == {"comprehension": False, "tag": 0x22}
            read.append(apdu)
        assert read == apdus_of(part)


@every_script
@pytest.mark.parametrize("coding", Coding)
def test_asn1crypto_reads_the_same_commands(script: Script, coding: Coding) -> None:
    """Both codings: a BER reader, which finds the end of contents by itself."""
    for part in script.parts:
        template = command_template(apdus_of(part), coding)
        tag_class, constructed, number, head, content, trailer = parser.parse(template, strict=True)
        assert tag_class << 6 | constructed << 5 | number == coding
        assert head + content + trailer == template
        read = []
        while content:
            *_, number, head, apdu, trailer = parser.parse(content)
            assert (head[0], number) == (0x22, 2)
            read.append(apdu)
            content = content[len(head + apdu + trailer) :]
        assert read == apdus_of(part)


@every_script
def test_templates_hold_the_script_without_its_selects(script: Script) -> None:
    domain, applet = script.parts
    assert [domain.aid, applet.aid] == [CHANNEL.ssd_aid, APPLET]
    assert [part.commands[0].purpose for part in script.parts] == ["SELECT SSD", "SELECT applet"]
    without = [command.apdu for command in script.commands if command.apdu[1] != 0xA4]
    assert apdus_of(domain) + apdus_of(applet) == without
    assert len(without) == len(script.commands) - 2


@every_script
def test_every_command_that_is_answered_with_data_asks_for_all_of_it(script: Script) -> None:
    """TS 102 226, 5.2.1.1: only Le 00 gets all; case 3 commands get none."""
    for part in script.parts:
        for command in part.addressed:
            lc = command.apdu[4] if len(command.apdu) > 5 else 0
            with_le = len(command.apdu) == (5 + lc + 1 if lc else 5)
            assert with_le or command.purpose.startswith(("STORE DATA", "EXTERNAL AUTHENTICATE"))
            assert not with_le or command.apdu[-1] == 0


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("", "begins with AB or AF"),
        ("aa03800100", "begins with AB or AF"),
        ("ab", "truncated"),
        ("ab05800100", "truncated"),
        ("ab820005800100", "truncated"),
        ("ab8203", "truncated"),
        ("ab03800100ff", "1 bytes behind"),
        ("ab800000", "length form 80"),
        ("ab830000038001002302", "length form 83"),
        ("ab05800101239000", "behind|truncated"),
        ("ab0780010123079000", "truncated"),
        ("ab07800101a3029000", "A3 does not belong"),
        ("ab0780010122029000", "22 does not belong"),
        ("af", "begins with AF 80"),
        ("af8000", "begins with AF 80"),
        ("af04230290000000", "begins with AF 80"),
        ("af8023029000", "truncated|ends with 00 00"),
        ("af80230290000001", "ends with 00 00"),
        ("af80230490000000", "truncated"),
    ],
)
def test_what_is_no_answer_is_refused(template: str, problem: str) -> None:
    with pytest.raises(ApplianceError, match=problem) as refused:
        responses(bytes.fromhex(template), FIELD)
    assert (refused.value.reason, refused.value.field) == (Reason.TLV_INVALID, FIELD)


def test_as_many_responses_as_a_script_can_have_are_read() -> None:
    content = b"\x80\x02\x01\x08" + b"\x23\x02\x90\x00" * MAX_COMMANDS
    assert responses(b"\xab\x82" + len(content).to_bytes(2) + content, FIELD) == (b"\x90\x00",) * MAX_COMMANDS


@pytest.mark.parametrize(
    ("template", "fault", "told"),
    [
        ("ab06800101900101", "90", "bad format of the template .90., error 01"),
        ("ab06800101810101", "81", "immediate action not performed .81., error 01"),
        ("af808301020000", "83", "script chaining not possible .83., error 02"),
    ],
)
def test_fault_that_a_uicc_reports_is_told(template: str, fault: str, told: str) -> None:
    with pytest.raises(ApplianceError, match=told) as refused:
        responses(bytes.fromhex(template), FIELD)
    assert (refused.value.reason, refused.value.field) == (Reason.SCRIPT_INCOMPLETE, FIELD)
    assert refused.value.facts == {"fault": fault}


@given(template=st.binary(max_size=80).map(lambda tail: b"\xaf\x80" + tail + b"\x00\x00") | st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(template: bytes) -> None:
    try:
        read = responses(template, FIELD)
    except ApplianceError as refused:
        assert refused.reason in (Reason.TLV_INVALID, Reason.SCRIPT_INCOMPLETE)
    else:
        assert sum(map(len, read)) < len(template)


@given(answers=st.lists(st.binary(min_size=2, max_size=300), max_size=20))
def test_what_an_independent_encoder_wrote_is_read(answers: list[bytes]) -> None:
    content = b"".join(parser.emit(0, 1, 3, answer) for answer in answers)
    count = parser.emit(2, 0, 0, bytes([len(answers)]))
    assert responses(parser.emit(2, 1, 0x0B, count + content), FIELD) == tuple(answers)
