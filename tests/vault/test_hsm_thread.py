"""The HSM thread with a fake engine: jobs are the test's own, some of them held until the test lets them go."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from appliance.errors import ApplianceError, Reason
from appliance.vault.hsm_thread import ENDING, Batch, HsmThread, Stamps

WAIT = 20.0
Job = Callable[["FakeEngine"], object]


class FakeEngine:
    """Does nothing but note who used it."""

    def __init__(self) -> None:
        self.users = {threading.get_ident()}
        self.done: list[object] = []
        self.closed = False

    def do(self, what: object) -> object:
        self.users.add(threading.get_ident())
        self.done.append(what)
        return what

    def close(self) -> None:
        self.users.add(threading.get_ident())
        self.closed = True


class Gate:
    """A job that stands in the engine's hands until the test opens it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._entered = asyncio.Event()
        self._opened = threading.Event()

    def __call__(self, engine: FakeEngine) -> object:
        self._loop.call_soon_threadsafe(self._entered.set)
        assert self._opened.wait(WAIT)
        return engine.do("gate")

    async def entered(self) -> None:
        await asyncio.wait_for(self._entered.wait(), WAIT)

    def open(self) -> None:
        self._opened.set()


Start = Callable[..., HsmThread[FakeEngine]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    threads: list[HsmThread[FakeEngine]] = []

    def make(engine: Callable[[], FakeEngine] = FakeEngine, capacity: int = 4, recycle_after: int = 1000) -> object:
        threads.append(HsmThread(engine, capacity=capacity, recycle_after=recycle_after))
        return threads[-1]

    yield make  # type: ignore[misc]  # Start says more than a Callable can
    for thread in threads:
        thread.end()
        await asyncio.wait_for(asyncio.wait({thread.ended}), WAIT)


def do(*what: object) -> list[Job]:
    return [lambda engine, item=item: engine.do(item) for item in what]  # type: ignore[misc]  # mypy #4226: defaults


def jobs(*given: Job) -> list[Job]:
    return list(given)


def refuse(reason: Reason, **facts: str) -> Job:
    def job(_: FakeEngine) -> object:
        raise ApplianceError(reason, "What.", hint="How.", field="where", **facts)

    return job


async def collect(batch: Batch[object]) -> list[tuple[int, object]]:
    async with asyncio.timeout(WAIT):
        with batch as results:
            return [made async for made in results]


def reason_of(result: object) -> Reason:
    assert isinstance(result, ApplianceError)
    return result.reason


async def test_each_item_gets_its_result(start: Start) -> None:
    assert await collect(start().submit(do("a", "b", "c"))) == [(0, "a"), (1, "b"), (2, "c")]


async def test_one_thread_alone_makes_uses_and_closes_the_engine(start: Start) -> None:
    thread = start()
    await collect(thread.submit(do(1, 2)))
    thread.end()
    assert await thread.ended is None
    engine = thread.started.result()
    assert engine.closed
    assert len(engine.users) == 1
    assert threading.get_ident() not in engine.users


async def test_results_are_delivered_as_they_are_made(start: Start) -> None:
    gate = Gate()
    with start().submit(jobs(*do("first"), gate)) as results:
        assert await anext(results) == (0, "first")
        await gate.entered()
        gate.open()
        assert await anext(results) == (1, "gate")


async def test_batches_take_turns(start: Start) -> None:
    thread, gate = start(capacity=100), Gate()
    first = thread.submit([gate])
    await gate.entered()
    long, short = thread.submit(do(*range(8))), thread.submit(do("x", "y"))
    gate.open()
    await asyncio.gather(collect(first), collect(long), collect(short))
    assert thread.started.result().done[:6] == ["gate", 0, "x", 1, "y", 2]


async def test_what_is_quick_does_not_wait_for_what_is_slow(start: Start) -> None:
    thread, gate = start(capacity=100), Gate()
    first = thread.submit([gate])
    await gate.entered()
    slow, one, two = (
        thread.submit(do(1, 2)),
        thread.submit(do("x", "y"), quick=True),
        thread.submit(do("z"), quick=True),
    )
    gate.open()
    await asyncio.gather(*map(collect, (first, slow, one, two)))
    assert thread.started.result().done == ["gate", "x", "z", "y", 1, 2]


async def test_quick_items_that_wait_are_refused_at_the_end_and_can_be_withdrawn(start: Start) -> None:
    thread, gate = start(capacity=100), Gate()
    first = thread.submit([gate])
    await gate.entered()
    with thread.submit(do("left"), quick=True):
        pass
    waiting = thread.submit(do("late"), quick=True)
    thread.end()
    gate.open()
    ((_, refused),) = await collect(waiting)
    assert reason_of(refused) is Reason.DRAINING
    await collect(first)
    assert thread.started.result().done == ["gate"]


async def test_what_an_item_is_refused_for_is_its_result_alone(start: Start) -> None:
    thread = start()
    (_, bad), good = await collect(thread.submit([refuse(Reason.ICCID_INVALID), *do("good")]))
    assert reason_of(bad) is Reason.ICCID_INVALID
    assert good == (1, "good")
    assert thread.done == 2


async def test_a_defect_is_one_items_internal_error_and_quotes_nothing(start: Start) -> None:
    def job(_: FakeEngine) -> object:
        raise ValueError("secret")

    (_, bad), good = await collect(start().submit([job, *do("good")]))
    assert reason_of(bad) is Reason.INTERNAL
    assert "secret" not in str(bad)
    assert good == (1, "good")


async def test_a_full_queue_refuses_a_batch_whole_and_at_once(start: Start) -> None:
    thread, gate = start(capacity=4), Gate()
    held = thread.submit([gate])
    await gate.entered()  # in hand: it waits no more
    three = thread.submit(do(1, 2, 3))
    with pytest.raises(ApplianceError) as caught:
        thread.submit(do(4, 5))
    assert (caught.value.reason, caught.value.facts) == (Reason.VAULTS_BUSY, {"waiting": 3, "capacity": 4})
    one = thread.submit(do(4))
    assert thread.waiting == 4
    gate.open()
    await asyncio.gather(collect(held), collect(three), collect(one))
    assert sorted(map(str, thread.started.result().done)) == ["1", "2", "3", "4", "gate"]


async def test_a_batch_larger_than_the_queue_is_taken_when_nothing_waits(start: Start) -> None:
    thread = start(capacity=2)
    assert len(await collect(thread.submit(do(1, 2, 3)))) == 3


async def test_a_batch_that_its_caller_left_is_not_worked_on(start: Start) -> None:
    thread, gate = start(), Gate()
    with thread.submit(jobs(gate, *do("never", "never"))):
        await gate.entered()
        assert thread.waiting == 2
    assert thread.waiting == 0, "the room is free at once"
    gate.open()
    assert await collect(thread.submit(do("next"))) == [(0, "next")]
    assert thread.started.result().done == ["gate", "next"]


async def test_ending_finishes_the_item_in_hand_and_answers_the_others(start: Start) -> None:
    thread, gate = start(), Gate()
    batch = thread.submit(jobs(gate, *do("never")))
    await gate.entered()
    thread.end()
    with pytest.raises(ApplianceError) as caught:
        thread.submit(do("late"))
    assert caught.value.reason is Reason.DRAINING
    gate.open()
    results = dict(await collect(batch))
    assert results[0] == "gate"
    assert reason_of(results[1]) is Reason.DRAINING
    assert await thread.ended is None
    assert thread.started.result().done == ["gate"]


@pytest.mark.parametrize(
    ("job", "cause"),
    [(refuse(reason), reason) for reason in sorted(ENDING)]
    + [(refuse(Reason.TOKEN_FAULT, call="login"), Reason.TOKEN_FAULT)],
)
async def test_a_lost_token_ends_the_thread_and_no_login_is_repeated(start: Start, job: Job, cause: Reason) -> None:
    thread = start()
    results = dict(await collect(thread.submit([job, *do("never")])))
    assert reason_of(results[0]) is Reason.VAULTS_UNAVAILABLE
    assert reason_of(results[1]) is Reason.DRAINING
    ended = await thread.ended
    assert ended is not None
    assert ended.reason is cause
    assert thread.started.result().closed


async def test_a_token_fault_with_a_renewed_session_does_not_end_it(start: Start) -> None:
    thread = start()
    (_, fault), good = await collect(thread.submit([refuse(Reason.TOKEN_FAULT, call="sign"), *do("good")]))
    assert reason_of(fault) is Reason.TOKEN_FAULT
    assert good == (1, "good")


async def test_it_is_recycled_after_so_many_items(start: Start) -> None:
    thread = start(recycle_after=2)
    results = dict(await collect(thread.submit(do("a", "b", "c"))))
    assert [results[0], results[1]] == ["a", "b"]
    assert reason_of(results[2]) is Reason.DRAINING
    assert await thread.ended is None


async def test_an_engine_that_does_not_start_ends_the_thread(start: Start) -> None:
    def fail() -> FakeEngine:
        raise ApplianceError(Reason.PIN_REJECTED, "What.", hint="How.")

    thread = start(fail)
    assert reason_of(await thread.ended) is Reason.PIN_REJECTED
    assert not thread.started.done()


async def test_a_defect_at_the_start_ends_the_thread(start: Start) -> None:
    def fail() -> FakeEngine:
        raise ValueError("secret")

    ended = await start(fail).ended
    assert reason_of(ended) is Reason.INTERNAL
    assert "secret" not in str(ended)


async def test_stamps_tell_the_call_and_its_age_while_it_goes_on(start: Start) -> None:
    stamps, gate = Stamps(), Gate()

    def job(engine: FakeEngine) -> object:
        stamps("keypair_rsa")
        gate(engine)
        stamps("")
        return None

    assert stamps.current() == ("", 0.0)
    batch = start().submit([job])
    await gate.entered()
    (call, younger), (_, older) = stamps.current(), stamps.current()
    assert call == "keypair_rsa"
    assert 0 <= younger < older
    gate.open()
    await collect(batch)
    assert stamps.current() == ("", 0.0)
