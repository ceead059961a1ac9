"""The supervisor with real child processes that speak the vault's stdin and stdout protocol.

A child that must not end by itself waits for the end of its lifeline; every wait here is for an event.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.supervisor import FINAL, OTHER, RETRY, Supervisor

PIN = b"do-not-log-7319"
WAIT = 30.0  # seconds until a test gives up on an event

# Every child: the first line is the PIN; `say` writes a status line; `until_eof` waits for the lifeline's end.
PRELUDE = """
import json, os, sys, time
slot, generation = int(sys.argv[1]), int(sys.argv[2])
pin = sys.stdin.buffer.readline()
def say(**message): os.write(1, json.dumps(message).encode() + b"\\n")
def until_eof(): sys.stdin.buffer.read()
"""
SERVE = 'say(state="ready"); until_eof()'

Event = dict[str, object]


class Running:
    """A supervisor in a thread of the test, and what it reports."""

    def __init__(self, script: str, *, count: int = 1, silence_seconds: float = WAIT, stop_seconds: float = WAIT):
        self.events: queue.Queue[Event] = queue.Queue()
        self.pin = bytearray(PIN)
        self.code: int | None = None
        self.supervisor = Supervisor(
            lambda slot, generation: [sys.executable, "-c", PRELUDE + script, str(slot), str(generation)],
            count,
            {OTHER: 1.0, "keypair_rsa": 60.0},
            silence_seconds=silence_seconds,
            stop_seconds=stop_seconds,
            log=lambda event, **facts: self.events.put({"event": event, **facts}),
        )
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.code = self.supervisor.run(self.pin)

    def next(self, *names: str) -> Event:
        """The next event of one of these names; others are passed over."""
        while True:
            event = self.events.get(timeout=WAIT)
            if event["event"] in names:
                return event

    def end(self) -> int | None:
        self.supervisor.stop()
        return self.wait()

    def wait(self) -> int | None:
        self.thread.join(WAIT)
        assert not self.thread.is_alive()
        return self.code

    def rest(self) -> list[Event]:
        return [self.events.get_nowait() for _ in range(self.events.qsize())]


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(script: str, **options: float) -> Running:
        started.append(Running(script, **options))  # type: ignore[arg-type]  # count is an int in every caller
        return started[-1]

    yield start
    for running in started:
        running.end()


def test_a_vault_gets_the_pin_as_its_first_line(run: Callable[..., Running]) -> None:
    running = run(f'pin[:-1] == {PIN!r} and pin[-1:] == b"\\n" and say(state="ready"); until_eof()')
    running.next("vault ready")
    assert running.end() == 0
    assert running.pin == bytes(len(PIN)), "the PIN is wiped at the end"


def test_one_vault_logs_in_first_and_the_others_follow(run: Callable[..., Running]) -> None:
    running = run(SERVE, count=3)
    seen = [running.next("vault started", "vault ready") for _ in range(6)]
    assert [(event["event"], event["slot"]) for event in seen[:2]] == [("vault started", 0), ("vault ready", 0)]
    assert {event["slot"] for event in seen[2:]} == {1, 2}
    assert running.end() == 0


def test_a_dead_vault_is_replaced_by_one_of_a_new_generation(run: Callable[..., Running]) -> None:
    running = run(SERVE)
    first = running.next("vault started")
    running.next("vault ready")
    os.kill(int(str(first["pid"])), signal.SIGKILL)
    assert running.next("vault ended")["code"] == -signal.SIGKILL
    second = running.next("vault started")
    assert int(str(second["generation"])) > int(str(first["generation"]))
    running.next("vault ready")


def test_generations_rise_from_one_supervisor_to_the_next(run: Callable[..., Running]) -> None:
    generations = []
    for _ in range(2):
        running = run(SERVE)
        generations.append(int(str(running.next("vault started")["generation"])))
        running.next("vault ready")
        running.end()
    assert generations[0] < generations[1]


def test_a_wrong_pin_is_final(run: Callable[..., Running]) -> None:
    running = run(f"sys.exit({FINAL})", count=2)
    assert running.wait() == FINAL
    assert [event["event"] for event in running.rest()].count("vault started") == 1


def test_after_a_final_end_the_other_vaults_serve_on(run: Callable[..., Running]) -> None:
    running = run(f'say(state="ready") if slot == 0 else sys.exit({FINAL})\nuntil_eof()', count=2)
    first = running.next("vault started")
    running.next("vault ended")
    running.next("no vault will be started again: see the vault's log, then start the service anew")
    os.kill(int(str(first["pid"])), 0)
    os.kill(int(str(first["pid"])), signal.SIGKILL)
    assert running.wait() == FINAL
    assert "vault started" not in {event["event"] for event in running.rest()}


@pytest.mark.parametrize("end", ["sys.exit(1)", "os.kill(os.getpid(), 9)", "sys.exit(0)"])
def test_an_unexplained_end_before_any_login_is_final(run: Callable[..., Running], end: str) -> None:
    running = run(end)
    assert running.wait() == FINAL
    assert [event["event"] for event in running.rest()].count("vault started") == 1


def test_an_absent_token_is_asked_for_again_by_one_vault_alone(run: Callable[..., Running]) -> None:
    running = run(f"sys.exit({RETRY})", count=3)
    assert [running.next("vault started")["slot"] for _ in range(3)] == [0, 0, 0]
    assert running.end() == 0


def test_a_hung_login_is_not_repeated(run: Callable[..., Running]) -> None:
    running = run('say(call="login", age=1.5)\nuntil_eof()')
    assert running.wait() == FINAL
    events = [event["event"] for event in running.rest()]
    assert events.count("vault killed") == events.count("vault started") == 1


def test_a_call_hung_before_login_is_tried_again(run: Callable[..., Running]) -> None:
    running = run('say(call="find", age=1.5)\nuntil_eof()')
    assert [running.next("vault started")["slot"] for _ in range(2)] == [0, 0]
    assert running.end() == 0


def test_a_vault_in_a_hung_call_is_killed_and_replaced(run: Callable[..., Running]) -> None:
    running = run('say(state="ready"); say(call="sign", age=0.9); say(call="sign", age=1.1); until_eof()')
    first = running.next("vault started")
    assert running.next("vault killed")["why"] == "sign took longer than 1 s"
    assert running.next("vault ended")["code"] == -signal.SIGKILL
    assert running.next("vault started")["generation"] != first["generation"]


def test_a_kind_with_a_limit_of_its_own_may_take_that_long(run: Callable[..., Running]) -> None:
    script = 'say(state="ready"); say(call="keypair_rsa", age=59); say(call="", age=0); say(call="x", age=9)'
    running = run(script + "\nuntil_eof()")
    assert running.next("vault killed")["why"] == "x took longer than 1 s"


def test_a_silent_vault_is_killed_and_its_login_not_repeated(run: Callable[..., Running]) -> None:
    running = run("until_eof()", silence_seconds=0.2)
    assert running.next("vault killed")["why"] == "silent"
    assert running.next("vault ended")["code"] == -signal.SIGKILL
    assert running.wait() == FINAL


def test_lines_that_are_not_the_protocols_do_no_harm(run: Callable[..., Running]) -> None:
    deep, large = b"[" * 5000, b'{"age": 1' + b"0" * 400 + b"}"  # more than Python takes
    lines = (deep, large, b"x" * 10000, b"[1]", b"{}", b'{"call": "sign"}', b'{"call": "sign", "age": []}', b"")
    noise = f'os.write(1, {b"|".join(lines)!r}.replace(b"|", bytes([10])))'
    running = run(f'{noise}\nsay(state="ready"); say(call="sign", age=2)\nuntil_eof()')
    running.next("vault ready")
    assert running.next("vault killed")["why"] == "sign took longer than 1 s"


def test_stopping_closes_the_lifelines_and_waits(run: Callable[..., Running], tmp_path: Path) -> None:
    script = f'say(state="ready"); until_eof(); open(f"{tmp_path}/{{slot}}", "w").close()'
    running = run(script, count=2)
    running.next("vault ready")
    running.next("vault ready")
    assert running.end() == 0
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}, "each ended by itself"
    assert [event["code"] for event in running.rest() if event["event"] == "vault ended"] == [0, 0]


def test_a_vault_that_outlives_its_lifeline_is_killed(run: Callable[..., Running]) -> None:
    running = run('say(state="ready"); until_eof(); time.sleep(3600)', stop_seconds=0.2)
    running.next("vault ready")
    assert running.end() == 0
    assert [event["code"] for event in running.rest() if event["event"] == "vault ended"] == [-signal.SIGKILL]


def test_what_a_vault_started_ends_with_it(run: Callable[..., Running], tmp_path: Path) -> None:
    # The grandchild holds the vault's stdout, and a pipe that this test reads: EOF tells that the grandchild is gone.
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = (
        "import subprocess\n"
        f'subprocess.Popen(["sleep", "3600"], stdin=subprocess.DEVNULL, stderr=open({str(fifo)!r}, "w"))\n'
        'say(state="ready"); say(call="sign", age=2); until_eof()'
    )
    running = run(script)
    with fifo.open("rb") as reader:
        running.next("vault killed")
        running.end()
        assert reader.read() == b""


def test_a_command_that_cannot_be_started_is_tried_again() -> None:
    events: queue.Queue[str] = queue.Queue()
    started = Supervisor(lambda *_: ["/no/such/program"], 1, {OTHER: 1}, log=lambda event, **_: events.put(event))
    thread = threading.Thread(target=started.run, args=(bytearray(PIN),))
    thread.start()
    try:
        assert [events.get(timeout=WAIT) for _ in range(2)] == ["vault not started"] * 2
    finally:
        started.stop()
        thread.join(WAIT)


MAIN = """
import os, signal, sys
from appliance import supervisor
from appliance.pin import read_pin
supervisor.harden()
child = [sys.executable, "-c", sys.argv[1]]
running = supervisor.Supervisor(lambda slot, generation: [*child, str(slot), str(generation)], 2, {"other": 5})
signal.signal(signal.SIGTERM, lambda *_: running.stop())
sys.exit(running.run(read_pin(0)))
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A supervisor as a process of its own, with two vaults that leave a file when they end by themselves."""
    child = PRELUDE + SERVE + f'; open(f"{tmp_path}/{{slot}}", "w").close()'
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, child], stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path.cwd()
    ) as started:
        assert started.stdin is not None
        started.stdin.write(PIN + b"\n")
        started.stdin.flush()
        yield started
        started.kill()


def events_until_ready(process: "subprocess.Popen[bytes]", count: int) -> list[Event]:
    """What it logs until so many vaults are ready."""
    assert process.stderr is not None
    events: list[Event] = []
    while [event["event"] for event in events].count("vault ready") < count:
        line = process.stderr.readline()
        assert line, "the supervisor has ended"
        events.append(json.loads(line))
    return events


def test_sigterm_stops_every_vault(process: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    events_until_ready(process, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


def test_the_vaults_end_when_the_supervisor_is_killed(process: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    events_until_ready(process, 2)
    process.kill()
    assert process.stderr is not None
    process.stderr.read()  # until EOF: the vaults share it, so they have ended
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


def test_the_pin_is_in_no_argv_and_no_environment(process: "subprocess.Popen[bytes]") -> None:
    events = events_until_ready(process, 2)
    pids = [process.pid, *(int(str(event["pid"])) for event in events if "pid" in event)]
    assert len(pids) == 3
    for pid in pids:
        assert PIN not in Path(f"/proc/{pid}/cmdline").read_bytes()
        try:
            assert PIN not in Path(f"/proc/{pid}/environ").read_bytes()
        except PermissionError:  # not dumpable, and this is not root
            assert os.geteuid() != 0
    assert PIN not in json.dumps(events).encode()


def test_the_supervisor_leaves_no_core_and_belongs_to_root_in_proc(process: "subprocess.Popen[bytes]") -> None:
    events_until_ready(process, 2)
    limits = Path(f"/proc/{process.pid}/limits").read_text(encoding="ascii")
    assert next(line for line in limits.splitlines() if line.startswith("Max core file size")).split()[4:6] == [
        "0",
        "0",
    ]
    assert Path(f"/proc/{process.pid}/mem").stat().st_uid == 0  # PR_SET_DUMPABLE 0: proc(5)


def test_the_supervisor_loads_nothing_but_the_standard_library() -> None:
    listing = "import sys, appliance.supervisor; print(*{m.partition('.')[0] for m in sys.modules})"
    shown = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    foreign = set(shown.stdout.split()) - sys.stdlib_module_names - {"__main__", "appliance", "sitecustomize"}
    assert not {name for name in foreign if not name.startswith("_")}
