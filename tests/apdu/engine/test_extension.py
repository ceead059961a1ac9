"""The extension as Python sees it: types, references, threads, and its absence."""

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import appliance.apdu.engine._native as _native
from appliance.apdu import engine, scp03
from appliance.apdu.engine import Form, Order
from tests.apdu.engine.drawn import replaced
from tests.apdu.engine.specified import specified, written
from tests.apdu.engine.test_scripts import GOOD
from tests.apdu.engine.test_sessions import AUTHENTICATE, CHALLENGE, COMMAND, KEY

BAD = replaced(GOOD, "kvn", 0)
FIXED: tuple[Any, ...] = (KEY, KEY, KEY, 0x33, 8)
OF_ANOTHER_TYPE: dict[str, tuple[Callable[..., object], tuple[Any, ...]]] = {
    "orders no sequence": (_native.render, (5, 0)),
    "order no tuple": (_native.render, ([GOOD, None], 0)),
    "order of another size": (_native.render, ([GOOD, GOOD[:6]], 0)),
    "route no tuple": (_native.render, ([GOOD, replaced(GOOD, "route", [])], 0)),
    "package no bytes": (_native.render, ([GOOD, replaced(GOOD, "package", bytearray(5))], 0)),
    "opening neither": (_native.render, ([GOOD, replaced(GOOD, "opening", "x")], 0)),
    "key no bytes": (_native.render, ([GOOD, replaced(GOOD, "enc", "x")], 0)),
    "number a float": (_native.render, ([GOOD, replaced(GOOD, "level", 3.0)], 0)),
    "AID no bytes": (_native.render, ([GOOD, replaced(GOOD, "ssd_aid", "A000000151")], 0)),
    "form no number": (_native.render, ([GOOD], "TEXT")),
    "no arguments": (_native.render, ()),
    "counter no number": (_native.card_challenge, (KEY, "1", bytes(5), 8)),
    "mode no number": (_native.card_challenge, (KEY, 1, bytes(5), "8")),
    "challenge no bytes": (_native.session_keys, (KEY, KEY, CHALLENGE, None)),
    "cryptogram no bytes": (_native.verify_card_cryptogram, (KEY, CHALLENGE, CHALLENGE, bytearray(8))),
    "commands no sequence": (_native.unwrap, (*FIXED, 5, [])),
    "responses no sequence": (_native.unwrap, (*FIXED, [AUTHENTICATE], 5)),
    "EXTERNAL AUTHENTICATE no bytes": (_native.unwrap, (*FIXED, [5], [])),
    "command no bytes": (_native.unwrap, (*FIXED, [AUTHENTICATE, COMMAND, 5], [b"\x69\x85", b"\x69\x85"])),
    "response no bytes": (_native.unwrap, (*FIXED, [AUTHENTICATE, COMMAND], [5])),
    "master no bytes": (_native.kdf3, (5, 1, bytes(10), 128)),
    "bits no number": (_native.kdf3, (KEY, 1, bytes(10), "128")),
    "key of a KCV no bytes": (_native.kcv, ("x",)),
}
OF_ANOTHER_VALUE: dict[str, tuple[Callable[..., object], tuple[Any, ...]]] = {
    "form": (_native.render, ([GOOD], 4)),
    "more responses than commands": (_native.unwrap, (*FIXED, [AUTHENTICATE], [b"\x90\x00"])),
    "no EXTERNAL AUTHENTICATE": (_native.unwrap, (*FIXED, [], [])),
}
ANSWERED: dict[str, tuple[Callable[..., object], tuple[Any, ...]]] = {
    "scripts": (_native.render, ([GOOD, BAD, GOOD], 1)),
    "challenge": (_native.card_challenge, (KEY, 1, bytes(5), 8)),
    "no counter": (_native.card_challenge, (KEY, 2**70, bytes(5), 8)),
    "no mode": (_native.card_challenge, (KEY, 1, bytes(5), 2**70)),
    "session keys": (_native.session_keys, (KEY, KEY, CHALLENGE, CHALLENGE)),
    "no session keys": (_native.session_keys, (KEY, KEY, CHALLENGE, b"")),
    "cryptogram": (_native.verify_card_cryptogram, (KEY, CHALLENGE, CHALLENGE, CHALLENGE)),
    "session": (_native.unwrap, (*FIXED, [AUTHENTICATE, COMMAND, COMMAND], [b"\x69\x85", b"\x90\x00"])),
    "no session": (_native.unwrap, (KEY, KEY, b"", 0x33, 8, [AUTHENTICATE], [])),
    "no level": (_native.unwrap, (KEY, KEY, KEY, 2**70, 8, [AUTHENTICATE], [])),
    "key": (_native.kdf3, (KEY, 1, bytes(10), 128)),
    "no bits": (_native.kdf3, (KEY, 1, bytes(10), 2**70)),
    "key check value": (_native.kcv, (KEY,)),
}


@pytest.mark.parametrize("case", OF_ANOTHER_TYPE)
def test_what_is_of_another_type_raises_type_error(case: str) -> None:
    function, arguments = OF_ANOTHER_TYPE[case]
    with pytest.raises(TypeError):
        function(*arguments)


@pytest.mark.parametrize("case", OF_ANOTHER_VALUE)
def test_what_no_caller_may_ask_raises_value_error(case: str) -> None:
    function, arguments = OF_ANOTHER_VALUE[case]
    with pytest.raises(ValueError, match=r"there (is no form|are more responses)"):
        function(*arguments)


