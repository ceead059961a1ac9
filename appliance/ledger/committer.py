"""One thread makes every change, and one durable commit carries all changes that were waiting.

Each change runs in a savepoint: one that is refused is undone alone. Nobody is answered, not even with a refusal (it
may rest on a change beside it), before the commit. Nothing waits for company: a group is what is queued by then.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from appliance.domain.audit import AuditEntry
from appliance.errors import ApplianceError
from appliance.ledger import database
from appliance.ledger.change import Change, Told, append, holds, take_head
from appliance.ledger.files import Files

GROUP_MAX = 256
"""Larger groups gain little and make the first of them wait."""
ERASE_SECONDS = 1.0
"""How soon after its commit an erased key has left the write-ahead log too, unless a backup is running."""
HANG_SECONDS = 2 * database.BUSY_SECONDS
"""A commit that takes longer hangs: the disk does not answer."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Item:
    work: Callable[[Change], Any]
    future: Future[Any]


@dataclass(frozen=True)
class _Outcome:
    value: Any = None
    error: Exception | None = None
    told: Sequence[Told] = ()
    erases: bool = False


class Committer:
    """Runs submitted changes in order, in groups."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        self._clock = clock
        self._files = Files(engine)
        self._worked = False
        self._begun: float | None = None
        self._damage: SQLAlchemyError | None = None
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._erase_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="ledger-committer", daemon=True)
        self._thread.start()

    @property
    def works(self) -> bool:
        """Whether the last commit succeeded, and the one under way does not hang; not before there was one."""
        begun = self._begun
        return self._worked and (begun is None or time.monotonic() - begun < HANG_SECONDS)

    def submit(self, work: Callable[[Change], T]) -> Future[T]:
        """Queues a change; its future is done after the commit. A future cancelled before that is not begun."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise database.closed()
            self._queue.put(_Item(work, future))
        return future

    def close(self) -> None:
        """Ends after everything that was queued."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()
        self._files.close()

    def _run(self) -> None:
        going_on = True
        while going_on:
            group, going_on = self._take()
            live = [item for item in group if item.future.set_running_or_notify_cancel()]
            if live:
                self._answer(live)
            self._erase(now=not going_on)

    def _take(self) -> tuple[list[_Item], bool]:
        group: list[_Item] = []
        patience = None if self._erase_at is None else max(0.0, self._erase_at - time.monotonic())
        try:
            item = self._queue.get(timeout=patience)
            while item is not None:
                group.append(item)
                if len(group) == GROUP_MAX:
                    return group, True
                item = self._queue.get_nowait()
        except queue.Empty:
            return group, True
        return group, False

    def _answer(self, group: list[_Item]) -> None:
        self._begun = time.monotonic()
        worked = False
        try:
            outcomes = self._commit(group)
            worked = True
        except SQLAlchemyError as error:
            if database.is_damage(error):
                self._damage = error
            outcomes = [_Outcome(error=database.translated(error)) for _ in group]
        except Exception as error:  # noqa: BLE001 the thread must outlive a defect, and callers must hear of it
            outcomes = [_Outcome(error=error) for _ in group]
        self._worked, self._begun = worked, None
        for item, outcome in zip(group, outcomes, strict=True):
            if outcome.error is not None:
                item.future.set_exception(outcome.error)
            else:
                item.future.set_result(outcome.value)
        if self._erase_at is None and any(outcome.erases for outcome in outcomes):
            self._erase_at = time.monotonic() + ERASE_SECONDS

    def _commit(self, group: list[_Item]) -> list[_Outcome]:
        if self._damage is not None:
            raise self._damage  # until somebody has looked at the file: a new start tries it again
        self._files.require()
        entries: list[AuditEntry] = []
        with self._writer.connect() as connection:
            try:
                transaction = connection.begin()
                head = take_head(connection)
                outcomes = [self._make(connection, item) for item in group]
                entries = append(connection, head, [told for outcome in outcomes for told in outcome.told])
                transaction.commit()
            except SQLAlchemyError:
                # Another connection may do better: one that was opened while the disk was read-only stays read-only.
                connection.invalidate()
                if not (entries and self._committed(entries[-1])):
                    raise
        self._files.require()
        return outcomes

    def _make(self, connection: Connection, item: _Item) -> _Outcome:
        change = Change(connection, self._clock())
        try:
            with connection.begin_nested():
                value = item.work(change)
        except ApplianceError as refusal:
            return _Outcome(error=refusal)
        except SQLAlchemyError as error:
            if database.is_outage(error):
                # SQLite may have rolled back all of the group.
                raise
            return _Outcome(error=database.translated(error))
        except Exception as error:  # noqa: BLE001 a defect in one change is undone like a refusal, and its caller's
            return _Outcome(error=error)
        return _Outcome(value, told=change.told, erases=change.erases)

    def _committed(self, entry: AuditEntry) -> bool:
        """Whether a commit that ended in an error has happened all the same: read back what it would have left."""
        with self._engine.connect() as connection:
            return holds(connection, entry)

    def _erase(self, *, now: bool) -> None:
        if self._erase_at is None or not (now or time.monotonic() >= self._erase_at):
            return
        done = database.truncate_wal(self._engine)
        self._erase_at = None if done else time.monotonic() + ERASE_SECONDS
