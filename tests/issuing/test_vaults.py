"""The front's view of its vaults: real channels over real sockets, to fakes that do as the test says."""

import asyncio
import errno
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.domain.issuance import Attempt, IssuanceRecord, State
from appliance.domain.package import Header, KeyType, PendingPackage, SimPackage
from appliance.errors import ApplianceError, Reason
from appliance.issuing.link import VaultLost
from appliance.issuing.vaults import Vaults, newest_sockets
from appliance.vault.v1 import vault_pb2 as pb
from tests.server.fake_vault import CAPACITY, FakeVault, pending_for
from tests.server.site import ACTIVATION_CODE, APPLET_AID, WAIT

NOW = datetime(2026, 7, 1, tzinfo=UTC)
RECORD = IssuanceRecord(
    id="0" * 32,
    client="urn:client",
    request_id="",
    state=State.RESERVED,
    person_id="person-1",
    sim_issuer="mno-a",
    iccid="8981309114170753644",
    kvn=0x30,
    applet_aid=bytes.fromhex(APPLET_AID),
    key_type=KeyType.EC_P256,
    profile="test",
    subject_common_name="0000000001",
    not_after=NOW,
    card_issuer="C=JP",
    card_serial=b"\x01",
    card_not_after=NOW,
    created=NOW,
    updated=NOW,
)
ATTEMPT = Attempt(RECORD.id, 1, 7, b"\x40" * 16)


@pytest.fixture
async def vaults(sockets: Path) -> AsyncIterator[Vaults]:
    async with Vaults(sockets, patience=WAIT) as vaults:
        yield vaults


async def issue(vaults: Vaults) -> bytes:
    made = await issue_externally(vaults)
    assert isinstance(made, bytes)
    return made


async def issue_externally(vaults: Vaults) -> bytes | PendingPackage:
    return await asyncio.wait_for(vaults.issue(RECORD, ATTEMPT, ACTIVATION_CODE, NOW), WAIT)


async def until(condition: str, vaults: Vaults) -> None:
    """Returns when the names of the vaults that answer are these."""
    async with asyncio.timeout(WAIT):
        while " ".join(status.vault for status in vaults.status()) != condition:
            await vaults.change(WAIT)


async def test_an_attempt_reaches_the_vault_field_by_field(vaults: Vaults, sockets: Path) -> None:
    async with FakeVault(sockets) as vault:
        await vaults.wait_ready(WAIT)
        header = SimPackage.decode(await issue(vaults)).header
    (item,) = vault.items
    assert (header.counter, header.kvn, header.iccid) == (7, 0x30, bytes.fromhex("981803194171703546f4"))
    assert (item.certificate_serial, item.activation_code) == (ATTEMPT.serial, ACTIVATION_CODE)
    assert item.not_before_seconds == item.not_after_seconds == int(NOW.timestamp())


async def test_without_vaults_nothing_is_admitted(vaults: Vaults) -> None:
    with pytest.raises(ApplianceError) as caught, vaults.admit():
        pass
    assert caught.value.reason is Reason.VAULTS_UNAVAILABLE
    with pytest.raises(ApplianceError) as caught:
        await vaults.wait_ready(0.01)
    assert caught.value.reason is Reason.VAULTS_UNAVAILABLE


async def test_as_many_are_admitted_as_the_queues_hold(vaults: Vaults, sockets: Path) -> None:
    async with FakeVault(sockets, "v0-1"), FakeVault(sockets, "v1-1"):
        await until("v0-1 v1-1", vaults)
        places = [vaults.admit() for _ in range(2 * CAPACITY)]
        for place in places:
            place.__enter__()
        with pytest.raises(ApplianceError) as caught, vaults.admit():
            pass
        assert caught.value.reason is Reason.VAULTS_BUSY
        places.pop().__exit__(None, None, None)
        with vaults.admit():
            pass
        for place in places:
            place.__exit__(None, None, None)


async def test_a_queue_that_is_full_without_us_admits_nothing(vaults: Vaults, sockets: Path) -> None:
    async with FakeVault(sockets) as vault:
        vault.busy = True
        await until("v0-1", vaults)
        with pytest.raises(ApplianceError) as caught, vaults.admit():
            pass
        assert caught.value.reason is Reason.VAULTS_BUSY
        vault.busy = False
        assert await issue(vaults)


async def test_items_go_to_the_least_loaded_vault(vaults: Vaults, sockets: Path) -> None:
    async with FakeVault(sockets, "v0-1") as one, FakeVault(sockets, "v1-1") as other:
        await until("v0-1 v1-1", vaults)
        for vault in (one, other):
            vault.let_go.clear()
        issuing = [asyncio.create_task(issue(vaults)) for _ in range(4)]
        for vault in (one, one, other, other):
            await asyncio.wait_for(vault.taken.acquire(), WAIT)
        for vault in (one, other):
            vault.let_go.set()
        await asyncio.gather(*issuing)
    assert len(one.items) == len(other.items) == 2


async def test_a_vault_that_dies_with_an_item_is_lost_and_no_other_gets_the_attempt(
    vaults: Vaults, sockets: Path
) -> None:
    async with FakeVault(sockets, "v0-1") as dying:
        await vaults.wait_ready(WAIT)
        dying.let_go.clear()
        issuing = asyncio.create_task(issue(vaults))
        await asyncio.wait_for(dying.taken.acquire(), WAIT)
        async with FakeVault(sockets, "v1-1") as other:
            await until("v0-1 v1-1", vaults)
            await dying.die()
            with pytest.raises(VaultLost):
                await issuing
            assert other.items == []
            assert vaults.ready
            await issue(vaults)
            assert len(other.items) == 1


