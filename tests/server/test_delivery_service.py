"""DeliveryService over mutual TLS, with the real ledger, the real rendering and a fake vault."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from appliance.apdu.scp03 import Mode, card_challenge, derive_session_keys
from appliance.apdu.script import Channel, render
from appliance.api.v1 import delivery_pb2 as pb
from appliance.api.v1 import issuance_pb2
from appliance.client import ApiError, IssuerClient, TsmClient
from appliance.domain.package import KeyType, SimPackage

from .fake_vault import K_ENC, K_MAC, SSD_AID, FakeVault, good_receipt
from .site import APPLET_AID, Front, request


@dataclass
class Parties:
    """The issuer, and the TSMs of two SIM issuers."""

    issuer: IssuerClient
    a: TsmClient
    b: TsmClient
    vault: FakeVault

    async def package(self, name: str) -> bytes:
        """The package of a READY issuance."""
        wanted = issuance_pb2.GetIssuanceRequest(name=name, view=issuance_pb2.ISSUANCE_VIEW_WITH_PACKAGE)
        return (await self.issuer.get_issuance(wanted)).package

    async def receipt(self, name: str) -> bytes:
        """The receipt that the fake takes for this issuance."""
        package = SimPackage.decode(await self.package(name))
        return good_receipt(package.header.encode(), package.certificate)


@pytest.fixture
async def parties(front: Front, vault: FakeVault) -> AsyncIterator[Parties]:
    async with front.channel("issuer") as issuer, front.channel("tsm-a") as a, front.channel("tsm-b") as b:
        yield Parties(IssuerClient(issuer), TsmClient(a), TsmClient(b), vault)


def fetch(issuance: str, sequence_counter: int = 1) -> pb.FetchScriptRequest:
    return pb.FetchScriptRequest(request_id=str(uuid.uuid4()), issuance=issuance, sequence_counter=sequence_counter)


def report(issuance: str, receipt: bytes) -> pb.ReportReceiptRequest:
    return pb.ReportReceiptRequest(request_id=str(uuid.uuid4()), issuance=issuance, receipt=receipt)


async def refused(client: TsmClient, wanted: pb.FetchScriptRequest | pb.ReportReceiptRequest) -> ApiError:
    with pytest.raises(ApiError) as caught:
        if isinstance(wanted, pb.FetchScriptRequest):
            await client.fetch_script(wanted)
        else:
            await client.report_receipt(wanted)
    return caught.value


@pytest.mark.parametrize(
    ("sim_issuer", "mode", "level"), [("mno-a", Mode.S8, 0x03), ("mno-b", Mode.S16, 0x33)], ids=["S8", "S16"]
)
async def test_a_script_carries_the_package_through_the_channel_of_the_key_set(
    parties: Parties, sim_issuer: str, mode: Mode, level: int
) -> None:
    issued = await parties.issuer.issue(request(sim_issuer=f"simIssuers/{sim_issuer}"))
    tsm = parties.a if sim_issuer == "mno-a" else parties.b
    script = await tsm.fetch_script(fetch(issued.name, 0x000102))
    (asked,) = parties.vault.channels
    assert (asked.sim_issuer, asked.kvn, asked.sequence_counter) == (sim_issuer, 0x30, 0x000102)
    challenge = card_challenge(K_ENC, 0x000102, SSD_AID, mode)
    expected = render(
        await parties.package(issued.name),
        KeyType.EC_P256,
        bytes.fromhex(APPLET_AID),
        Channel(
            SSD_AID,
            0x01,
            derive_session_keys(K_ENC, K_MAC, asked.host_challenge, challenge),
            asked.host_challenge,
            challenge,
            level,
            mode,
        ),
    )
    assert [command.apdu for command in script.commands] == [command.apdu for command in expected.commands]
    assert all(list(command.expected_status_words) == [0x9000] for command in script.commands)
    assert script.text == expected.text()
    assert (script.iccid, script.sequence_counter) == (issued.iccid, 0x000102)


async def test_the_same_fetch_gets_the_same_script_and_another_one_another(parties: Parties) -> None:
    issued = await parties.issuer.issue(request())
    wanted = fetch(issued.name)
    script = await parties.a.fetch_script(wanted)
    assert await parties.a.fetch_script(wanted) == script
    assert (await parties.a.fetch_script(fetch(issued.name))).text != script.text
    wanted.sequence_counter = 2
    assert (await refused(parties.a, wanted)).reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("counter", [0, 0x1000000])
async def test_a_sequence_counter_out_of_range_is_refused(parties: Parties, counter: int) -> None:
    error = await refused(parties.a, fetch(f"issuances/{'0' * 32}", counter))
    assert (error.code, error.reason, error.field) == ("INVALID_ARGUMENT", "FIELD_INVALID", "sequence_counter")


async def test_a_tsm_cannot_tell_another_ones_issuance_from_none(parties: Parties) -> None:
    issued = await parties.issuer.issue(request())
    for wanted in (fetch, lambda name: report(name, bytes(80))):
        foreign = await refused(parties.b, wanted(issued.name))
        absent = await refused(parties.b, wanted(f"issuances/{'0' * 32}"))
        assert (foreign.code, foreign.reason) == ("NOT_FOUND", "ISSUANCE_NOT_FOUND")
        assert (foreign.detail, foreign.hint, foreign.field) == (absent.detail, absent.hint, absent.field)
        assert foreign.metadata == {"issuance": issued.name}
        assert absent.metadata.keys() == foreign.metadata.keys()
    assert parties.vault.channels == []


async def test_a_good_receipt_makes_the_issuance_active_and_erases_the_package(parties: Parties) -> None:
    issued = await parties.issuer.issue(request())
    active = await parties.a.report_receipt(report(issued.name, await parties.receipt(issued.name)))
    assert (active.name, active.state) == (issued.name, issuance_pb2.ISSUANCE_STATE_ACTIVE)
    assert await parties.package(issued.name) == b""
    error = await refused(parties.a, fetch(issued.name))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "ISSUANCE_NOT_READY")


async def test_a_receipt_reported_again_changes_nothing_and_succeeds(parties: Parties) -> None:
    issued = await parties.issuer.issue(request())
    wanted = report(issued.name, await parties.receipt(issued.name))
    first = await parties.a.report_receipt(wanted)
    assert await parties.a.report_receipt(wanted) == first
    assert await parties.a.report_receipt(report(issued.name, wanted.receipt)) == first
    error = await refused(parties.a, report(issued.name, bytes(80)))
    assert error.reason == "RECEIPT_REJECTED"


async def test_a_receipt_of_another_issuance_is_refused_and_changes_nothing(parties: Parties) -> None:
    one = await parties.issuer.issue(request("one"))
    other = await parties.issuer.issue(request("other"))
    error = await refused(parties.a, report(one.name, await parties.receipt(other.name)))
    assert (error.code, error.reason, error.field) == ("INVALID_ARGUMENT", "RECEIPT_REJECTED", "receipt")
    shown = await parties.issuer.get_issuance(issuance_pb2.GetIssuanceRequest(name=one.name))
    assert shown.state == issuance_pb2.ISSUANCE_STATE_READY


async def test_a_receipt_of_the_wrong_length_is_refused_without_asking_a_vault(parties: Parties) -> None:
    issued = await parties.issuer.issue(request())
    parties.vault.busy = True
    error = await refused(parties.a, report(issued.name, bytes(79)))
    assert (error.reason, error.field) == ("RECEIPT_INVALID", "receipt")


async def test_a_receipt_for_an_issuance_that_ended_is_refused(parties: Parties) -> None:
    issued = await parties.issuer.issue(request())
    receipt = await parties.receipt(issued.name)
    await parties.issuer.abandon(issuance_pb2.AbandonRequest(request_id=str(uuid.uuid4()), name=issued.name))
    error = await refused(parties.a, report(issued.name, receipt))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "ISSUANCE_ENDED")


@pytest.mark.parametrize("request_id", ["", "1", "A" * 36])
async def test_a_request_id_that_is_no_uuid_is_refused(parties: Parties, request_id: str) -> None:
    name = f"issuances/{'0' * 32}"
    for wanted in (fetch(name), report(name, bytes(80))):
        wanted.request_id = request_id
        assert (await refused(parties.a, wanted)).reason == "REQUEST_ID_INVALID"


async def test_nothing_is_kept_of_a_fetch_that_finds_no_vault(parties: Parties) -> None:
    issued = await parties.issuer.issue(request())
    wanted = fetch(issued.name)
    await parties.vault.die()
    assert (await refused(parties.a, wanted)).reason == "VAULTS_UNAVAILABLE"
    wanted.sequence_counter = 2
    assert (await refused(parties.a, wanted)).reason == "VAULTS_UNAVAILABLE"
