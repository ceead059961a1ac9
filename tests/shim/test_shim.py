"""The shim on SoftHSM: what it forwards, what it records and leaves out, and how it fails and holds calls."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from pkcs11 import Attribute, Mechanism

from . import Call, End, Fault, Shim, When, Which
from .caller import DATA, LABEL, PIN, SECRETS, SO_PIN, VALUE, Caller
from .forwarding import forwarding
from .shim import header

SOFTHSM: Final = Path("/usr/lib/softhsm/libsofthsm2.so")
ARGUMENTS_BAD, ATTRIBUTE_SENSITIVE, DEVICE_ERROR = 0x07, 0x11, 0x30
VALUE_TYPE: Final = Attribute.VALUE
NewCaller = Callable[[], Caller]
FUNCTIONS: Final = re.findall(
    r"(C_\w+);", header().read_text().partition("struct ck_function_list\n{")[2].partition("};")[0]
)
CALL_ALL: Final = """
import ctypes, sys
skipped, count = map(int, sys.argv[1:3])
for path in sys.argv[3:]:
    table = ctypes.POINTER(ctypes.c_void_p)()
    assert ctypes.CDLL(path).C_GetFunctionList(ctypes.byref(table)) == 0
    call = ctypes.CFUNCTYPE(ctypes.c_ulong, *[ctypes.c_void_p] * 8)
    print(*[call(table[1 + place])(*[None] * 8) for place in range(count) if place != skipped])
"""
"""Calls every function of each module with nothing; the second is C_Finalize, so the rest has nothing to act on."""


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of SoftHSM, with a token."""
    directory = tmp_path_factory.mktemp("token")
    (directory / "softhsm2.conf").write_text(f"directories.tokendir = {directory}\nlog.level = ERROR\n")
    variables = {"SOFTHSM2_CONF": str(directory / "softhsm2.conf")}
    new = ["softhsm2-util", "--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", SO_PIN]
    subprocess.run(new, env={**os.environ, **variables}, check=True, stdout=subprocess.DEVNULL)
    return variables


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    return Shim(tmp_path / "shim")


@pytest.fixture
def new_caller(shim: Shim, shim_module: Path, settings: dict[str, str]) -> Iterator[NewCaller]:
    """Starts processes that call the module."""
    started: list[Caller] = []

    def start() -> Caller:
        started.append(Caller(shim_module, {**settings, **shim.environment(SOFTHSM)}))
        assert started[-1].result() == "ready"
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def caller(new_caller: NewCaller, shim: Shim) -> Caller:
    """One process; the log begins when it is ready."""
    made = new_caller()
    shim.clear_log()
    return made


def of(shim: Shim, function: str) -> list[Call]:
    """The calls of one function."""
    return [call for call in shim.log() if call.function == function]


# --- forwarding


def test_every_function_of_the_list_is_forwarded(shim: Shim, shim_module: Path, settings: dict[str, str]) -> None:
    own = FUNCTIONS.index("C_GetFunctionList")
    called = subprocess.run(
        [sys.executable, "-c", CALL_ALL, str(own), str(len(FUNCTIONS)), shim_module, SOFTHSM],
        env={**os.environ, **settings, **shim.environment(SOFTHSM)},
        capture_output=True,
        text=True,
        check=True,
    )
    through, direct = ([int(rv) for rv in line.split()] for line in called.stdout.splitlines())
    log = shim.log()
    assert [call.function for call in log] == [name for name in FUNCTIONS if name != "C_GetFunctionList"]
    assert len(FUNCTIONS) == 68
    assert through == direct == [call.real for call in log] == [call.rv for call in log]


def test_a_parameter_without_a_rule_is_an_error() -> None:
    declared = "_CK_DECLARE_FUNCTION (C_New,\n\t\t      (ck_session_handle_t session, struct ck_new *what));\n"
    with pytest.raises(ValueError, match=r"C_New: no rule for struct ck_new \*what"):
        forwarding(declared)


def test_what_stands_in_the_way_of_forwarding_is_an_error(
    shim: Shim, shim_module: Path, settings: dict[str, str]
) -> None:
    right = {**settings, **shim.environment(SOFTHSM)}
    wrong = {
        "no such module": {"TEST_P11_REAL": "/nowhere.so"},
        "no such directory": {"TEST_P11_SHIM": "/nowhere"},
        "SoftHSM wants no pReserved": shim.environment(SOFTHSM, reserved="a string for the real module"),
    }
    for why, change in wrong.items():
        caller = Caller(shim_module, {**right, **change})
        assert caller.result() is None, why
        caller.end()
    assert [(call.function, call.real) for call in shim.log()] == [("C_Initialize", ARGUMENTS_BAD)]


# --- the record


