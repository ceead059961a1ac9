"""A call that fails: every order ends in its right answer or in an error that says which call met what.

After it nothing of it is left in the token, a PIN that was refused is not tried again, and the next order works.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Final

from appliance.demo.published import PIN
from appliance.errors import ApplianceError, Reason
from appliance.hsm.probe import ABSENT
from tests.shim import Fault, When, Which

from .bench import Bench, survivors
from .codes import CODES, PIN_CODES
from .operations import Operation

RIGHT: Final = "right"
LOADING: Final = {"C_Initialize", "C_GetInfo"}
LOGIN: Final = {"C_OpenSession", "C_Login"}
TOLD_OTHERWISE: Final = {"C_GetAttributeValue": "FunctionFailed"}
"""python-pkcs11 reads on without the lengths that it was refused."""
LASTING: Final = ABSENT | {"AttributeTypeInvalid"}
"""With these a module says of a mechanism that it will never do."""
DESTRUCTOR: Final = "OperationNotInitialized"
"""python-pkcs11 ends a search that was not begun, in a destructor, where nobody can catch what that brings."""


@dataclasses.dataclass(frozen=True)
class Case:
    """The n-th call answers `code`, as if it had not acted or though it has; `lasting`: and all calls after it do."""

    n: int
    when: When
    code: str
    lasting: bool = False


@dataclasses.dataclass
class Outcome:
    """What came of a case.

    Attributes:
        told: RIGHT, or the reason of the error.
        wrong: what should not have happened.
    """

    told: str = RIGHT
    wrong: list[str] = dataclasses.field(default_factory=list)


def count(bench: Bench, operation: Operation) -> int:
    """How many calls it makes when nothing fails."""
    operation.prepare(bench)
    bench.shim.clear_log()
    check = operation.act(bench)
    calls = bench.shim.log()
    check()
    return len(calls)


def run(bench: Bench, operation: Operation, case: Case) -> Outcome:
    """Lets one call fail, and looks at what came of it."""
    outcome = Outcome()
    operation.prepare(bench)
    bench.unraisable.clear()
    bench.shim.clear_log()
    bench.shim.arm(Fault(CODES[case.code], case.when, Which(case.n), case.lasting))
    check = None
    try:
        check = operation.act(bench)
    except ApplianceError as error:
        outcome.told = error.reason.name
        outcome.wrong += imprecise(bench, error, case)
    except Exception as error:  # noqa: BLE001 - any other is what is looked for
        outcome.told = type(error).__name__
        outcome.wrong.append(f"{error!r}")
    finally:
        if bench.shim.armed and not case.lasting:
            outcome.wrong.append("the call did not come")
        bench.shim.disarm()
    calls = bench.shim.log()
    if (alive := survivors(calls)) and not case.lasting:
        outcome.wrong.append(f"{len(alive)} objects are left")
    answers = [call.rv for call in calls if call.function == "C_Login"]
    if any(answers[:-1]):
        outcome.wrong.append("it logged in again after a login that failed")
    outcome.wrong += [told for told in bench.unraisable if told not in {DESTRUCTOR, case.code if case.lasting else ""}]
    try:
        if check:
            check()
        if not operation.anew:
            outcome.wrong += follow(bench, operation, outcome.told)
    except Exception as error:  # noqa: BLE001 - whatever it is, the next order did not work
        outcome.wrong.append(f"then {error!r}")
        bench.forget()
    return outcome


def imprecise(bench: Bench, error: ApplianceError, case: Case) -> Iterator[str]:
    """What is missing or wrong in an error."""
    [failed, *_] = [call for call in bench.shim.log() if call.fault]
    where = f"{failed.function} {case.code}: {error}"
    match error.reason:
        case Reason.TOKEN_FAULT:
            found = error.facts.get("error")
            told = {case.code, f"{CODES[case.code]:#x}", TOLD_OTHERWISE.get(failed.function)}
            if not error.facts.get("call") or found not in told:
                yield f"{where} told as {found}"
        case Reason.PIN_REJECTED if failed.function in LOGIN and case.code in PIN_CODES:
            pass
        case Reason.TOKEN_ABSENT if failed.function in LOADING or case.code == "TokenNotPresent":
            pass
        case Reason.MECHANISM_MISSING if case.code in LASTING and case.code in error.detail:
            pass
        case _:
            yield where
    if PIN in f"{error} {error.facts} {error.__context__}":
        yield "the PIN is in it"


def every(calls: int, codes: Iterable[str], *, lasting: bool = False) -> Iterator[Case]:
    """Each call with each code, before and after it acts; what lasts only before, which for the caller is the same."""
    for n, when, code in product(range(1, calls + 1), [When.BEFORE] if lasting else When, codes):
        yield Case(n, when, code, lasting)


def in_turn(calls: int, codes: Sequence[str], when: When) -> Iterator[Case]:
    """Each call with one of the codes."""
    for n in range(1, calls + 1):
        yield Case(n, when, codes[n % len(codes)])


def follow(bench: Bench, operation: Operation, told: str) -> Iterator[str]:
    """The next such order: it works, or no PIN is spent on it."""
    if told == Reason.PIN_REJECTED.name and bench.engine:
        logins = bench.shim.logins()
        try:
            operation.act(bench)
        except ApplianceError as error:
            if error.reason is not Reason.PIN_REJECTED or bench.shim.logins() > logins:
                yield f"after a refused PIN: {error}"
        else:
            yield "after a refused PIN the next order worked"
        bench.forget()
        return
    operation.act(bench)()
    if left := bench.site.session_objects():
        yield f"{left} session objects are left"
