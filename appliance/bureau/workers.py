"""Worker processes: each takes whole shards, one after another, until it is told no more or the parent has gone.

The static keys reach them through pipes. A worker holds the directory's claim for as long as it lives.
"""

import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing import get_context, reduction
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from appliance import supervisor
from appliance.bureau.export import Export, Shard, translated
from appliance.bureau.keys import ChannelKeys
from appliance.bureau.rendering import Renderer
from appliance.bureau.shards import Directory
from appliance.errors import ApplianceError, Reason

_SPAWN = get_context("spawn")


class Claim:
    """The descriptor of a claimed directory, which goes to a worker with its start."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _inherited, (reduction.DupFd(self.descriptor),)


def _inherited(duplicate: Any) -> Claim:
    return Claim(duplicate.detach())


class Work(NamedTuple):
    """What every worker is told at its start."""

    export: Export
    directory: Directory
    keys: ChannelKeys | None
    claim: Claim


class _Refusal(NamedTuple):
    """An ApplianceError on its way to the parent."""

    reason: Reason
    detail: str
    hint: str
    field: str


class _Worker(NamedTuple):
    process: BaseProcess
    # Sends shards, and receives numbers of packages, None for a finished shard, or a refusal.
    connection: "Connection[Shard, int | _Refusal | None]"


def render_all(work: Work, shards: Sequence[Shard], jobs: int, told: Callable[[int], None]) -> None:
    """Have all these shards made by up to `jobs` processes.

    Args:
        told: gets numbers of packages as they are dealt with.

    Raises:
        ApplianceError: the first thing that ends the run; INTERNAL where a worker died. The others have stopped then.
    """
    waiting = list(reversed(shards))
    workers: dict[Any, _Worker] = {}
    with ExitStack() as ending:
        for _ in range(min(jobs, len(shards))):
            worker = _start(work)
            ending.callback(_end, worker)
            workers[worker.connection] = worker
        while workers:
            for connection in wait(list(workers)):
                worker = workers[connection]
                try:
                    answer = worker.connection.recv()
                    if answer is None and waiting:
                        worker.connection.send(waiting.pop())
                    elif answer is None:
                        del workers[connection]
                except (EOFError, ConnectionError):
                    raise _died(worker) from None
                if isinstance(answer, _Refusal):
                    raise ApplianceError(answer.reason, answer.detail, hint=answer.hint, field=answer.field)
                if answer is not None:
                    told(answer)


def _start(work: Work) -> _Worker:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_serve, args=(work, theirs))
    # Ctrl-C is the parent's to hear; what is ignored at a start stays so.
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with theirs:
            process.start()
    finally:
        signal.signal(signal.SIGINT, heard)
    return _Worker(process, ours)


def _end(worker: _Worker) -> None:
    worker.connection.close()  # it finds that at its next word
    worker.process.join()


def _died(worker: _Worker) -> ApplianceError:
    worker.process.join()
    return ApplianceError(
        Reason.INTERNAL,
        f"A worker process died (status {worker.process.exitcode}).",
        hint="What it says stands above; the same command goes on where this one stopped.",
    )


def _serve(work: Work, connection: "Connection[int | _Refusal | None, Shard]") -> None:
    """In the child."""
    supervisor.harden()
    renderer = Renderer(work.export, work.directory, work.keys, connection.send)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            while True:
                connection.send(None)
                shard = connection.recv()
                with translated(work.directory.path):
                    renderer.render(shard)
        except ApplianceError as error:
            connection.send(_Refusal(error.reason, error.detail, error.hint, error.field))
        finally:
            if work.keys:
                work.keys.wipe()
