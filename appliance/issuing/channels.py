"""Session keys in batches: what is asked for while calls are on their way is collected, and goes together in the next.

- Nothing waits for company: what comes while a vault has fewer than `CALLS` of these calls goes at once.
- An item is answered when its own result arrives, and fails alone. One whose caller has left is not sent any more, or
  its result is dropped.
- What a vault did not take goes to another, as long as the item's patience lasts. What a vault has not answered when it
  is lost is lost with it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from appliance import logs
from appliance.errors import ApplianceError
from appliance.issuing.link import CALL_TIMEOUT, NOT_TAKEN, Link, VaultLost, refusal, responses
from appliance.vault.v1 import vault_pb2 as pb

CALLS: Final = 2
"""Of each vault: one in its hands, and one that it finds when that is done."""
BATCH_MAX: Final = 64
"""Larger batches gain little and make who comes next wait; the protocol's limit is 1,000."""


@dataclass(frozen=True)
class _Waiting:
    item: pb.ChannelItem
    until: float
    answer: asyncio.Future[pb.ChannelKeys] = field(repr=False)  # a future shows its result


class Channels:
    """Collects items and sends them.

    Args:
        choose: waits until the time given for the least loaded vault with room; raises ApplianceError then.
        serving: how many vaults there are.
    """

    def __init__(self, choose: Callable[[float], Awaitable[Link]], serving: Callable[[], int]) -> None:
        self._choose = choose
        self._serving = serving
        self._waiting: deque[_Waiting] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def open(self, item: pb.ChannelItem, until: float) -> pb.ChannelKeys:
        """The session keys of one item; `until` is how long it waits for a vault with room (the loop's time).

        Raises:
            VaultLost, ApplianceError
        """
        waiting = _Waiting(item, until, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._dispatch()
        return await waiting.answer

    async def close(self) -> None:
        """Ends every call; who still waits is cancelled."""
        for call in self._calls:
            call.cancel()
        for waiting in self._waiting:
            waiting.answer.cancel()
        self._waiting.clear()
        await asyncio.gather(*self._calls, return_exceptions=True)

    def _dispatch(self) -> None:
        """Begins a call where there may be one more."""
        if self._waiting and len(self._calls) < CALLS * max(1, self._serving()):
            call = asyncio.create_task(self._call())
            self._calls.add(call)
            call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._dispatch()

    async def _call(self) -> None:
        """One call to one vault, of all that waits when there is one with room; of nothing, where another was first."""
        first = self._first()
        if first is None:
            return
        try:
            link = await self._choose(first.until)
        except ApplianceError as nowhere:
            _refuse(first, nowhere)
            return
        batch = self._take(min(link.room, BATCH_MAX))
        self._dispatch()
        if batch:
            await self._send(link, batch)

    def _first(self) -> _Waiting | None:
        while self._waiting and self._waiting[0].answer.done():
            self._waiting.popleft()
        return self._waiting[0] if self._waiting else None

    def _take(self, count: int) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while len(batch) < count and self._first() is not None:
            batch.append(self._waiting.popleft())
        return batch

    async def _send(self, link: Link, batch: list[_Waiting]) -> None:
        unanswered = dict(enumerate(batch))
        request = pb.OpenChannelsRequest()
        for index, waiting in unanswered.items():
            item = request.items.add()
            item.CopyFrom(waiting.item)
            item.index = index
        link.in_flight += len(unanswered)
        call = link.stub.OpenChannels(request, timeout=CALL_TIMEOUT)
        try:
            async for response in responses(call):
                if response.index not in unanswered:
                    raise VaultLost
                waiting = unanswered[response.index]
                if response.HasField("failure"):
                    self._failed(link, [waiting], refusal(response.failure))
                elif not waiting.answer.done():
                    waiting.answer.set_result(response.keys)
                del unanswered[response.index]
                link.in_flight -= 1
            if unanswered:
                raise VaultLost
        except ApplianceError as refused:
            self._failed(link, list(unanswered.values()), refused)
        except VaultLost:
            link.lost()
            logs.get().warning("vault lost with items in hand", vault=link.name, items=len(unanswered))
            for waiting in unanswered.values():
                _end(waiting, VaultLost())
        except BaseException as error:
            for waiting in unanswered.values():
                _end(waiting, error)
            raise
        finally:
            call.cancel()
            link.in_flight -= len(unanswered)
            link.changed()

    def _failed(self, link: Link, items: list[_Waiting], error: ApplianceError) -> None:
        """Refuses them, or has them sent again where the vault has not taken them."""
        if error.reason in NOT_TAKEN:
            link.full()
            self._waiting.extendleft(reversed(items))
            return
        for waiting in items:
            _refuse(waiting, error)


def _refuse(waiting: _Waiting, error: ApplianceError) -> None:
    """With an error of its own: who gets it may add to it."""
    _end(waiting, ApplianceError(error.reason, error.detail, hint=error.hint, field=error.field, **error.facts))


def _end(waiting: _Waiting, error: BaseException) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
