"""A TSM that reports everything the SIM answered: ReportReceipt with a played script, and scripts in expanded form.

The vault is the fake one, so the SIM is fake too: its channel is the virtual SIM's, its package is never opened.
"""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from appliance.apdu.script import MAX_COMMANDS
from appliance.api.v1 import delivery_pb2 as pb
from appliance.api.v1 import issuance_pb2
from appliance.client import ApiError, IssuerClient, TsmClient
from appliance.domain.sim import Iccid
from appliance.vsim.apdu import Command
from appliance.vsim.personalisation import ChannelKeys
from appliance.vsim.scp03 import Session

from .fake_vault import K_ENC, K_MAC, SSD_AID, FakeVault
from .site import APPLET_AID, Front, request
from .test_delivery_service import Parties, fetch, report

OK = b"\x90\x00"
FORMS = (pb.SCRIPT_FORM_EXPANDED_DEFINITE, pb.SCRIPT_FORM_EXPANDED_INDEFINITE)


class FakeSim:
    """A SIM that takes any package, and reads out a receipt that it was given."""

    def __init__(self, iccid: str, receipt: bytes, i: int) -> None:
        self._keys = ChannelKeys(0x01, i, Iccid.parse(iccid).ef_coding, K_ENC, K_MAC, bytes(16))
        self._receipt = receipt
        self._counter = 0
        self._session: Session | None = None

    def answer(self, apdu: bytes) -> bytes:
        """Response data and status word."""
        command = Command.parse(apdu)
        if command.ins == 0x50:
            self._counter += 1
            self._session = Session(self._keys, SSD_AID, self._counter, command.data)
            return self._session.initialize_update_response + OK
        if command.ins == 0xCA:
            start = (command.p2 - 0x21) * 128
            return self._receipt[start : start + 128] + OK
        if self._session and command.ins == 0x82:
            self._session.authenticate(command)
        elif self._session and command.cla == 0x84:
            self._session.unwrap(command)
            return self._session.protect(b"\x00" if command.ins == 0xE6 else b"") + OK
        return OK


@dataclass
class Delivered:
    """A script that was fetched and played, with what the SIM answered."""

    issuance: str
    fetched: pb.FetchScriptRequest
    script: pb.FetchScriptResponse
    responses: list[bytes]

    def report(self, **changes: object) -> pb.ReportReceiptRequest:
        """The report of this run, with these changes."""
        told = {
            "request_id": self.fetched.request_id,
            "sequence_counter": self.fetched.sequence_counter,
            "responses": self.responses,
            **changes,
        }
        made = pb.PlayedScript(**told)  # type: ignore[arg-type]  # by name
        return pb.ReportReceiptRequest(request_id=str(uuid.uuid4()), issuance=self.issuance, played=made)


@dataclass
class Tsm:
    """The TSM of one SIM issuer, and what it needs of the others."""

    parties: Parties
    client: TsmClient
    sim_issuer: str
    i: int

    async def play(self, **fetching: object) -> Delivered:
        """One issuance, delivered."""
        issued = await self.parties.issuer.issue(request(self.sim_issuer, sim_issuer=f"simIssuers/{self.sim_issuer}"))
        fetched = fetch(issued.name)
        for name, value in fetching.items():
            setattr(fetched, name, value)
        script = await self.client.fetch_script(fetched)
        sim = FakeSim(issued.iccid, await self.parties.receipt(issued.name), self.i)
        return Delivered(issued.name, fetched, script, [sim.answer(command.apdu) for command in script.commands])

    async def state(self, issuance: str) -> int:
        """As the issuer sees it."""
        return (await self.parties.issuer.get_issuance(issuance_pb2.GetIssuanceRequest(name=issuance))).state

    async def refused(self, wanted: pb.ReportReceiptRequest) -> ApiError:
        """The refusal, after which nothing has changed."""
        with pytest.raises(ApiError) as caught:
            await self.client.report_receipt(wanted)
        assert await self.state(wanted.issuance) == issuance_pb2.ISSUANCE_STATE_READY
        return caught.value