async def test_a_vault_that_breaks_a_call_gets_no_other_before_it_has_answered_again(
    vaults: Vaults, sockets: Path
) -> None:
    async with FakeVault(sockets) as vault:
        await vaults.wait_ready(WAIT)
        vault.broken = True
        with pytest.raises(VaultLost):
            await issue(vaults)
        assert not vaults.ready
        vault.broken = False
        assert await issue(vaults)


@pytest.mark.parametrize("reason", [Reason.DRAINING, Reason.VAULTS_BUSY])
async def test_an_item_that_a_vault_did_not_take_goes_to_another(vaults: Vaults, sockets: Path, reason: Reason) -> None:
    async with FakeVault(sockets, "v0-1") as stopping:
        stopping.refusal = ApplianceError(reason, "Not taken.", hint="Another one.")
        await vaults.wait_ready(WAIT)
        issuing = asyncio.create_task(issue(vaults))
        await asyncio.wait_for(stopping.taken.acquire(), WAIT)
        async with FakeVault(sockets, "v1-1") as other:
            assert SimPackage.decode(await issuing).header.counter == ATTEMPT.counter
        assert len(other.items) == 1


async def test_the_vaults_refusal_comes_through_as_it_is(vaults: Vaults, sockets: Path) -> None:
    async with FakeVault(sockets) as vault:
        vault.refusal = ApplianceError(Reason.CERTIFICATE_REFUSED, "The lint.", hint="The hint.")
        await vaults.wait_ready(WAIT)
        with pytest.raises(ApplianceError) as caught:
            await issue(vaults)
    assert (caught.value.reason, caught.value.detail, caught.value.hint) == (
        Reason.CERTIFICATE_REFUSED,
        "The lint.",
        "The hint.",
    )


async def test_what_is_no_sim_package_is_the_vaults_defect_and_not_the_clients(vaults: Vaults, sockets: Path) -> None:
    async with FakeVault(sockets) as vault:
        vault.truncates = True
        await vaults.wait_ready(WAIT)
        with pytest.raises(ApplianceError) as caught:
            await issue(vaults)
    assert caught.value.reason is Reason.INTERNAL


async def test_what_waits_for_a_certificate_comes_field_by_field_and_no_certificate_completes_nonsense(
    vaults: Vaults, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeVault(sockets) as vault:
        vault.external = True
        await vaults.wait_ready(WAIT)
        pending = await issue_externally(vaults)
        (item,) = vault.items
        sent = pending_for(item)
        assert pending == PendingPackage(
            Header.decode(sent.header), sent.wrapped_key, sent.certificate_request, sent.interim_mac
        )
        for nonsense in (b"", b"\xe1\x00", sent.header + b"\x00"):
            wrong = pb.PendingPackage(
                header=nonsense, wrapped_key=b"1", certificate_request=b"1", interim_mac=bytes(16)
            )
            monkeypatch.setattr("tests.server.fake_vault.pending_for", lambda _, wrong=wrong: wrong)
            with pytest.raises(ApplianceError) as caught:
                await issue_externally(vaults)
            assert caught.value.reason is Reason.INTERNAL


async def test_a_new_generation_takes_over_from_a_dead_one(vaults: Vaults, sockets: Path) -> None:
    async with FakeVault(sockets, "v0-9") as old:
        await vaults.wait_ready(WAIT)
        await old.die()
    (sockets / "v0-9.sock").touch()  # what a process that is killed leaves behind
    async with FakeVault(sockets, "v0-10"):
        await until("v0-10", vaults)
        await issue(vaults)


async def test_an_item_waits_for_a_vault_to_come_back_but_not_for_ever(sockets: Path) -> None:
    async with Vaults(sockets, patience=0.05) as hasty:
        with pytest.raises(ApplianceError) as caught:
            await issue(hasty)
        assert caught.value.reason is Reason.VAULTS_UNAVAILABLE
    async with Vaults(sockets, patience=WAIT) as patient:
        issuing = asyncio.create_task(issue(patient))
        await asyncio.sleep(0)
        async with FakeVault(sockets):
            assert await issuing


async def test_vaults_that_serve_are_kept_while_their_directory_cannot_be_read(
    sockets: Path, vaults: Vaults, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = asyncio.Event()

    def no_descriptor_left(_: Path) -> list[Path]:
        looked.set()
        raise OSError(errno.EMFILE, "Too many open files")

    async with FakeVault(sockets):
        await until("v0-1", vaults)
        monkeypatch.setattr("appliance.issuing.vaults.newest_sockets", no_descriptor_left)
        await asyncio.wait_for(looked.wait(), WAIT)
        looked.clear()
        await asyncio.wait_for(looked.wait(), WAIT)
        assert await issue(vaults)


def test_the_newest_socket_of_each_slot_counts_and_nothing_else(tmp_path: Path) -> None:
    for name in ("v0-9.sock", "v0-10.sock", "v1-2.sock", "v1-2.sock.tmp", "vault.sock", "v2-.sock"):
        (tmp_path / name).touch()
    assert [path.name for path in newest_sockets(tmp_path)] == ["v0-10.sock", "v1-2.sock"]
    assert newest_sockets(tmp_path / "absent") == []
