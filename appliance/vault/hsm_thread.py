"""The HSM thread: the only one that touches the engine, and so the module; everybody else hands it items and waits.

- Batches take turns, one item each: a long batch delays a short one by items, not by its length.
- What takes no key generation (channels, receipts, completions: a millisecond each) goes before what does (a second).
- A batch is taken whole or refused at once (VAULTS_BUSY), by how many items wait already.
- A batch that its caller leaves is withdrawn: of its items only the one in the engine's hands is still worked on.
- Ending lets the item in hand finish and answers all that wait with DRAINING: nothing was done for them.
- The engine stamps every module call; who wants to know what goes on reads the stamps and never waits for the thread.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from appliance import logs
from appliance.errors import ApplianceError, Reason
from appliance.supervisor import LOGIN

ENDING = frozenset(
    {
        Reason.PIN_REJECTED,
        Reason.TOKEN_ABSENT,
        Reason.TOKEN_CHANGED,
        Reason.KEY_MISSING,
        Reason.KCV_MISMATCH,
        Reason.KEY_ATTRIBUTES_DIFFER,
        Reason.CA_KEY_MISMATCH,
        Reason.MECHANISM_MISSING,
    }
)
"""Faults of the token, met when a session is renewed, after which this process serves nothing more."""


class Closing(Protocol):
    """What an engine must be able to do here."""

    def close(self) -> None:
        """Log out and destroy every session object."""


E = TypeVar("E", bound=Closing)
T = TypeVar("T")


class Stamps:
    """Which module call is under way, and since when: written by the HSM thread alone, read by anybody."""

    def __init__(self) -> None:
        self._last = ("", 0.0)

    def __call__(self, call: str) -> None:
        """A call of this kind begins; "" where it has ended."""
        self._last = (call, time.monotonic())

    def current(self) -> tuple[str, float]:
        """Kind of the call under way and its age in seconds; ("", 0.0) between calls."""
        call, since = self._last
        return (call, time.monotonic() - since) if call else ("", 0.0)


class Batch(Generic[T]):
    """The items of one caller: iterate over (position, result or error) within `with`, as each is made."""

    def __init__(
        self, jobs: Sequence[Callable[[Any], T]], line: "deque[Batch[Any]]", withdraw: Callable[["Batch[T]"], None]
    ) -> None:
        self.waiting = deque(enumerate(jobs))
        """Items not begun; the thread's lock guards it."""
        self.line = line
        """Where it stands while items wait."""
        self._count = len(jobs)
        self._withdraw = withdraw
        self._results: asyncio.Queue[tuple[int, T | ApplianceError]] = asyncio.Queue()

    def __enter__(self) -> AsyncIterator[tuple[int, T | ApplianceError]]:
        return self._made()

    def __exit__(self, *_: object) -> None:
        self._withdraw(self)

    def answer(self, position: int, result: T | ApplianceError) -> None:
        """Delivers a result; on the event loop."""
        self._results.put_nowait((position, result))

    async def _made(self) -> AsyncIterator[tuple[int, T | ApplianceError]]:
        for _ in range(self._count):
            yield await self._results.get()