@pytest.mark.parametrize("case", ["no counter", "no mode", "no level", "no bits"])
def test_number_of_any_size_is_refused_by_name(case: str) -> None:
    function, arguments = ANSWERED[case]
    names = {"no counter": "sequence_counter", "no mode": "mode", "no level": "security_level", "no bits": "bits"}
    assert function(*arguments) in (names[case], [names[case]])


def test_calls_keep_neither_references_nor_memory() -> None:
    """Some thousand calls, answered and not. An engine is 100 KB, so that losing each would take half a gigabyte."""
    every = [*OF_ANOTHER_TYPE.values(), *OF_ANOTHER_VALUE.values(), *ANSWERED.values()]

    def repeat(times: int) -> None:
        for _ in range(times):
            for function, arguments in every:
                with suppress(TypeError, ValueError):
                    function(*arguments)

    inputs = [GOOD, GOOD.route, GOOD.package, GOOD.host_challenge, GOOD.enc, BAD, KEY, CHALLENGE, AUTHENTICATE, COMMAND]
    repeat(3)
    gc.collect()
    blocks, references, resident = sys.getallocatedblocks(), list(map(sys.getrefcount, inputs)), resident_kib()
    repeat(150)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 100
    assert list(map(sys.getrefcount, inputs)) == references
    assert resident_kib() - resident < 50_000


def resident_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def test_subclasses_of_the_types_are_taken_by_their_contents() -> None:
    class Octets(bytes):
        def __bytes__(self) -> bytes:
            return b"of no interest"

        def __len__(self) -> int:
            return 3

    class Pair(tuple[Any, ...]):
        def __getitem__(self, _: Any) -> Any:
            raise AssertionError("the contents are read, not asked for")

    order: Any = Pair((Pair(GOOD.route), Octets(GOOD.package), *GOOD[2:]))
    assert engine.render([order], Form.TEXT) == engine.render([GOOD], Form.TEXT)


def test_orders_that_change_during_the_call_are_rendered_as_they_were() -> None:
    batch: list[Order] = []

    class Changing:
        def __index__(self) -> int:
            batch.clear()
            gc.collect()
            return 0x30

    batch += [replaced(GOOD, "kvn", Changing()), GOOD._replace(opening=8)]
    expected = [engine.render_one(order, Form.TEXT) for order in (replaced(GOOD, "kvn", 0x30), batch[1])]
    assert engine.render(batch, Form.TEXT) == expected
    assert batch == []


def test_other_threads_run_while_a_batch_is_rendered() -> None:
    batch, may_run, ran = [GOOD] * 500, threading.Event(), threading.Event()

    def wait_and_run() -> None:
        may_run.wait()
        ran.set()

    thread, interval = threading.Thread(target=wait_and_run), sys.getswitchinterval()
    thread.start()
    sys.setswitchinterval(1000)  # the interpreter itself takes the lock from nobody until this test is over
    try:
        may_run.set()
        assert sum(range(500_000))
        assert not ran.is_set(), "nobody has let it run"
        for _ in range(200):  # the first batch may be over before the system has woken the thread
            engine.render(batch, Form.COMMANDS)
            if ran.is_set():
                break
        assert ran.is_set()
    finally:
        sys.setswitchinterval(interval)
        thread.join()


def test_threads_render_side_by_side_what_each_would_alone() -> None:
    batches = [[GOOD._replace(opening=8 * number + at + 1) for at in range(8)] for number in range(6)]
    expected = [[written(specified(order), Form.TEXT) for order in batch] for batch in batches]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(60):
            if engine.render(batches[number], Form.TEXT) != expected[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


DUMP = """
import sys
from appliance.apdu import engine, scp03
from tests.apdu.engine.test_extension import GOOD
engine.render([GOOD] * 3, engine.Form.TEXT)
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps:
        place, rights, *_, name = line.split(maxsplit=5)[:6] + [""]
        first, last = (int(end, 16) for end in place.split("-"))
        if rights.startswith("rw") and not name.startswith("[v"):
            memory.seek(first)
            sys.stdout.buffer.write(memory.read(last - first))
"""


def test_session_keys_are_nowhere_in_the_process_when_a_batch_is_done() -> None:
    dumped = subprocess.run([sys.executable, "-c", DUMP], capture_output=True, check=True).stdout
    card = scp03.card_challenge(GOOD.enc, 7, GOOD.route.ssd_aid, GOOD.route.mode)
    keys = scp03.derive_session_keys(GOOD.enc, GOOD.mac, GOOD.host_challenge, card)
    assert dumped.count(GOOD.enc), "the keys of the order are there, so this is the memory"
    assert not dumped.count(keys.s_enc)
    assert not dumped.count(keys.s_mac)


def test_order_shows_no_key_and_no_challenge() -> None:
    order = GOOD._replace(enc=b"E" * 16, mac=b"M" * 16)
    for shown in (repr(order), str(order), f"{order}", repr([order])):
        assert "EEE" not in shown
        assert "MMM" not in shown
        assert "package of 2480 bytes" in shown


def test_extension_is_one_for_all_later_pythons() -> None:
    assert Path(_native.__file__ or "").name == "_native.abi3.so"


@pytest.mark.parametrize("command", ["serve", "scripts"])
def test_start_without_the_extension_says_so_in_one_line(command: str) -> None:
    start = (
        "import sys; sys.modules['appliance.apdu.engine._native'] = None; "
        f"from appliance.cli import main; sys.exit(main([{command!r}, '--help']))"
    )
    ended = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"appliance {command}: INTERNAL: The APDU engine cannot be loaded (")
    assert "Install the appliance anew" in line
