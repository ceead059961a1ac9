"""Rates of rendering: the engine and what it is measured against take turns, on one core unless their name says two.

A turn's rate is scripts by CPU time; where two cores work, by time. A ratio is the median of the rounds' ratios, so
that a machine that is slower for a while is so for both. The payload has 2,480 bytes, 11 STORE DATA in S8, level 03.
The bare loops leave out SELECT, INITIALIZE UPDATE, INSTALL and GET DATA; everybody else makes them.

A contender more is one more row of `contenders`, a ratio more one of `RATIOS`.
"""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import NamedTuple

from appliance.apdu import engine
from appliance.apdu.engine import Form, Order, Route
from appliance.apdu.scp03 import Mode, SessionKeys
from appliance.apdu.script import DEFAULT_LEVEL, Channel, render
from appliance.domain.package import KeyType
from tests.bench import programs, straightforward
from tests.bench.effort import Effort
from tests.bench.figures import RATIO, SCRIPTS_PER_SECOND, Figure, median
from tests.bench.programs import BareLoop, Run

PAYLOAD = 2480
SIMS = 512
"""Each with keys, package and challenge of its own."""
BATCH = 64
"""Of one call; what it makes stays in the cache."""
SLOW = 16
"""SIMs of what is plain Python."""
ROUTE = Route(
    bytes.fromhex("A0000001510000000001"),
    bytes.fromhex("D392F000260100000001"),
    0x30,
    DEFAULT_LEVEL,
    Mode.S8,
    KeyType.RSA_2048,
)
PROGRAMS = Path("build/bench")
_MUCH = 32 << 20

Contender = Callable[[float], float]
"""Works for so many seconds; answers scripts per second."""


class Ratio(NamedTuple):
    """A figure that is one contender's rate by another's; it is left out where one of them is not there."""

    figure: str
    of: str
    to: str
    goal: float | None = None


RATIOS = (
    Ratio("bare_loop_vs_apdu_limit", "bare_loop_best_batch", "apdu_limit_best_batch", 0.95),
    Ratio("engine_vs_bare_loop", "engine_static_commands", "bare_loop", 0.85),
    Ratio("engine_vs_cryptography", "engine_session_commands", "straightforward_cryptography", 20),
    Ratio("engine_two_threads", "engine_two_threads_rate", "bare_loop_two_processes", 0.95),
    Ratio("expanded_form", "engine_static_expanded_definite", "engine_static_commands", 0.8),
    Ratio("text_form", "engine_static_text", "engine_static_commands", 0.5),
    Ratio("multibuffer_vs_bare_loop", "multibuffer_best_batch", "bare_loop_best_batch"),
    Ratio("multibuffer_vs_engine", "multibuffer_best_batch", "engine_core_best_batch"),
)


def measure(effort: Effort, directory: Path = PROGRAMS) -> Iterator[Figure]:
    """Every contender's rate, then the ratios; the C programs are compiled into `directory`."""
    with contenders(directory) as everybody:
        rates = rounds(everybody, effort)
    for name, runs in rates.items():
        yield median(name, runs, SCRIPTS_PER_SECOND)
    for ratio in RATIOS:
        if {ratio.of, ratio.to} <= rates.keys():
            pairs = zip(rates[ratio.of], rates[ratio.to], strict=True)
            yield median(ratio.figure, [of / to for of, to in pairs], RATIO, goal=ratio.goal)


def rounds(everybody: dict[str, Contender], effort: Effort) -> dict[str, list[float]]:
    """The rates of each contender, a round after the other, every second one backwards."""
    rates: dict[str, list[float]] = {name: [] for name in everybody}
    for number in range(effort.rounds):
        for name in list(everybody)[:: -1 if number % 2 else 1]:
            rates[name].append(everybody[name](effort.turn))
    return rates