class HsmThread(Generic[E]):
    """Runs an engine. Made and used on the event loop.

    Args:
        start: makes the engine, in the thread.
        capacity: how many items may wait.
        recycle_after: items after which it ends by itself.
    """

    def __init__(self, start: Callable[[], E], *, capacity: int, recycle_after: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._start = start
        self._recycle_after = recycle_after
        self.capacity = capacity
        self.done = 0
        """Items worked on, failed ones included."""
        self.started: asyncio.Future[E] = self._loop.create_future()
        """The engine, to read its description; never set where it could not be started."""
        self.ended: asyncio.Future[ApplianceError | None] = self._loop.create_future()
        """Why the thread ended; None where that was asked for or due."""
        self._changed = threading.Condition()
        self._quick: deque[Batch[Any]] = deque()
        self._slow: deque[Batch[Any]] = deque()
        self._waiting = 0
        self._ending = False
        threading.Thread(target=self._run, name="hsm", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Items not begun."""
        return self._waiting

    def submit(self, jobs: Sequence[Callable[[E], T]], *, quick: bool = False) -> Batch[T]:
        """Takes a batch; one that is larger than the queue is taken when nothing waits.

        Args:
            jobs: what to do with the engine.
            quick: whether they go before those that are not.

        Raises:
            ApplianceError: VAULTS_BUSY, DRAINING.
        """
        batch = Batch(jobs, self._quick if quick else self._slow, self._withdraw)
        with self._changed:
            if self._ending:
                raise _draining()
            if self._waiting and self._waiting + len(jobs) > self.capacity:
                raise ApplianceError(
                    Reason.VAULTS_BUSY,
                    f"{self._waiting} items wait; there is no room for {len(jobs)} more.",
                    hint="Send the same call a little later, or to another vault.",
                    waiting=self._waiting,
                    capacity=self.capacity,
                )
            self._waiting += len(jobs)
            batch.line.append(batch)
            self._changed.notify()
        return batch

    def end(self) -> None:
        """Takes nothing more, answers what waits with DRAINING, and ends after the item in hand."""
        with self._changed:
            self._ending = True
            for line in (self._quick, self._slow):
                for batch in line:
                    for position, _ in batch.waiting:
                        self._loop.call_soon_threadsafe(batch.answer, position, _draining())
                    batch.waiting.clear()
                line.clear()
            self._waiting = 0
            self._changed.notify()

    def _withdraw(self, batch: Batch[Any]) -> None:
        with self._changed:
            if batch.waiting:
                batch.line.remove(batch)
                self._waiting -= len(batch.waiting)
                batch.waiting.clear()

    def _take(self) -> tuple[Batch[Any], int, Callable[[E], Any]] | None:
        """The next item, in turn; None when the thread shall end."""
        with self._changed:
            while not (line := self._quick or self._slow):
                if self._ending:
                    return None
                self._changed.wait()
            batch = line.popleft()
            position, job = batch.waiting.popleft()
            self._waiting -= 1
            if batch.waiting:
                line.append(batch)
            return batch, position, job

    def _run(self) -> None:
        fault: ApplianceError | None = None
        try:
            engine = self._start()
            try:
                self._loop.call_soon_threadsafe(self.started.set_result, engine)
                fault = self._work(engine)
            finally:
                engine.close()
        except ApplianceError as error:
            fault = error
        except Exception:  # noqa: BLE001 (the process must learn why its thread is gone; `_defect` logs it)
            fault = _defect("the HSM thread ended")
        finally:
            self._loop.call_soon_threadsafe(self.ended.set_result, fault)

    def _work(self, engine: E) -> ApplianceError | None:
        """Works until asked to end, or until the token is lost: then answers why."""
        while (item := self._take()) is not None:
            batch, position, job = item
            fault: ApplianceError | None = None
            try:
                result: object = job(engine)
            except ApplianceError as error:
                result = error
                # A login that failed for no clear reason may have spent a PIN try: it is not repeated either.
                if error.reason in ENDING or error.facts.get("call") == LOGIN:
                    result, fault = _lost(), error
            except Exception:  # noqa: BLE001 (a defect met by one item is not the others'; `_defect` logs it)
                result = _defect("an item failed")
            self.done += 1
            self._loop.call_soon_threadsafe(batch.answer, position, result)
            if fault is not None or self.done >= self._recycle_after:
                self.end()
                return fault
        return None


def _draining() -> ApplianceError:
    return ApplianceError(
        Reason.DRAINING, "This vault is stopping; nothing was done.", hint="Send the same call again."
    )


def _lost() -> ApplianceError:
    return ApplianceError(
        Reason.VAULTS_UNAVAILABLE,
        "The vault cannot use its token any more and ends.",
        hint="Send the same call again; the vault's log tells the operator why.",
    )


def _defect(event: str) -> ApplianceError:
    logs.get().error(event, exc_info=True)
    return ApplianceError(
        Reason.INTERNAL, "The vault met a defect of its own.", hint="Its log has it; repeat the call or report it."
    )