@pytest.fixture
async def parties(front: Front, vault: FakeVault) -> AsyncIterator[Parties]:
    async with front.channel("issuer") as issuer, front.channel("tsm-a") as a, front.channel("tsm-b") as b:
        yield Parties(IssuerClient(issuer), TsmClient(a), TsmClient(b), vault)


@pytest.fixture
async def tsm(parties: Parties) -> Tsm:
    """Of the SIM issuer with level 33 and S16."""
    return Tsm(parties, parties.b, "mno-b", 0x71)


@pytest.fixture
async def plain_tsm(parties: Parties) -> Tsm:
    """Of the SIM issuer with level 03 and S8."""
    return Tsm(parties, parties.a, "mno-a", 0x70)


async def test_responses_to_a_script_make_the_issuance_active(tsm: Tsm, plain_tsm: Tsm) -> None:
    for of in (tsm, plain_tsm):
        asked = len(of.parties.vault.channels)
        delivered = await of.play()
        active = await of.client.report_receipt(delivered.report())
        assert active.state == issuance_pb2.ISSUANCE_STATE_ACTIVE
        fetched, reported = of.parties.vault.channels[asked:]
        assert (fetched.with_s_rmac, reported.with_s_rmac) == (False, True), "only who checks responses gets S-RMAC"
        fetched.with_s_rmac = True
        assert fetched == reported, "the same session keys were derived anew"


async def test_same_report_gets_the_same_answer_and_another_one_is_known(tsm: Tsm) -> None:
    delivered = await tsm.play()
    wanted = delivered.report()
    first = await tsm.client.report_receipt(wanted)
    asked = len(tsm.parties.vault.channels)
    assert await tsm.client.report_receipt(wanted) == first
    assert len(tsm.parties.vault.channels) == asked
    changed = [*delivered.responses[:-1], bytes(80) + OK]
    for change in ({"responses": changed}, {"sequence_counter": 2}, {"request_id": str(uuid.uuid4())}):
        other = delivered.report(**change)
        other.request_id = wanted.request_id
        with pytest.raises(ApiError) as caught:
            await tsm.client.report_receipt(other)
        assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_responses_are_not_templates_with_the_same_bytes(tsm: Tsm) -> None:
    delivered = await tsm.play()
    wanted = delivered.report()
    await tsm.client.report_receipt(wanted)
    other = delivered.report(responses=(), remote_responses=delivered.responses)
    other.request_id = wanted.request_id
    with pytest.raises(ApiError) as caught:
        await tsm.client.report_receipt(other)
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_report_for_an_active_issuance_is_known_by_its_receipt_alone(tsm: Tsm) -> None:
    delivered = await tsm.play()
    active = await tsm.client.report_receipt(delivered.report())
    assert await tsm.client.report_receipt(delivered.report()) == active, "the package is gone, the receipt is not"
    wrong = [*delivered.responses[:-1], bytes(80) + OK]
    with pytest.raises(ApiError) as caught:
        await tsm.client.report_receipt(delivered.report(responses=wrong))
    assert caught.value.reason == "RECEIPT_REJECTED"


async def test_changed_response_is_refused_and_changes_nothing(tsm: Tsm) -> None:
    delivered = await tsm.play()
    at = 4
    assert delivered.script.commands[at].purpose.startswith("STORE DATA 1/")
    changed = list(delivered.responses)
    changed[at] = bytes([changed[at][0] ^ 1]) + changed[at][1:]
    error = await tsm.refused(delivered.report(responses=changed))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "RESPONSE_REJECTED")
    assert error.field == f"played.responses[{at}]"
    assert error.metadata == {"command": str(at), "purpose": delivered.script.commands[at].purpose}


