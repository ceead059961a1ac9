"""The process that holds the module: expendable, and begun anew behind the step in which the module ended it.

A step that takes too long ends the process by SIGALRM, in whatever call it is.
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from appliance import supervisor
from appliance.errors import ApplianceError, Reason
from appliance.hsm.check.examination import Order, Step, steps
from appliance.hsm.check.finding import Finding, Section, Status, Verdict
from appliance.hsm.module import TokenSession
from appliance.pin import read_pin, wipe

T = TypeVar("T")
LIMIT_SECONDS = 120
"""Of one step; RSA key generation is a search."""
_STDOUT, _STDERR = 1, 2
_SPAWN = get_context("spawn")  # never fork once a module may be loaded


def examine(order: Order, pin: bytearray, *, limit: int = LIMIT_SECONDS) -> list[Finding]:
    """Take every step; where the module crashes or hangs, that is what is found, and the next step is taken.

    Args:
        limit: seconds that a step may take.

    Raises:
        ApplianceError: what stood in the way of the first login; TOKEN_FAULT also where the module crashed or hung
            before it had answered: it may have spent a PIN try, so there is no second one.
    """
    planned = steps(order)
    findings: list[Finding] = []
    taken = 0
    while taken < len(planned):
        begun, refusal = False, None  # whether a step was being taken, and what kept it from the token
        reader, process = _start(order, pin, limit, taken)
        with suppress(EOFError), reader:
            while True:
                match reader.recv():
                    case None:
                        begun = True
                    case tuple((reason, detail, hint, field)):
                        refusal = ApplianceError(reason, detail, hint=hint, field=field)
                    case found:
                        findings += found
                        taken, begun = taken + 1, False
        process.join()
        if taken == len(planned):
            break
        if refusal or not begun:
            refusal = refusal or _ended_at_login(process.exitcode)
            if not taken:
                raise refusal
            lost = f"{refusal.detail} {len(planned) - taken} steps were not taken."
            findings.append(Finding(Section.MODULE, "login", "again", Verdict.WRONG, lost, Status.UNFIT))
            break
        findings.append(_ended(planned[taken], process.exitcode))
        taken += 1
    return findings


def _start(order: Order, pin: bytearray, limit: int, first: int) -> tuple["Connection[None, Any]", Any]:
    reader, report = _SPAWN.Pipe(duplex=False)
    pin_reader, pin_writer = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_take, args=(order, pin_reader, limit, first, report), daemon=True)
    with report, pin_reader, pin_writer:
        process.start()
        with suppress(BrokenPipeError):  # it has died already; its end will be seen
            os.writev(pin_writer.fileno(), [pin, b"\n"])
    return reader, process


def _take(order: Order, pin_reader: "Connection[Any, Any]", limit: int, first: int, report: Any) -> None:
    """In the child: log in, then take the steps from `first` on. None tells that one begins, a list what it found."""
    supervisor.harden()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends this process
    os.dup2(_STDERR, _STDOUT)  # some modules print
    pin = read_pin(pin_reader.fileno())

    def limited(work: Callable[..., T], *arguments: Any) -> T:
        signal.alarm(limit)
        return work(*arguments)

    try:
        try:
            session = limited(TokenSession, order.module, _text(pin), lambda _: None)
        finally:
            wipe(pin)
        for step in steps(order)[first:]:
            report.send(None)
            report.send(limited(step.take, session))
        limited(session.close)
    except ApplianceError as error:  # at a login, the first or a later one
        report.send((error.reason, error.detail, error.hint, error.field))


def _text(pin: bytearray) -> str:
    try:
        return pin.decode()
    except UnicodeDecodeError:
        raise ApplianceError(
            Reason.PIN_REJECTED, "The PIN is not UTF-8.", hint="Check where it is read from."
        ) from None


def _ended(step: Step, code: int | None) -> Finding:
    verdict, found = _end_of_the_module(code)
    return Finding(step.section, step.name, step.part, verdict, found, Status.UNFIT)


def _ended_at_login(code: int | None) -> ApplianceError:
    verdict, found = _end_of_the_module(code)
    return ApplianceError(
        Reason.TOKEN_FAULT,
        f"Before the login had an answer {found}.",
        hint="It may have spent a PIN try: look at the HSM before the next start.",
        call=supervisor.LOGIN,
        error=verdict.name,
    )


def _end_of_the_module(code: int | None) -> tuple[Verdict, str]:
    """What the end of the process tells of the module; a defect of this program is raised."""
    if code is None or code >= 0:
        raise ApplianceError(
            Reason.INTERNAL,
            "The examination ended in a defect of this program, shown above.",
            hint="Report it, with the module's name and version.",
        )
    if code == -signal.SIGALRM:
        return Verdict.HUNG, "the module hung, and was ended by SIGALRM"
    return Verdict.CRASHED, f"the module crashed: {signal.Signals(-code).name}"