@contextlib.contextmanager
def contenders(directory: Path) -> Iterator[dict[str, Contender]]:
    """Whoever takes part on this machine; this thread is on one core meanwhile."""
    cores = sorted(os.sched_getaffinity(0), reverse=True)  # the first one has most of the interrupts
    bytes(_MUCH)  # whoever has once freed so much keeps freed memory from then on: glibc raises its thresholds
    static, session = orders(static=True), orders(static=False)
    with contextlib.ExitStack() as stack:
        program = programs.compiled(programs.BARE_LOOP, directory)
        loops = [stack.enter_context(programs.running(program)) for _ in cores[:2]]
        for loop, core in zip(loops, cores, strict=False):
            os.sched_setaffinity(loop.pid, {core})
        stack.callback(os.sched_setaffinity, 0, set(cores))
        os.sched_setaffinity(0, {cores[0]})
        taking_part: dict[str, Contender] = {
            "readable_python": timed(lambda: _readable(session[:SLOW]), SLOW),
            "straightforward_cryptography": timed(lambda: _straightforward(session[:SLOW]), SLOW),
            "bare_loop": lambda seconds: _cpu_rate(loops[0].run(seconds)),
            "bare_loop_best_batch": lambda seconds: 1 / loops[0].run(seconds).best,
        }
        if programs.APDU_LIMIT.exists():
            limit = programs.compiled(programs.APDU_LIMIT, directory)
            taking_part["apdu_limit_best_batch"] = lambda seconds: 1e6 / programs.told(limit, PAYLOAD, seconds)[0]
        if programs.MULTIBUFFER_HEADER.exists():
            lanes = programs.compiled(programs.MULTIBUFFER, directory, f"-I{programs.CORE}", "-lIPSec_MB")
            taking_part["multibuffer_best_batch"] = lambda seconds: programs.told(lanes, seconds)[0]
            taking_part["engine_core_best_batch"] = lambda seconds: programs.told(lanes, seconds)[1]
        for kind, batch in (("static", static), ("session", session)):
            for form in Form:
                taking_part[f"engine_{kind}_{form.name.lower()}"] = _engine(batch, form, BATCH)
        taking_part["engine_static_commands_batches_of_512"] = _engine(static, Form.COMMANDS, SIMS)
        if len(cores) > 1:
            taking_part["bare_loop_two_processes"] = lambda seconds: _processes(loops, seconds)
            taking_part["engine_two_threads_rate"] = lambda seconds: _threads(static, cores[:2], seconds)
        yield taking_part


def orders(*, static: bool) -> list[Order]:
    """A batch for different SIMs."""
    random = Random(1)  # noqa: S311 - inputs, no secrets
    return [
        Order(
            ROUTE,
            random.randbytes(PAYLOAD),
            random.randbytes(8),
            random.randrange(1, 1 << 24) if static else random.randbytes(8),
            random.randbytes(16),
            random.randbytes(16),
            static,
        )
        for _ in range(SIMS)
    ]


def timed(work: Callable[[], object], scripts: int) -> Contender:
    """What renders so many scripts, over and over, by this thread's CPU time."""

    def rate(seconds: float) -> float:
        done, began = 0, time.thread_time()
        while (spent := time.thread_time() - began) < seconds:
            work()
            done += scripts
        return done / spent

    return rate


def _engine(batch: list[Order], form: Form, size: int) -> Contender:
    calls = _calls(batch, size)
    return timed(lambda: _rendered(next(calls), form), size)


def _calls(batch: list[Order], size: int) -> Iterator[list[Order]]:
    return itertools.cycle([batch[start : start + size] for start in range(0, len(batch), size)])


def _rendered(batch: list[Order], form: Form) -> None:
    refused = [answer for answer in engine.render(batch, form) if not isinstance(answer, bytes)]
    if refused:
        raise refused[0]


def _readable(batch: list[Order]) -> None:
    for order in batch:
        assert isinstance(order.opening, bytes)
        keys = SessionKeys(order.enc, order.mac, order.mac)
        channel = Channel(ROUTE.ssd_aid, ROUTE.kvn, keys, order.host_challenge, order.opening)
        render(order.package, ROUTE.key_type, ROUTE.applet_aid, channel)


def _straightforward(batch: list[Order]) -> None:
    for order in batch:
        straightforward.script(order)


def _cpu_rate(run: Run) -> float:
    return run.scripts / run.cpu_seconds


def _processes(loops: list[BareLoop], seconds: float) -> float:
    for loop in loops:
        loop.begin(seconds)
    return sum(run.scripts / run.seconds for run in [loop.end() for loop in loops])


def _threads(batch: list[Order], cores: list[int], seconds: float) -> float:
    start = threading.Barrier(len(cores))

    def work(core: int) -> float:
        os.sched_setaffinity(0, {core})  # of this thread alone
        calls = _calls(batch, BATCH)
        start.wait()
        done, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds:
            _rendered(next(calls), Form.COMMANDS)
            done += BATCH
        return done / spent

    with ThreadPoolExecutor(len(cores)) as threads:
        return sum(threads.map(work, cores))