async def test_script_that_was_cut_off_is_told_and_another_one_delivers(tsm: Tsm) -> None:
    delivered = await tsm.play()
    error = await tsm.refused(delivered.report(responses=[*delivered.responses[:4], b"\x6a\x84"]))
    assert (error.code, error.reason, error.field) == ("INVALID_ARGUMENT", "SCRIPT_INCOMPLETE", "played.responses[4]")
    assert error.metadata["status_word"] == "6A84"
    assert "sequence counter 2" in error.hint
    await tsm.client.report_receipt(delivered.report())


async def test_good_session_with_a_wrong_receipt_is_refused(tsm: Tsm) -> None:
    delivered = await tsm.play()
    error = await tsm.refused(delivered.report(responses=[*delivered.responses[:-1], bytes(80) + OK]))
    assert (error.reason, error.field) == ("RECEIPT_REJECTED", "played")
    error = await tsm.refused(delivered.report(responses=[*delivered.responses[:-1], bytes(79) + OK]))
    assert (error.reason, error.field) == ("RECEIPT_INVALID", "played")


@pytest.mark.parametrize("change", [{"request_id": "0" * 36}, {"request_id": ""}, {"sequence_counter": 2}])
async def test_script_that_was_not_fetched_is_refused(tsm: Tsm, change: dict[str, object]) -> None:
    delivered = await tsm.play()
    error = await tsm.refused(delivered.report(**change))
    assert (error.code, error.reason, error.field) == ("INVALID_ARGUMENT", "FIELD_INVALID", "played.request_id")


async def test_script_of_another_issuance_is_refused(plain_tsm: Tsm) -> None:
    delivered = await plain_tsm.play()
    other = await plain_tsm.parties.issuer.issue(request("other"))
    error = await plain_tsm.refused(replace(delivered, issuance=other.name).report())
    assert (error.reason, error.field) == ("FIELD_INVALID", "played.request_id")


async def test_run_is_not_taken_for_that_of_another_script_with_the_same_counter(tsm: Tsm) -> None:
    delivered = await tsm.play()
    other = fetch(delivered.issuance)
    await tsm.client.fetch_script(other)
    error = await tsm.refused(delivered.report(request_id=other.request_id))
    assert (error.reason, error.field) == ("RESPONSE_REJECTED", "played.responses[1]")
    assert "in this script's session" in error.detail
    await tsm.client.report_receipt(delivered.report())


async def test_refused_report_leaves_its_request_id_free(tsm: Tsm) -> None:
    delivered = await tsm.play()
    cut_off, whole = delivered.report(responses=delivered.responses[:4]), delivered.report()
    await tsm.refused(cut_off)
    whole.request_id = cut_off.request_id
    assert (await tsm.client.report_receipt(whole)).state == issuance_pb2.ISSUANCE_STATE_ACTIVE


@pytest.mark.parametrize("counter", [0, 0x1000000])
async def test_sequence_counter_out_of_range_is_refused(tsm: Tsm, counter: int) -> None:
    error = await tsm.refused((await tsm.play()).report(sequence_counter=counter))
    assert (error.reason, error.field) == ("FIELD_INVALID", "played.sequence_counter")


async def test_responses_come_in_one_of_two_forms(tsm: Tsm) -> None:
    delivered = await tsm.play()
    for change in ({"responses": ()}, {"remote_responses": [b"\xaf\x80\x00\x00"]}):
        error = await tsm.refused(delivered.report(**change))
        assert (error.reason, error.field) == ("FIELD_INVALID", "played")


async def test_more_responses_than_a_script_has_commands_are_refused(tsm: Tsm) -> None:
    delivered = await tsm.play()
    for form in ("responses", "remote_responses"):
        error = await tsm.refused(delivered.report(**{"responses": (), form: [OK] * (MAX_COMMANDS + 1)}))
        assert (error.reason, error.field) == ("FIELD_INVALID", "played")


