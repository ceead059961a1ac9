"""Session keys in batches: what is asked for while calls are on their way is collected, and goes together in the next.

- Nothing waits for company: what comes while a vault has fewer than `CALLS` of these calls goes at once.
- An item is answered when its own result arrives, and fails alone. One whose caller has left is not sent any more, or
  its result is dropped.
- What a vault did not take goes to another, as long as the item's patience lasts. What a vault has not answered when it
  is lost is lost with it.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
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


@dataclass(eq=False)
class _Waiting:
    item: pb.ChannelItem
    until: float
    answer: asyncio.Future[pb.ChannelKeys] = field(repr=False)  # a future shows its result
    taken: bool = False


class Channels:
    """Collects items and sends them.

    Args:
        links: the vaults there are.
        nowhere: why an item found no vault with room.
    """

    def __init__(self, links: Callable[[], Iterable[Link]], nowhere: Callable[[], ApplianceError]) -> None:
        self._links = links
        self._nowhere = nowhere
        self._waiting: deque[_Waiting] = deque()
        self._calls: dict[asyncio.Task[None], Link] = {}
        self._dispatching: asyncio.Handle | None = None
        self._closed = False

    async def open(self, item: pb.ChannelItem, until: float) -> pb.ChannelKeys:
        """The session keys of one item; `until` is how long it waits for a vault with room (the loop's time).

        Raises:
            VaultLost, ApplianceError
        """
        if self._closed:
            raise self._nowhere()
        loop = asyncio.get_running_loop()
        waiting = _Waiting(item, until, loop.create_future())
        self._waiting.append(waiting)
        self.dispatch()
        patience = loop.call_at(until, self._lose_patience, waiting)
        try:
            return await waiting.answer
        finally:
            patience.cancel()

    async def close(self) -> None:
        """Ends every call; who still waits is cancelled."""
        self._closed = True
        for waiting in self._waiting:
            waiting.answer.cancel()
        self._waiting.clear()
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def dispatch(self) -> None:
        """Has what waits sent, as far as there is room; to be called whenever there may be more of it.

        Not at once, so that what is asked for together goes together.
        """
        if self._waiting and self._dispatching is None:
            self._dispatching = asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatching = None
        while self._waiting and (free := self._free()):
            link = min(free, key=lambda link: link.load)
            share = -(-len(self._waiting) // len(free))
            if not (batch := self._take(min(share, link.room, BATCH_MAX))):
                return
            link.in_flight += len(batch)
            call = asyncio.create_task(self._send(link, batch))
            self._calls[call] = link
            call.add_done_callback(self._ended)

    def _free(self) -> list[Link]:
        """The vaults with room that have the fewest calls; none where all have `CALLS`."""
        calls = Counter(self._calls.values())
        fewest = min((calls[link] for link in self._links() if link.room > 0), default=CALLS)
        return [link for link in self._links() if link.room > 0 and calls[link] == fewest < CALLS]

    def _ended(self, call: asyncio.Task[None]) -> None:
        del self._calls[call]
        self.dispatch()

    def _take(self, count: int) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < count:
            waiting = self._waiting.popleft()
            if not waiting.answer.done():
                waiting.taken = True
                batch.append(waiting)
        return batch

    def _lose_patience(self, waiting: _Waiting) -> None:
        if not waiting.taken:
            _end(waiting, self._nowhere())

    async def _send(self, link: Link, batch: list[_Waiting]) -> None:
        unanswered = dict(enumerate(batch))
        request = pb.OpenChannelsRequest()
        for index, waiting in unanswered.items():
            item = request.items.add()
            item.CopyFrom(waiting.item)
            item.index = index
        call = None
        try:
            call = link.stub.OpenChannels(request, timeout=CALL_TIMEOUT)
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
            if call is not None:
                call.cancel()
            link.in_flight -= len(unanswered)
            link.changed()

    def _failed(self, link: Link, items: list[_Waiting], error: ApplianceError) -> None:
        """Refuses them, or has them sent again where the vault has not taken them."""
        if error.reason in NOT_TAKEN:
            link.full()
            self._put_back(items)
            return
        for waiting in items:
            _refuse(waiting, error)

    def _put_back(self, items: list[_Waiting]) -> None:
        now = asyncio.get_running_loop().time()
        for waiting in reversed(items):
            waiting.taken = False
            self._waiting.appendleft(waiting)
            if now >= waiting.until:
                self._lose_patience(waiting)
        self.dispatch()


def _refuse(waiting: _Waiting, error: ApplianceError) -> None:
    """With an error of its own: who gets it may add to it."""
    _end(waiting, ApplianceError(error.reason, error.detail, hint=error.hint, field=error.field, **error.facts))


def _end(waiting: _Waiting, error: BaseException) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
