"""One attack: what is tried and what it means; and the judgement over what the module answered.

An attack has worked only where its effect was seen: a value read, an attribute read back, a signature that verifies.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from appliance.errors import ApplianceError, Reason
from appliance.hsm.check.bench import ATTACK_CALLS, Bench
from appliance.hsm.check.finding import Finding, Section, Status, Verdict
from appliance.hsm.module import TokenSession
from appliance.hsm.probe import ABSENT

Try = Callable[[Bench], bool]
"""Answers whether the attack had its effect; the module's refusals come as errors."""

REFUSED: Final = frozenset(
    {
        "ActionProhibited",
        "AttributeReadOnly",
        "AttributeSensitive",
        "AttributeValueInvalid",
        "FunctionRejected",
        "KeyFunctionNotPermitted",
        "KeyHandleInvalid",
        "KeyNotWrappable",
        "KeySizeRange",
        "KeyTypeInconsistent",
        "KeyUnextractable",
        "ObjectHandleInvalid",
        "SessionReadOnly",
        "TemplateInconsistent",
        "UnwrappingKeyHandleInvalid",
        "UnwrappingKeyTypeInconsistent",
        "UserNotLoggedIn",
        "WrappingKeyHandleInvalid",
        "WrappingKeyTypeInconsistent",
    }
)
"""Errors by which a module says that it will not. Any other says too little to rely on."""
NOT_THERE: Final = frozenset({*ABSENT, "AttributeTypeInvalid", "DataLenRange"}) - REFUSED
"""Errors by which it says that it has no such thing, or none for such a key."""


@dataclass(frozen=True)
class Attack:
    """A known attack on the PKCS#11 API, by somebody who has the PIN and can call the module.

    Args:
        name: for `--accept` and scripts.
        tried: what is done.
        means: what its success means here, in plain words.
        defence: what the appliance itself does against it, beside what it does against all (`attacks.PREMISE`).
        closing: how the module, its settings or another one close it.
        source: where it is described.
        tries: its variants, by what each is tried on or with.
        inherent: PKCS#11 itself lets everybody do it who has the PIN, on every module that can do what suite 01 needs.
    """

    name: str
    tried: str
    means: str
    defence: str
    closing: str
    source: str
    tries: Mapping[str, Try]
    inherent: bool = False

    @property
    def when_possible(self) -> Status:
        """What its success asks for: nobody can close an inherent one, so it is told and nothing more."""
        return Status.FIT if self.inherent else Status.OPEN


def attempt(session: TokenSession, attack: Attack, variant: str) -> Finding:
    """Try one variant with keys of its own; whatever it leaves ends with it."""
    bench = Bench(session)
    try:
        worked = attack.tries[variant](bench)
        verdict, found = (Verdict.POSSIBLE, "worked") if worked else (Verdict.BLOCKED, "without effect")
    except ApplianceError as error:
        verdict, found = judge(error)
    finally:
        bench.clear()
    demands = attack.when_possible if verdict in {Verdict.POSSIBLE, Verdict.UNKNOWN} else Status.FIT
    return Finding(Section.ATTACKS, attack.name, variant, verdict, found, demands)


def judge(error: ApplianceError) -> tuple[Verdict, str]:
    """What an error of an attempt says: refused, not there, or nothing that can be relied on."""
    name, call = error.facts.get("error"), error.facts.get("call")
    if name in NOT_THERE:
        return Verdict.NOT_OFFERED, answer(error)
    if name in REFUSED and call in ATTACK_CALLS:
        return Verdict.BLOCKED, answer(error)
    return Verdict.UNKNOWN, answer(error)


def answer(error: ApplianceError) -> str:
    """What the module answered, and to which call, if that was not the one that counts."""
    if error.reason is not Reason.TOKEN_FAULT:
        return error.detail
    name, call = error.facts["error"], error.facts["call"]
    return str(name) if call in ATTACK_CALLS else f"{name} to a {call} call"


_PRECEDENCE: Final = (
    Verdict.POSSIBLE,
    Verdict.CRASHED,
    Verdict.HUNG,
    Verdict.UNKNOWN,
    Verdict.BLOCKED,
    Verdict.NOT_OFFERED,
)


def joined(findings: Iterable[Finding]) -> Finding:
    """The variants of one attack as one finding: the worst verdict, and the variants by what became of them.

    Of those that the module does not offer only the number is told.
    """
    variants = list(findings)
    outcomes: dict[tuple[Verdict, str], list[str]] = {}
    for finding in variants:
        outcomes.setdefault((finding.verdict, finding.found), []).append(finding.part)
    told = sorted(outcomes.items(), key=lambda item: _PRECEDENCE.index(item[0][0]))
    found = "; ".join(
        f"{text} ({len(parts)})" if verdict is Verdict.NOT_OFFERED else f"{text}: {', '.join(parts)}"
        for (verdict, text), parts in told
    )
    demands = Status.UNFIT if any(f.demands is Status.UNFIT for f in variants) else max(f.demands for f in variants)
    return Finding(Section.ATTACKS, variants[0].name, "", told[0][0][0], found, demands)