async def test_report_with_no_proof_is_refused(tsm: Tsm) -> None:
    wanted = report((await tsm.play()).issuance, b"")
    wanted.ClearField("proof")
    assert (await tsm.refused(wanted)).reason == "RECEIPT_INVALID"


@pytest.mark.parametrize("form", FORMS)
async def test_expanded_form_holds_the_same_commands_and_its_answers_are_taken(tsm: Tsm, form: int) -> None:
    delivered = await tsm.play(form=form)
    script = delivered.script
    assert script.text == ""
    assert [remote.application_aid for remote in script.remote_scripts] == [SSD_AID, bytes.fromhex(APPLET_AID)]
    answers = []
    for remote, commands in zip(script.remote_scripts, split(script), strict=True):
        definite = form == pb.SCRIPT_FORM_EXPANDED_DEFINITE
        inner = b"".join(tlv(0x22, command.apdu) for command in commands)
        assert remote.template == (tlv(0xAA, inner) if definite else b"\xae\x80" + inner + b"\x00\x00")
        numbers = [list(script.commands).index(command) for command in commands]
        inner = b"".join(tlv(0x23, delivered.responses[number]) for number in numbers)
        executed = tlv(0x80, bytes([len(numbers)]))
        answers.append(tlv(0xAB, executed + inner) if definite else b"\xaf\x80" + inner + b"\x00\x00")
    wanted = delivered.report(responses=(), remote_responses=answers)
    active = await tsm.client.report_receipt(wanted)
    assert active.state == issuance_pb2.ISSUANCE_STATE_ACTIVE
    assert await tsm.client.report_receipt(delivered.report(responses=(), remote_responses=answers)) == active
    other = delivered.report(responses=(), remote_responses=answers[::-1])
    other.request_id = wanted.request_id
    with pytest.raises(ApiError) as caught:
        await tsm.client.report_receipt(other)
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_form_is_no_part_of_the_content(tsm: Tsm) -> None:
    delivered = await tsm.play()
    for form in FORMS:
        delivered.fetched.form = form
        assert (await tsm.client.fetch_script(delivered.fetched)).commands == delivered.script.commands
    await tsm.client.report_receipt(delivered.report())


async def test_unknown_form_is_refused_before_anything_is_kept(tsm: Tsm) -> None:
    issued = await tsm.parties.issuer.issue(request(sim_issuer="simIssuers/mno-b"))
    wanted = fetch(issued.name)
    wanted.form = 9  # type: ignore[assignment]  # a client of another version
    with pytest.raises(ApiError) as caught:
        await tsm.client.fetch_script(wanted)
    assert (caught.value.reason, caught.value.field) == ("FIELD_INVALID", "form")
    wanted.form, wanted.sequence_counter = FORMS[0], 7
    assert (await tsm.client.fetch_script(wanted)).sequence_counter == 7


async def test_fault_that_the_uicc_reports_is_told(tsm: Tsm) -> None:
    delivered = await tsm.play()
    bad_format = bytes.fromhex("AB 06 800101 900102")
    error = await tsm.refused(delivered.report(responses=(), remote_responses=[bad_format]))
    assert (error.reason, error.field) == ("SCRIPT_INCOMPLETE", "played.remote_responses[0]")
    assert error.metadata == {"fault": "90"}


def split(script: pb.FetchScriptResponse) -> tuple[list[pb.ScriptCommand], list[pb.ScriptCommand]]:
    """The security domain's commands and the applet's, each without its SELECT."""
    first, second = (at for at, command in enumerate(script.commands) if command.apdu[1] == 0xA4)
    return list(script.commands)[first + 1 : second], list(script.commands)[second + 1 :]


def tlv(tag: int, value: bytes) -> bytes:
    length = len(value)
    size = b"" if length < 0x80 else b"\x81" if length < 0x100 else b"\x82"
    return bytes([tag]) + size + length.to_bytes(2 if length > 0xFF else 1) + value
