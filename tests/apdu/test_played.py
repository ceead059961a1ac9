"""What the virtual SIM answers to a script, as TSMs report it: taken whole, or refused where it is wrong."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.apdu.expanded import Coding, command_template
from appliance.apdu.played import Opening, exchanges, receipt_in, remote_exchanges
from appliance.apdu.scp03 import LEVELS, Mode, derive_session_keys
from appliance.apdu.script import Channel, Script
from appliance.errors import ApplianceError, Reason
from appliance.vsim import remote
from tests.apdu.test_script_in_sim import Setting, apdus, play
from tests.vsim.packages import P256, P384, RSA, octets, personalisation

FIELD = "played.responses"
REMOTE = "played.remote_responses"
PROTECTED = [(level, mode) for level in (0x11, 0x13, 0x33) for mode in Mode]

every_level = pytest.mark.parametrize("level", LEVELS, ids=lambda level: f"{level:02X}")
every_mode = pytest.mark.parametrize("mode", Mode)
every_key = pytest.mark.parametrize(("index", "key_bits"), [(P256, 128), (RSA, 192), (P384, 256)])
every_protection = pytest.mark.parametrize(("level", "mode"), PROTECTED, ids=lambda value: f"{int(value):02X}")
every_coding = pytest.mark.parametrize("coding", Coding)


@dataclass(frozen=True)
class Run:
    """A script and what the SIM that it is for answered."""

    setting: Setting
    counter: int
    script: Script
    channel: Channel
    responses: list[bytes]
    receipt: bytes

    @classmethod
    def of(cls, setting: Setting, counter: int = 1) -> "Run":
        sim, script = setting.sim(), setting.script(counter)
        for _ in range(1, counter):
            play(sim, apdus(script)[:2])
        responses = play(sim, apdus(script))
        assert sim.state.installed is not None
        return cls(setting, counter, script, setting.channel(counter), responses, sim.state.installed.receipt)

    def at(self, purpose: str) -> int:
        """Number of the command."""
        return [command.purpose for command in self.script.commands].index(purpose)

    def taken(self, responses: Sequence[bytes], channel: Channel | None = None, **opening: Any) -> bytes:
        """The receipt in these responses."""
        return receipt_in(exchanges(self.script, responses, FIELD), channel or self.channel, self._opening(**opening))

    def taken_remotely(self, templates: Sequence[bytes]) -> bytes:
        return receipt_in(remote_exchanges(self.script, templates, REMOTE), self.channel, self._opening())

    def _opening(self, **changes: Any) -> Opening:
        opening = Opening(personalisation(self.setting.index).iccid, self.setting.i, self.counter)
        return opening._replace(**changes)


def refused(run: Run, responses: Sequence[bytes], **opening: Any) -> ApplianceError:
    with pytest.raises(ApplianceError) as caught:
        run.taken(responses, **opening)
    return caught.value


def changed(responses: Iterable[bytes], at: int, response: bytes) -> list[bytes]:
    made = list(responses)
    made[at] = response
    return made


@every_key
@every_mode
@every_level
def test_receipt_is_taken_out_of_a_whole_run(index: int, key_bits: int, mode: Mode, level: int) -> None:
    run = Run.of(Setting(index, key_bits, mode, level), counter=3)
    assert run.taken(run.responses) == run.receipt


@every_mode
@every_level
@every_coding
def test_receipt_is_taken_out_of_the_templates_that_a_uicc_answers(mode: Mode, level: int, coding: Coding) -> None:
    setting = Setting(P256, mode=mode, level=level)
    sim, script = setting.sim(), setting.script()
    answers = [
        remote.execute(sim, part.aid, command_template((command.apdu for command in part.addressed), coding))
        for part in script.parts
    ]
    assert sim.state.installed is not None
    run = Run(setting, 1, script, setting.channel(1), [], sim.state.installed.receipt)
    assert run.taken_remotely(answers) == run.receipt


@every_protection
def test_any_bit_changed_within_the_channel_is_found_there(level: int, mode: Mode) -> None:
    run = Run.of(Setting(P256, mode=mode, level=level))
    inside = range(run.at("INSTALL [for personalization]"), run.at("SELECT applet"))
    assert len(inside) > 2
    for at in inside:
        response = run.responses[at]
        for bit in range(8 * len(response)):
            wrong = bytearray(response)
            wrong[bit // 8] ^= 1 << bit % 8
            error = refused(run, changed(run.responses, at, bytes(wrong)))
            assert error.reason is Reason.RESPONSE_REJECTED
            assert (error.field, error.facts["command"]) == (f"{FIELD}[{at}]", at)
            assert error.facts["purpose"] == run.script.commands[at].purpose


@every_protection
def test_protected_responses_do_not_change_places(level: int, mode: Mode) -> None:
    run = Run.of(Setting(RSA, mode=mode, level=level))
    first, second = run.at("INSTALL [for personalization]") + 1, run.at("SELECT applet") - 1
    swapped = changed(changed(run.responses, first, run.responses[second]), second, run.responses[first])
    error = refused(run, swapped)
    assert (error.reason, error.field) == (Reason.RESPONSE_REJECTED, f"{FIELD}[{first}]")
    assert "R-MAC" in error.detail


@every_protection
def test_responses_of_another_session_are_refused(level: int, mode: Mode) -> None:
    setting = Setting(P256, mode=mode, level=level)
    run, other = Run.of(setting), Run.of(setting, counter=2)
    install = run.at("INSTALL [for personalization]")
    error = refused(run, run.responses[:install] + other.responses[install:])
    assert (error.reason, error.field) == (Reason.RESPONSE_REJECTED, f"{FIELD}[{install}]")


@pytest.mark.parametrize("level", [0x01, 0x03])
def test_without_r_mac_the_channel_shows_only_status_words(level: int) -> None:
    """What docs/card-side.md says of these levels: there is nothing that could show the change."""
    run = Run.of(Setting(P256, level=level))
    install = run.at("INSTALL [for personalization]")
    assert run.taken(changed(run.responses, install, b"\x5a\x90\x00")) == run.receipt


@every_mode
def test_any_bit_changed_in_the_opening_is_found_there(mode: Mode) -> None:
    run = Run.of(Setting(P256, mode=mode))
    at, response = 1, run.responses[1]
    for bit in range(8 * len(response)):
        wrong = bytearray(response)
        wrong[bit // 8] ^= 1 << bit % 8
        error = refused(run, changed(run.responses, at, bytes(wrong)))
        assert error.field == f"{FIELD}[{at}]"
        in_clear = (
            len(response) - 5 <= bit // 8
        )  # the sequence counter or the status word: another run, or a failed one
        assert error.reason is (Reason.SCRIPT_INCOMPLETE if in_clear else Reason.RESPONSE_REJECTED), bit


@pytest.mark.parametrize(
    ("opening", "problem"),
    [
        ({"kdd": bytes(10)}, "is 981803194171703546F4, not 00000000000000000000"),
        ({"i": 0x10}, "KVN 77 and i 70 are not the key set's 77 and 10"),
    ],
)
def test_opening_by_another_sim_or_key_set_is_named(opening: dict[str, Any], problem: str) -> None:
    run = Run.of(Setting(P256))
    error = refused(run, run.responses, **opening)
    assert (error.reason, error.field) == (Reason.RESPONSE_REJECTED, f"{FIELD}[1]")
    assert problem in error.detail


def test_opening_with_other_keys_is_refused() -> None:
    run = Run.of(Setting(P256))
    keys = derive_session_keys(bytes(16), bytes(16), run.channel.host_challenge, run.channel.card_challenge)
    error = refused(run, run.responses, channel=replace(run.channel, keys=keys))
    assert (error.reason, error.field) == (Reason.RESPONSE_REJECTED, f"{FIELD}[1]")
    assert "challenge and cryptogram" in error.detail


def test_sim_that_has_counted_on_is_told_from_a_forged_answer() -> None:
    setting = Setting(P256)
    late, script = setting.sim(), setting.script(1)
    play(late, apdus(script)[:2])
    answers = play(late, apdus(script))  # its second session, with the first one's script
    assert answers[2] == b"\x63\x00"
    run = Run(setting, 1, script, setting.channel(1), [], b"")
    error = refused(run, answers)
    assert (error.reason, error.field) == (Reason.SCRIPT_INCOMPLETE, f"{FIELD}[1]")
    assert "answered with sequence counter 2, not 1" in error.detail
    assert "sequence counter 3" in error.hint


@pytest.mark.parametrize("level", [0x03, 0x33])
def test_script_that_was_cut_off_is_told_with_the_command_and_the_way_on(level: int) -> None:
    run = Run.of(Setting(RSA, level=level), counter=5)
    first_read = run.at("GET DATA receipt 1/3")
    for length in range(len(run.responses)):
        error = refused(run, run.responses[:length])
        assert error.reason is Reason.SCRIPT_INCOMPLETE
        assert error.detail == f"Command {length}, {run.script.commands[length].purpose}, has no response."
        assert (error.field, error.facts["command"]) == (f"{FIELD}[{length}]", length)
        assert ("sequence counter 6" if length > 1 else "last sequence counter plus one") in error.hint
        assert ("GET DATA" in error.hint) == (length >= first_read)


@pytest.mark.parametrize("level", [0x03, 0x33])
def test_command_that_the_sim_refused_is_told_with_its_status_word(level: int) -> None:
    run = Run.of(Setting(P256, level=level))
    for at in range(len(run.responses)):
        error = refused(run, changed(run.responses, at, b"\x6a\x84"))
        assert (error.reason, error.field) == (Reason.SCRIPT_INCOMPLETE, f"{FIELD}[{at}]")
        assert error.facts["status_word"] == "6A84"
        assert "was answered 6A84" in error.detail


@pytest.mark.parametrize("status", ["6110", "6C20"])
@pytest.mark.parametrize("level", [0x03, 0x33])
def test_response_that_the_sim_holds_back_is_told_to_be_fetched(level: int, status: str) -> None:
    run = Run.of(Setting(P256, level=level))
    install = run.at("INSTALL [for personalization]")
    error = refused(run, changed(run.responses, install, bytes.fromhex(status)))
    assert (error.reason, error.facts["status_word"]) == (Reason.SCRIPT_INCOMPLETE, status)
    assert error.hint.startswith("Let the player fetch what the SIM holds back: GET RESPONSE")
    assert "sequence counter 2" in error.hint


def test_package_that_the_sim_refused_is_told_at_its_last_block() -> None:
    setting = Setting(P256, level=0x33)
    damaged = bytearray(octets(P256, "package"))
    damaged[-1] ^= 1
    script = setting.script(1, bytes(damaged))
    run = Run(setting, 1, script, setting.channel(1), [], b"")
    error = refused(run, play(setting.sim(), apdus(script)))
    assert (error.reason, error.facts["status_word"]) == (Reason.SCRIPT_INCOMPLETE, "6988")
    assert error.facts["command"] == run.at("SELECT applet") - 1


@pytest.mark.parametrize("response", [b"", b"\x90"])
def test_response_without_a_status_word_is_refused(response: bytes) -> None:
    run = Run.of(Setting(P256))
    for at in range(len(run.responses)):
        error = refused(run, changed(run.responses, at, response))
        assert (error.reason, error.field) == (Reason.RESPONSE_REJECTED, f"{FIELD}[{at}]")


def test_more_responses_than_commands_are_refused() -> None:
    run = Run.of(Setting(P256))
    error = refused(run, [*run.responses, b"\x90\x00"])
    assert (error.reason, error.field) == (Reason.RESPONSE_REJECTED, FIELD)


@every_coding
def test_remote_run_that_stopped_is_told_with_the_command(coding: Coding) -> None:
    setting = Setting(P256, level=0x33)
    sim, script = setting.sim(), setting.script(2)  # the SIM will count 1
    domain = script.security_domain
    answer = remote.execute(sim, domain.aid, command_template((command.apdu for command in domain.addressed), coding))
    run = Run(setting, 2, script, setting.channel(2), [], b"")
    with pytest.raises(ApplianceError) as caught:
        run.taken_remotely([answer])
    error = caught.value
    assert (error.reason, error.field, error.facts["command"]) == (Reason.SCRIPT_INCOMPLETE, f"{REMOTE}[0]", 1)
    assert "answered with sequence counter 1, not 2" in error.detail


def test_remote_run_without_the_applets_answer_has_no_receipt() -> None:
    run = Run.of(Setting(P256, level=0x33))
    inner = b"".join(bytes((0x23, len(response))) + response for response in run.responses[1 : run.at("SELECT applet")])
    with pytest.raises(ApplianceError) as caught:
        run.taken_remotely([b"\xaf\x80" + inner + b"\x00\x00"])
    error = caught.value
    assert (error.reason, error.field) == (Reason.SCRIPT_INCOMPLETE, f"{REMOTE}[1]")
    assert error.detail == f"Command {run.at('GET DATA receipt 1/1')}, GET DATA receipt 1/1, has no response."


def test_more_responses_than_commands_in_a_template_are_refused() -> None:
    run = Run.of(Setting(P256))
    with pytest.raises(ApplianceError) as caught:
        run.taken_remotely([b"\xaf\x80" + b"\x23\x02\x90\x00" * len(run.responses) + b"\x00\x00"])
    assert (caught.value.reason, caught.value.field) == (Reason.RESPONSE_REJECTED, f"{REMOTE}[0]")


def test_more_templates_than_parts_are_refused() -> None:
    run = Run.of(Setting(P256))
    with pytest.raises(ApplianceError) as caught:
        run.taken_remotely([b"\xaf\x80\x00\x00"] * 3)
    assert (caught.value.reason, caught.value.field) == (Reason.RESPONSE_REJECTED, REMOTE)


@cache
def _run(level: int) -> Run:
    return Run.of(Setting(P256, level=level))


@given(responses=st.lists(st.binary(max_size=60), max_size=12), level=st.sampled_from([0x03, 0x33]))
def test_whatever_is_reported_ends_in_a_refusal_that_names_a_field(responses: list[bytes], level: int) -> None:
    run = _run(level)
    error = refused(run, [*run.responses[: len(responses) % 4], *responses])
    assert error.reason in (Reason.SCRIPT_INCOMPLETE, Reason.RESPONSE_REJECTED)
    assert error.field.startswith(FIELD)
