"""What the engine is measured against does the work that it is said to do, and every goal is measured."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from appliance.apdu import scp03
from appliance.apdu.engine import Order
from appliance.apdu.scp03 import Mode, SecureChannel, SessionKeys
from appliance.apdu.script import Channel, render
from appliance.domain.package import KeyType
from tests.bench import apdu, programs, straightforward
from tests.bench.effort import Effort
from tests.bench.programs import BareLoop

LEVEL = 0x03
CAPACITY = scp03.capacity(LEVEL, Mode.S8)
BRIEF = Effort(rounds=2, turn=0.001, calls=1, runs=1, seconds=0.001, scripts=1)
GOALS = {
    "engine_vs_bare_loop": 0.85,
    "engine_vs_cryptography": 20,
    "engine_two_threads": 0.95,
    "expanded_form": 0.8,
    "text_form": 0.5,
    "bare_loop_vs_apdu_limit": 0.95,
}


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareLoop]:
    program = programs.compiled(programs.BARE_LOOP, tmp_path_factory.mktemp("programs"), "-Werror")
    with programs.running(program) as running:
        yield running


@pytest.mark.parametrize("aid_length", [5, 10, 16])
@pytest.mark.parametrize("payload_length", [1, CAPACITY - 1, CAPACITY, CAPACITY + 1, 2480, 256 * CAPACITY])
def test_the_bare_loop_makes_the_commands_of_the_specification(
    loop: BareLoop, aid_length: int, payload_length: int
) -> None:
    random = Random(payload_length + aid_length)  # noqa: S311 - inputs, no secrets
    k_enc, k_mac, host_challenge = random.randbytes(16), random.randbytes(16), random.randbytes(8)
    aid, payload, counter = random.randbytes(aid_length), random.randbytes(payload_length), random.randrange(1, 1 << 24)

    card_challenge = scp03.card_challenge(k_enc, counter, aid, Mode.S8)
    channel = SecureChannel(scp03.derive_session_keys(k_enc, k_mac, host_challenge, card_challenge), LEVEL, Mode.S8)
    expected = channel.external_authenticate(host_challenge, card_challenge)
    blocks = [payload[start : start + CAPACITY] for start in range(0, len(payload), CAPACITY)]
    for number, block in enumerate(blocks):
        p1 = 0xB0 if number == len(blocks) - 1 else 0x30
        expected += channel.wrap(bytes((0x80, 0xE2, p1, number, len(block))) + block)

    assert loop.script(k_enc, k_mac, host_challenge, counter, aid, payload) == expected


def test_the_bare_loop_counts_what_it_does(loop: BareLoop) -> None:
    run = loop.run(0.02)
    assert run.scripts > 0 and run.scripts % apdu.SIMS == 0
    assert run.seconds >= 0.02
    assert 0 < run.best * run.scripts <= run.cpu_seconds


def specified(order: Order) -> list[bytes]:
    route, card = order.route, order.opening
    assert isinstance(card, bytes)
    channel = Channel(
        route.ssd_aid, route.kvn, SessionKeys(order.enc, order.mac, b""), order.host_challenge, card, LEVEL, Mode.S8
    )
    return [command.apdu for command in render(order.package, KeyType.RSA_2048, route.applet_aid, channel).commands]


def test_the_straightforward_script_is_the_specifications() -> None:
    order = apdu.orders(static=False)[0]
    assert straightforward.script(order) == specified(order)


def test_the_orders_are_of_the_work_that_the_goals_are_about() -> None:
    orders = apdu.orders(static=True)
    assert len({(order.enc, order.mac, order.package, order.host_challenge) for order in orders}) == len(orders) == 512
    assert {len(order.package) for order in orders} == {2480}
    assert {(order.route.level, order.route.mode, len(order.enc), order.static) for order in orders} == {
        (3, 8, 16, True)
    }


def test_every_goal_is_measured(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    figures = list(apdu.measure(BRIEF, tmp_path))
    assert os.sched_getaffinity(0) == cores
    names = [figure.figure for figure in figures]
    assert len(names) == len(set(names))
    assert {"readable_python", "engine_static_commands", "engine_session_text"} <= set(names)
    wanted = dict(GOALS)
    if len(cores) == 1:
        del wanted["engine_two_threads"]
    if not programs.APDU_LIMIT.exists():
        del wanted["bare_loop_vs_apdu_limit"]
    assert {figure.figure: figure.goal for figure in figures if figure.goal is not None} == wanted
    assert all(figure.value > 0 and figure.runs == BRIEF.rounds for figure in figures)


def test_a_ratio_pairs_the_turns_of_a_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(apdu, "contenders", lambda _: contextlib.nullcontext({}))
    rates = {"engine_static_commands": [10.0, 40.0, 90.0], "bare_loop": [10.0, 20.0, 30.0]}
    monkeypatch.setattr(apdu, "rounds", lambda *_: rates)
    assert {figure.figure: figure.value for figure in apdu.measure(BRIEF, tmp_path)} == {
        "engine_static_commands": 40,
        "bare_loop": 20,
        "engine_vs_bare_loop": 2,
    }


def test_contenders_take_turns() -> None:
    turns: list[str] = []

    def contender(name: str) -> apdu.Contender:
        def turn(seconds: float) -> float:
            turns.append(name)
            return seconds

        return turn

    names = ("a", "b", "c")
    assert apdu.rounds({name: contender(name) for name in names}, BRIEF) == {
        name: [BRIEF.turn, BRIEF.turn] for name in names
    }
    assert "".join(turns) == "abccba"