def test_every_call_has_its_function_session_answer_process_and_thread(caller: Caller, shim: Shim) -> None:
    assert caller.do("find") == 1
    calls = shim.log()
    started, searched = of(shim, "C_FindObjectsInit")[0], of(shim, "C_FindObjects")[0]
    [asked] = started.templates["templ"]
    assert (asked.type, asked.value) == (Attribute.LABEL, b"a label")
    [found] = searched.found
    assert {call.objects["object"] for call in calls if call.asked} == {found}
    assert searched.numbers == {"max_object_count": 10, "object_count": 1}
    assert (searched.rv, searched.real) == (0, 0)
    assert {(call.pid, call.tid) for call in calls} == {(caller.process.pid, caller.process.pid)}
    assert len({call.session for call in calls}) == 1 and calls[0].session
    first = calls[0].sequence
    assert [call.sequence for call in calls] == list(range(first, first + len(calls)))


def test_wrapping_shows_keys_and_the_question_for_the_length(caller: Caller, shim: Shim) -> None:
    assert caller.do("wrap") == 40
    asked, wrapped = of(shim, "C_WrapKey")
    assert asked.query and not wrapped.query
    assert wrapped.mechanism == Mechanism.AES_KEY_WRAP
    assert wrapped.numbers["wrapped_key_len"] == 40
    assert wrapped.objects["key"] == wrapped.objects["wrapping_key"] > 0


@pytest.mark.parametrize(("kind", "parameter"), [("ECB", DATA), ("CBC", bytes(range(16)) + DATA)])
def test_deriving_shows_data_template_and_both_keys(caller: Caller, shim: Shim, kind: str, parameter: bytes) -> None:
    caller.do(f"derive {kind}")
    [derived], [destroyed] = of(shim, "C_DeriveKey"), of(shim, "C_DestroyObject")
    assert derived.mechanism == Mechanism[f"AES_{kind}_ENCRYPT_DATA"]
    assert derived.parameter == parameter
    assert derived.made == {"key": destroyed.objects["object"]} != {"key": derived.objects["base_key"]}
    values = {each.type: each.value for each in derived.templates["templ"]}
    assert (values[Attribute.TOKEN], values[Attribute.EXTRACTABLE]) == (b"\0", b"\1")


def test_reading_shows_what_was_asked_and_whether_it_was_given(caller: Caller, shim: Shim) -> None:
    assert caller.do("read") is True
    assert [call.asked for call in shim.log()] == [((VALUE_TYPE, False, 32),), ((VALUE_TYPE, True, 32),)]
    shim.clear_log()
    assert caller.do("read hidden") == "AttributeSensitive"
    [refused] = shim.log()
    assert refused.asked == ((VALUE_TYPE, False, None),)
    assert refused.rv == ATTRIBUTE_SENSITIVE


def test_the_log_has_no_pin(new_caller: NewCaller, shim: Shim) -> None:
    new_caller()
    [login] = of(shim, "C_Login")
    assert login.numbers == {"user_type": 1, "pin_len": len(PIN)}
    assert shim.logins() == 1
    assert_not_recorded(shim, PIN.encode())


def test_the_log_has_no_secret_attribute(new_caller: NewCaller, shim: Shim) -> None:
    caller = new_caller()
    caller.do("import RSA")
    assert caller.do("read") is True
    aes, rsa = of(shim, "C_CreateObject")
    in_clear = {each.type: (each.length, each.value) for each in (*aes.templates["templ"], *rsa.templates["templ"])}
    assert in_clear[VALUE_TYPE] == (len(VALUE), None)
    assert in_clear[Attribute.MODULUS] == (7, b"modulus")
    for kind, value in SECRETS.items():
        assert in_clear[kind] == (len(value), None)
        assert_not_recorded(shim, value)
    assert_not_recorded(shim, VALUE)


def assert_not_recorded(shim: Shim, value: bytes) -> None:
    """Neither as it is nor in hexadecimal digits."""
    recorded = (shim.directory / "calls").read_bytes()
    assert value not in recorded and value.hex().encode() not in recorded.lower()


# --- faults


def test_the_nth_call_is_the_nth_and_only_once(caller: Caller, shim: Shim) -> None:
    for n in range(1, 5):
        shim.arm(Fault(DEVICE_ERROR, which=Which(n)))
        answers = [caller.do("random") for _ in range(6)]
        assert [answer for answer in answers if answer != 8] == ["DeviceError"]
        assert answers.index("DeviceError") == n - 1
        assert not shim.armed
        failed = [call.fault for call in shim.log()]
        assert failed == ["before 48" if place == n - 1 else "" for place in range(6)]
        shim.clear_log()


def test_a_call_that_fails_before_it_acts_makes_nothing(caller: Caller, shim: Shim) -> None:
    shim.arm(Fault(DEVICE_ERROR, which=Which(function="C_GenerateKeyPair")))
    assert caller.do("pair") == "DeviceError"
    [failed] = shim.log()
    assert (failed.rv, failed.real, failed.made) == (DEVICE_ERROR, None, {})


