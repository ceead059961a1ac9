"""Session keys in batches: over real sockets, to a fake vault that answers each item when the test says so."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest

from appliance.apdu.scp03 import Mode, card_challenge, derive_session_keys
from appliance.api.status import abort
from appliance.errors import ApplianceError, Reason
from appliance.issuing.channels import CALLS
from appliance.issuing.link import VaultLost
from appliance.issuing.vaults import MAX_LOST, OpenChannel, Vaults, retried
from appliance.vault.v1 import vault_pb2 as pb
from tests.issuing.test_vaults import RECORD, until
from tests.server.fake_vault import CAPACITY, K_ENC, K_MAC, SSD_AID, Context, FakeVault
from tests.server.site import WAIT

CHALLENGE = bytes(range(8))
EVERYTHING = 1000


class CountingVault(FakeVault):
    """Notes the sequence counters of each call, and answers as many items as it is told to.

    Args:
        answers: how many.

    refuses: what it answers to the item with this sequence counter.
    ends_with: how it ends every call.
    answer_as: the response that is sent for the right one; None for none.
    last_first: it begins with the last item of a call.
    """

    def __init__(self, directory: Path, name: str = "v0-1", answers: int = EVERYTHING) -> None:
        super().__init__(directory, name)
        self.calls: list[list[int]] = []
        self.began = asyncio.Semaphore(0)
        self.refuses: dict[int, Reason] = {}
        self.ends_with: ApplianceError | None = None
        self.last_first = False
        self.answer_as: Callable[[pb.OpenChannelsResponse], pb.OpenChannelsResponse | None] = lambda right: right
        self._may_answer = asyncio.Semaphore(answers)

    def answer(self, count: int = EVERYTHING) -> None:
        """So many items more."""
        for _ in range(count):
            self._may_answer.release()

    async def begun(self, count: int = 1) -> None:
        """So many calls more have arrived."""
        async with asyncio.timeout(WAIT):
            for _ in range(count):
                await self.began.acquire()

    async def OpenChannels(  # noqa: N802 (the proto's)
        self, request: pb.OpenChannelsRequest, context: Context
    ) -> AsyncIterator[pb.OpenChannelsResponse]:
        self.calls.append([item.sequence_counter for item in request.items])
        self.began.release()
        if self.ends_with:
            await abort(context, self.ends_with)
        items = reversed(request.items) if self.last_first else request.items
        for item in items:
            await self._may_answer.acquire()
            reason = self.refuses.get(item.sequence_counter)
            if reason:
                failure = pb.Failure(reason=reason, detail="The vault's.", hint="The vault's hint.")
                yield pb.OpenChannelsResponse(index=item.index, failure=failure)
                continue
            async for right in super().OpenChannels(pb.OpenChannelsRequest(items=[item]), context):
                if (response := self.answer_as(right)) is not None:
                    yield response


@pytest.fixture
async def vaults(sockets: Path) -> AsyncIterator[Vaults]:
    async with Vaults(sockets, patience=WAIT) as vaults:
        yield vaults


async def ask(vaults: Vaults, counter: int) -> OpenChannel:
    async with asyncio.timeout(WAIT):
        return await vaults.open_channel(RECORD, counter, CHALLENGE)


def asking(vaults: Vaults, counters: Iterable[int]) -> list[asyncio.Task[OpenChannel]]:
    return [asyncio.create_task(ask(vaults, counter)) for counter in counters]


async def busy(vaults: Vaults, vault: CountingVault) -> list[asyncio.Task[OpenChannel]]:
    """As many calls are on their way as a vault gets, of an item each."""
    alone = []
    for counter in range(1, CALLS + 1):
        alone += asking(vaults, [counter])
        await vault.begun()
    assert vault.calls == [[1], [2]], "each went at once and alone"
    return alone


def assert_keys(opened: OpenChannel, counter: int) -> None:
    """Those of this sequence counter."""
    challenge = card_challenge(K_ENC, counter, SSD_AID, Mode.S8)
    expected = derive_session_keys(K_ENC, K_MAC, CHALLENGE, challenge)
    assert (opened.card_challenge, opened.keys.s_enc, opened.keys.s_mac) == (challenge, expected.s_enc, expected.s_mac)


async def test_what_is_asked_for_while_calls_are_on_their_way_goes_together(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets, answers=0) as vault:
        await vaults.wait_ready(WAIT)
        tasks = await busy(vaults, vault)
        for counter in (3, 4):
            tasks += asking(vaults, [counter])
            await asyncio.sleep(0.02)
        assert vault.calls == [[1], [2]]
        vault.answer(1)
        await vault.begun()
        assert vault.calls == [[1], [2], [3, 4]]
        vault.answer()
        for counter, task in enumerate(tasks, 1):
            assert_keys(await task, counter)


async def test_what_is_asked_for_in_one_breath_is_one_call(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets) as vault:
        await vaults.wait_ready(WAIT)
        opened = await asyncio.gather(*(ask(vaults, counter) for counter in range(1, CAPACITY + 1)))
        assert vault.calls == [[*range(1, CAPACITY + 1)]]
    for counter, channel in enumerate(opened, 1):
        assert_keys(channel, counter)


async def test_no_vault_gets_more_than_it_has_room_for(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets, answers=0) as vault:
        await vaults.wait_ready(WAIT)
        tasks = asking(vaults, range(1, CAPACITY + 3))
        await vault.begun()
        assert [len(call) for call in vault.calls] == [CAPACITY]
        vault.answer(1)
        assert_keys(await tasks[0], 1)
        await vault.begun()
        assert vault.calls[1:] == [[CAPACITY + 1]], "an answer makes room for one"
        vault.answer()
        for counter, task in enumerate(tasks, 1):
            assert_keys(await task, counter)


async def test_two_vaults_work_beside_each_other(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets, "v0-1", answers=0) as one, CountingVault(sockets, "v1-1", answers=0) as other:
        await until("v0-1 v1-1", vaults)
        tasks = []
        for counter in range(1, 2 * CALLS + 1):
            tasks += asking(vaults, [counter])
            await asyncio.sleep(0.02)
        await one.begun(CALLS)
        await other.begun(CALLS)
        for vault in (one, other):
            vault.answer()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("last_first", [False, True])
async def test_an_item_is_answered_by_its_own_result_as_soon_as_it_is_there(
    vaults: Vaults, sockets: Path, last_first: bool
) -> None:
    async with CountingVault(sockets, answers=0) as vault:
        vault.last_first = last_first
        await vaults.wait_ready(WAIT)
        tasks = asking(vaults, (1, 2, 3))
        await vault.begun()
        assert vault.calls == [[1, 2, 3]]
        for counter in (3, 2, 1) if last_first else (1, 2, 3):
            vault.answer(1)
            assert_keys(await tasks[counter - 1], counter)


async def test_an_item_fails_alone(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets) as vault:
        vault.refuses[2] = Reason.KEY_SET_UNKNOWN
        await vaults.wait_ready(WAIT)
        first, second, third = asking(vaults, (1, 2, 3))
        assert_keys(await first, 1)
        assert_keys(await third, 3)
        with pytest.raises(ApplianceError) as refused:
            await second
    assert (refused.value.reason, refused.value.hint) == (Reason.KEY_SET_UNKNOWN, "The vault's hint.")
    assert vault.calls == [[1, 2, 3]]


async def test_who_leaves_disturbs_nobody(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets, answers=0) as vault:
        await vaults.wait_ready(WAIT)
        on_their_way = asking(vaults, (1, 2))
        await vault.begun()
        on_their_way += asking(vaults, [3])
        await vault.begun()
        waiting = asking(vaults, (4, 5))
        await asyncio.sleep(0)
        on_their_way[0].cancel()
        waiting[0].cancel()
        vault.answer()
        assert_keys(await on_their_way[1], 2)
        assert_keys(await on_their_way[2], 3)
        assert_keys(await waiting[1], 5)
        assert vault.calls == [[1, 2], [3], [5]], "what nobody waits for is not sent"


async def test_what_a_dying_vault_has_not_answered_is_lost_and_another_one_has_it(
    vaults: Vaults, sockets: Path
) -> None:
    async with CountingVault(sockets, "v0-1", answers=1) as dying:
        await vaults.wait_ready(WAIT)
        first, left, second = asking(vaults, (1, 0, 2))
        third = asyncio.create_task(retried(lambda: ask(vaults, 3)))
        assert_keys(await first, 1)
        left.cancel()
        async with CountingVault(sockets, "v1-1") as other:
            await until("v0-1 v1-1", vaults)
            await dying.die()
            with pytest.raises(VaultLost):
                await second
            assert_keys(await third, 3)
            assert (dying.calls, other.calls) == ([[1, 0, 2, 3]], [[3]])


async def test_items_that_cost_every_vault_are_given_up(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets) as vault:
        vault.answer_as = lambda _: None
        await vaults.wait_ready(WAIT)
        tasks = [asyncio.create_task(retried(lambda: ask(vaults, 1))) for _ in range(2)]
        for task in tasks:
            with pytest.raises(ApplianceError) as given_up:
                await task
            assert given_up.value.reason is Reason.VAULTS_UNAVAILABLE
        assert vault.calls == [[1, 1]] * MAX_LOST


def about_another(right: pb.OpenChannelsResponse) -> pb.OpenChannelsResponse:
    return pb.OpenChannelsResponse(index=right.index + 1, keys=right.keys)


async def test_a_vault_that_answers_what_it_was_not_asked_is_lost(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets) as vault:
        vault.answer_as = about_another
        await vaults.wait_ready(WAIT)
        with pytest.raises(VaultLost):
            await ask(vaults, 1)
        assert not vaults.ready
        vault.answer_as = lambda right: right
        assert_keys(await ask(vaults, 2), 2)


@pytest.mark.parametrize("reason", [Reason.DRAINING, Reason.VAULTS_BUSY])
async def test_items_that_a_vault_did_not_take_go_to_another(vaults: Vaults, sockets: Path, reason: Reason) -> None:
    async with CountingVault(sockets, "v0-1") as stopping:
        stopping.refuses = {2: reason, 3: reason}
        await vaults.wait_ready(WAIT)
        tasks = asking(vaults, (1, 2, 3))
        assert_keys(await tasks[0], 1)
        async with CountingVault(sockets, "v1-1") as other:
            for counter, task in enumerate(tasks, 1):
                assert_keys(await task, counter)
        assert sorted(counter for call in other.calls for counter in call) == [2, 3]


async def test_a_call_that_is_refused_as_a_whole_goes_to_another_vault(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets, "v0-1") as full:
        await vaults.wait_ready(WAIT)
        full.busy = True
        tasks = asking(vaults, (1, 2, 3))
        await full.begun()
        async with CountingVault(sockets, "v1-1") as other:
            for counter, task in enumerate(tasks, 1):
                assert_keys(await task, counter)
        assert other.calls == [[1, 2, 3]]
    assert full.calls == [[1, 2, 3]], "it is not asked again before it has been looked at"


async def test_what_comes_back_goes_to_as_many_vaults_as_have_room(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets, "v0-1", answers=0) as one, CountingVault(sockets, "v1-1", answers=0) as other:
        await until("v0-1 v1-1", vaults)
        tasks = asking(vaults, (1, 2))
        await one.begun()
        await other.begun()
        async with CountingVault(sockets, "v2-1") as draining:
            draining.ends_with = ApplianceError(Reason.DRAINING, "Ends.", hint="Another one.")
            await until("v0-1 v1-1 v2-1", vaults)
            tasks += asking(vaults, range(3, 3 + CAPACITY))
            await draining.begun()
            await one.begun()
            await other.begun()
            assert [len(vault.calls[-1]) for vault in (draining, one, other)] == [4, 2, 2]
        for vault in (one, other):
            vault.answer()
        await asyncio.gather(*tasks)


async def test_what_is_asked_for_in_one_breath_is_shared_by_the_vaults(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets, "v0-1") as one, CountingVault(sockets, "v1-1") as other:
        await until("v0-1 v1-1", vaults)
        await asyncio.gather(*asking(vaults, range(1, 6)))
        assert sorted(len(call) for call in one.calls + other.calls) == [2, 3]


async def test_a_vault_that_hangs_takes_no_calls_from_the_others(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets, "v0-1", 0) as hanging, CountingVault(sockets, "v1-1", 0) as other:
        await until("v0-1 v1-1", vaults)
        tasks: list[asyncio.Task[OpenChannel]] = []
        for _ in range(CALLS):
            for counter in (1, 2):
                tasks += asking(vaults, [counter])
                await asyncio.sleep(0.02)
            await hanging.begun()
            await other.begun()
        other.answer()
        for counter in range(100, 110):
            assert_keys(await ask(vaults, counter), counter)
        assert len(hanging.calls) == CALLS
        hanging.answer()
        await asyncio.gather(*tasks)


async def test_what_waits_goes_to_a_vault_that_begins_to_serve(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets, answers=0) as vault:
        await vaults.wait_ready(WAIT)
        tasks = await busy(vaults, vault)
        [waiting] = asking(vaults, [3])
        async with CountingVault(sockets, "v1-1") as other:
            assert_keys(await waiting, 3)
            assert other.calls == [[3]]
        vault.answer()
        await asyncio.gather(*tasks)


async def test_what_a_vault_did_not_take_goes_on_while_it_works_on_the_rest(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets, answers=0) as vault:
        await vaults.wait_ready(WAIT)
        vault.refuses = {1: Reason.DRAINING}
        tasks = asking(vaults, (1, 2))
        await vault.begun()
        async with CountingVault(sockets, "v1-1") as other:
            await until("v0-1 v1-1", vaults)
            vault.answer(1)
            assert_keys(await tasks[0], 1)
            assert other.calls == [[1]]
        vault.answer()
        assert_keys(await tasks[1], 2)


async def test_patience_of_what_waits_ends_while_calls_are_on_their_way(sockets: Path) -> None:
    async with CountingVault(sockets, answers=0) as vault, Vaults(sockets, patience=0.3) as vaults:
        await vaults.wait_ready(WAIT)
        tasks = await busy(vaults, vault)
        with pytest.raises(ApplianceError) as caught:
            await ask(vaults, 3)
        assert caught.value.reason is Reason.VAULTS_BUSY
        vault.answer()
        await asyncio.gather(*tasks)
        assert vault.calls == [[1], [2]]


async def test_after_the_end_nothing_is_taken(sockets: Path) -> None:
    async with CountingVault(sockets) as vault:
        async with Vaults(sockets, patience=WAIT) as vaults:
            await vaults.wait_ready(WAIT)
        with pytest.raises(ApplianceError) as caught:
            await ask(vaults, 1)
        assert caught.value.reason is Reason.VAULTS_UNAVAILABLE
        assert vault.calls == []


async def test_a_call_that_fails_as_a_whole_is_an_error_of_its_own_for_each(vaults: Vaults, sockets: Path) -> None:
    async with CountingVault(sockets) as vault:
        vault.ends_with = ApplianceError(Reason.FIELD_INVALID, "The vault's.", hint="Its hint.", field="items", fact=1)
        await vaults.wait_ready(WAIT)
        one, other = await asyncio.gather(*asking(vaults, (1, 2)), return_exceptions=True)
        for error in (one, other):
            assert isinstance(error, ApplianceError)
            told = (error.reason, error.detail, error.hint, error.field, error.facts)
            assert told == (Reason.FIELD_INVALID, "The vault's.", "Its hint.", "items", {"fact": "1"})
        assert one is not other, "who gets an error may add to it"


async def test_a_defect_of_the_front_lets_nobody_wait(
    vaults: Vaults, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(_: pb.Failure) -> ApplianceError:
        raise ZeroDivisionError

    async with CountingVault(sockets) as vault:
        vault.refuses = {1: Reason.KEY_SET_UNKNOWN}
        await vaults.wait_ready(WAIT)
        monkeypatch.setattr("appliance.issuing.channels.refusal", defect)
        for error in await asyncio.gather(*asking(vaults, (1, 2)), return_exceptions=True):
            assert isinstance(error, ZeroDivisionError)
        assert_keys(await ask(vaults, 3), 3)


async def test_items_wait_for_a_vault_but_not_for_ever_and_each_gets_an_error_of_its_own(sockets: Path) -> None:
    async with Vaults(sockets, patience=0.05) as hasty:
        errors = await asyncio.gather(*asking(hasty, (1, 2)), return_exceptions=True)
    assert [getattr(error, "reason", error) for error in errors] == [Reason.VAULTS_UNAVAILABLE] * 2
    assert errors[0] is not errors[1]
    async with Vaults(sockets, patience=WAIT) as patient:
        tasks = asking(patient, (1, 2))
        await asyncio.sleep(0)
        async with CountingVault(sockets) as vault:
            for counter, task in enumerate(tasks, 1):
                assert_keys(await task, counter)
            assert vault.calls == [[1, 2]]


async def test_nobody_waits_for_vaults_that_were_left(sockets: Path) -> None:
    async with CountingVault(sockets, answers=0) as vault:
        async with Vaults(sockets, patience=WAIT) as vaults:
            await vaults.wait_ready(WAIT)
            tasks = await busy(vaults, vault)
            tasks += asking(vaults, [3])
            await asyncio.sleep(0)
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError | VaultLost) for end in ended), ended
