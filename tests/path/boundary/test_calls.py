"""What a full run asked of its token: every rule of the boundary holds, and each is broken by a log that breaks it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from pkcs11 import Attribute, Mechanism

from tests.shim import AttributeAsked, AttributeIn, Call

from .conftest import KEY_TYPES, FullRun
from .history import History
from .rules import RULES

Log = list[Call]
ENDS = {"C_CloseSession", "C_CloseAllSessions", "C_Finalize"}


@pytest.mark.parametrize("rule", RULES)
def test_a_full_run_keeps_the_boundary(run: FullRun, rule: str) -> None:
    assert list(RULES[rule](run.history, run.asked)) == []


@pytest.mark.parametrize("rule", RULES)
def test_a_full_run_with_an_external_ca_keeps_it_too(external_run: FullRun, rule: str) -> None:
    assert list(RULES[rule](external_run.history, external_run.asked)) == []


def test_the_run_made_what_the_rules_are_about(run: FullRun) -> None:
    processes = run.history.by_process()
    assert len(processes) > 2, "some vaults have been recycled"
    assert len(run.sealings) == len(KEY_TYPES) + 2
    wrapped = [key for key in run.history.made() if key.wrappings]
    assert len(wrapped) >= len(run.sealings) + len(processes), "each start wraps a throwaway key"
    assert any(key.ended and key.ended.function == "C_DestroyObject" for key in wrapped)


def first(log: Log, function: str, **facts: object) -> int:
    """Where the log has this call."""
    return next(
        i
        for i, call in enumerate(log)
        if call.function == function and all(getattr(call, name) == value for name, value in facts.items())
    )


def last(log: Log, function: str, **facts: object) -> int:
    """Where the log has it for the last time."""
    return len(log) - 1 - first(log[::-1], function, **facts)


def changed(log: Log, at: int, **changes: object) -> Log:
    """The log with one call told otherwise."""
    return [*log[:at], replace(log[at], **changes), *log[at + 1 :]]  # type: ignore[arg-type]  # fields of Call


def stating(log: Log, at: int, parameter: str, attribute: Attribute, value: bool) -> Log:
    """The log with another value in a template."""
    template = log[at].templates[parameter]
    others = [entry for entry in template if entry.type != attribute]
    stated = (*others, AttributeIn(attribute, 1, bytes([value])))
    assert stated != template
    return changed(log, at, templates={**log[at].templates, parameter: stated})


def seal(log: Log) -> int:
    """The last subscriber's key wrapped: what is wrapped at a start goes under a key that was not derived."""
    return max(
        at
        for at, call in enumerate(log)
        if call.function == "C_WrapKey"
        and any(
            (made.function, made.pid, made.made.get("key")) == ("C_DeriveKey", call.pid, call.objects["wrapping_key"])
            for made in log[:at]
        )
    )


def pair(log: Log) -> int:
    """Its making."""
    return last(log[: seal(log)], "C_GenerateKeyPair", pid=log[seal(log)].pid)


def wrap_key(log: Log) -> int:
    """The making of its K_PKG."""
    wrapping = log[seal(log)]
    return last(log[: seal(log)], "C_DeriveKey", pid=wrapping.pid, made={"key": wrapping.objects["wrapping_key"]})


def read_private_value(log: Log) -> Log:
    at = pair(log)
    asked = (AttributeAsked(Attribute.VALUE, True, None),)
    read = replace(log[at], function="C_GetAttributeValue", mechanism=None, made={}, templates={}, asked=asked)
    return [*log[: at + 1], replace(read, objects={"object": log[at].made["private_key"]}), *log[at + 1 :]]


def left_alive(log: Log) -> Log:
    """Without the destruction of the last K_PKG, in a process that is still up."""
    made = log[wrap_key(log)]
    at = last(log, "C_DestroyObject", objects={"object": made.made["key"]}, pid=made.pid)
    return [call for call in log[:at] + log[at + 1 :] if call.pid != made.pid or call.function not in ENDS]


def sealed_twice(log: Log) -> Log:
    at = seal(log)
    return [*log[: at + 1], log[at], *log[at + 1 :]]


def first_pair_destroyed_late(log: Log) -> Log:
    """The destruction of the first process's first subscriber key comes at that process's end."""
    made = log[first(log, "C_GenerateKeyPair")]
    at = first(log, "C_DestroyObject", pid=made.pid, objects={"object": made.made["private_key"]})
    end = last(log, "C_DestroyObject", pid=made.pid)
    return [*log[:at], *log[at + 1 : end + 1], replace(log[at], sequence=log[end].sequence), *log[end + 1 :]]


BREACHES: dict[str, tuple[Callable[[Log], Log], set[str]]] = {
    # What is done to the log: the rules that it breaks.
    "a copy is made": (
        lambda log: changed(log, last(log, "C_GetTokenInfo"), function="C_CopyObject"),
        {"functions"},
    ),
    "a signature by another scheme": (
        lambda log: changed(log, last(log, "C_SignInit"), mechanism=Mechanism.AES_MAC),
        {"mechanisms"},
    ),
    "another thread": (lambda log: changed(log, len(log) - 1, tid=1), {"one_thread"}),
    "a login after a refused one": (
        lambda log: [*log, replace(log[first(log, "C_Login")], rv=0xA0), log[first(log, "C_Login")]],
        {"one_login"},
    ),
    "a subscriber's key on the token": (
        lambda log: stating(log, pair(log), "private_key_template", Attribute.TOKEN, True),
        {"in_session"},
    ),
    "a subscriber's key that is not sensitive": (
        lambda log: stating(log, pair(log), "private_key_template", Attribute.SENSITIVE, False),
        {"hidden"},
    ),
    "an extractable K_PKG": (
        lambda log: stating(log, wrap_key(log), "templ", Attribute.EXTRACTABLE, True),
        {"hidden"},
    ),
    "a K_PKG that decrypts too": (
        lambda log: stating(log, wrap_key(log), "templ", Attribute.DECRYPT, True),
        {"one_purpose", "derivations"},
    ),
    "a subscriber's key that signs": (
        lambda log: stating(log, pair(log), "private_key_template", Attribute.SIGN, True),
        {"one_purpose"},
    ),
    "a private value read": (read_private_value, {"reads"}),
    "a wrap for another SIM": (
        lambda log: changed(log, wrap_key(log), parameter=bytes(16) + bytes(32)),
        {"derivations", "sealings"},
    ),
    "a package sealed twice": (sealed_twice, {"sealings"}),
    "a sealing that nobody got": (
        lambda log: [call for call in log if call is not log[seal(log)]],
        {"sealings"},
    ),
    "a K_PKG left alive": (left_alive, {"destroyed"}),
    "a subscriber's key that outlives its order": (first_pair_destroyed_late, {"promptly"}),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_is_found_by_its_rule(run: FullRun, breach: str) -> None:
    change, broken = BREACHES[breach]
    history = History(change(list(run.history.calls)))
    assert {name for name, rule in RULES.items() if list(rule(history, run.asked))} == broken


def test_every_rule_has_a_breach() -> None:
    assert set().union(*(broken for _, broken in BREACHES.values())) == set(RULES)