def test_a_call_that_fails_after_it_has_acted_has_made_something(caller: Caller, shim: Shim) -> None:
    shim.arm(Fault(DEVICE_ERROR, When.AFTER, Which(function="C_GenerateKeyPair")))
    assert caller.do("pair") == "DeviceError"
    [failed] = shim.log()
    assert (failed.rv, failed.real, failed.fault) == (DEVICE_ERROR, 0, "after 48")
    assert failed.made.keys() == {"public_key", "private_key"}


def test_only_calls_of_the_named_function_and_mechanism_count(caller: Caller, shim: Shim) -> None:
    shim.arm(Fault(DEVICE_ERROR, which=Which(2, "C_DeriveKey", Mechanism.AES_CBC_ENCRYPT_DATA)))
    said = [caller.do(f"derive {kind}") for kind in ("ECB", "CBC", "ECB", "ECB", "CBC", "CBC")]
    assert said == [None, None, None, None, "DeviceError", None]
    shim.arm(Fault(DEVICE_ERROR, which=Which(2, "C_GenerateRandom")))
    assert [caller.do(action) for action in ("random", "pair", "random")] == [8, None, "DeviceError"]


@pytest.mark.parametrize("when", When)
@pytest.mark.parametrize(("end", "number"), [(End.KILL, signal.SIGKILL), (End.SEGV, signal.SIGSEGV)])
def test_a_call_that_ends_its_process_is_on_record(
    caller: Caller, shim: Shim, when: When, end: End, number: signal.Signals
) -> None:
    shim.arm(Fault(end, when))
    assert caller.do("random") is None
    assert caller.process.wait() == -number
    [call] = shim.log()
    assert (call.function, call.rv, call.fault) == ("C_GenerateRandom", None, f"{when} {end}")
    assert call.real == (0 if when is When.AFTER else None)


def test_a_call_that_hangs_does_not_come_back(caller: Caller, shim: Shim) -> None:
    shim.arm(Fault(End.HANG, When.AFTER))
    caller.begin("random")
    while [call.real for call in shim.log()] != [0]:
        time.sleep(0.01)
    os.kill(caller.process.pid, signal.SIGTERM)
    assert caller.process.wait() == -signal.SIGTERM
    [call] = shim.log()
    assert call.rv is None


def test_processes_count_for_themselves_and_one_takes_the_fault(new_caller: NewCaller, shim: Shim) -> None:
    one, other = new_caller(), new_caller()
    shim.arm(Fault(DEVICE_ERROR, which=Which(3)))
    said = [each.do("random") for each in (one, one, other, other, one, other, one, other)]
    assert said == [8, 8, 8, 8, "DeviceError", 8, 8, 8]
    shim.arm(Fault(DEVICE_ERROR))
    assert [each.do("random") for each in (other, one)] == ["DeviceError", 8]


def test_a_fault_that_lasts_is_every_calls_from_there_on(new_caller: NewCaller, shim: Shim) -> None:
    one, other = new_caller(), new_caller()
    shim.arm(Fault(DEVICE_ERROR, which=Which(2), lasting=True))
    assert [one.do("random") for _ in range(4)] == [8, *["DeviceError"] * 3]
    assert [other.do("random") for _ in range(2)] == [8, "DeviceError"]
    assert shim.armed
    shim.disarm()
    assert [each.do("random") for each in (one, other)] == [8, 8]


def test_a_fault_that_is_withdrawn_does_not_happen(caller: Caller, shim: Shim) -> None:
    shim.arm(Fault(DEVICE_ERROR, which=Which(2)))
    with pytest.raises(FileExistsError):
        shim.arm(Fault(DEVICE_ERROR))
    caller.do("random")
    shim.disarm()
    assert [caller.do("random") for _ in range(3)] == [8, 8, 8]


# --- holds


def test_a_call_is_held_before_it_acts_until_it_is_released(caller: Caller, shim: Shim) -> None:
    with shim.hold(Which(function="C_GenerateKeyPair", mechanism=Mechanism.RSA_PKCS_KEY_PAIR_GEN)) as hold:
        assert caller.do("random") == 8
        caller.begin("pair")
        assert hold.wait() == caller.process.pid
        call = shim.log()[-1]
        assert (call.function, call.held, call.real, call.rv) == ("C_GenerateKeyPair", True, None, None)
        hold.release()
        assert caller.result() is None
        assert shim.log()[1].rv == 0
        assert caller.do("pair") is None
        hold.arm()
        caller.begin("pair")
        hold.wait()
    assert caller.result() is None


def test_a_held_call_can_fail(caller: Caller, shim: Shim) -> None:
    shim.arm(Fault(DEVICE_ERROR))
    with shim.hold(Which()) as hold:
        caller.begin("random")
        hold.wait()
        hold.release()
        assert caller.result() == "DeviceError"
