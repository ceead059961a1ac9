"""Moments of an issuance at which a call stands until somebody lets it go on, or kills what it stands in.

A call stands at the ledger's disk, at the door of a vault, or inside the PKCS#11 module. `Stage.place` puts one call
somewhere; `Stage.place_all` puts calls at every moment at once, with both vaults at work.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

from appliance.api.v1.issuance_pb2 import KEY_TYPE_EC_P256, KEY_TYPE_RSA_2048, IssueRequest
from tests.ledger.disk import LOG, Action, Disk, Fault
from tests.shim import Which

from .callers import Caller, issue_request
from .interposer import Gate, Interposer
from .programs import until
from .site import WRAP, Site

KEY_PAIR: Final = Which(function="C_GenerateKeyPair")
_BEFORE_A_COMMIT: Final = Fault(Action.HOLD_BEFORE, 1, 1, kinds="w", files=LOG)
_AFTER_A_COMMIT: Final = Fault(Action.HOLD_AFTER, 1, 1, kinds="c", files=LOG)


class Moment(StrEnum):
    """How far the call has come."""

    RESERVATION = "before the reservation's commit"
    VAULT = "before the vault"
    KEY_PAIR = "in the key pair's generation"
    WRAP = "in the wrapping"
    ANSWER = "before the vault's answer"
    COMPLETION = "before the completion's commit"
    CLIENT = "before the client's answer"


@dataclass
class Standing:
    """A call that stands; `slot` is that of the vault it was given to, None where that has not happened yet.

    `surely_begun`: whether the front has certainly taken it. One that it has not may be refused, with nothing reserved.
    """

    moment: Moment
    request: IssueRequest
    call: Any
    slot: int | None = None
    surely_begun: bool = True


class Stage:
    """Use as a context: what still stands at its end goes on."""

    def __init__(self, site: Site, disk: Disk, issuer: Caller) -> None:
        self.standing: list[Standing] = []
        self._site, self._disk, self._issuer = site, disk, issuer
        self._held = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Everything goes on, as far as it is alive."""
        front = self._site.front
        if front and front.running:
            self._disk.disarm()
        else:
            self._disk.forget()
        self._open(lambda interposer: interposer.before)
        self.let_vaults_go()

    def let_vaults_go(self) -> None:
        """What a vault has in hand goes on."""
        self._held.close()
        self._open(lambda interposer: interposer.after)

    def _open(self, side: Callable[[Interposer], Gate]) -> None:
        for interposer in self._site.interposers.values():
            gate = side(interposer)
            gate.stop(0)
            for call in gate.standing:
                call.set()

    def place(self, moment: Moment, key_type: int) -> Standing:
        """One call, with nothing beside it."""
        match moment:
            case Moment.RESERVATION:
                self._disk.arm(_BEFORE_A_COMMIT)
                standing = self._begin(moment, key_type)
                self._disk.wait()
            case Moment.VAULT:
                standing, _ = self._at_door(moment, key_type, lambda interposer: interposer.before)
            case Moment.KEY_PAIR:
                standing = self._in_module(moment, key_type, KEY_PAIR)
            case Moment.WRAP:
                standing = self._in_module(moment, key_type, WRAP)
            case _:
                standing, go_on = self._at_door(moment, key_type, lambda interposer: interposer.after)
                if moment is not Moment.ANSWER:
                    self._commit(_BEFORE_A_COMMIT if moment is Moment.COMPLETION else _AFTER_A_COMMIT, go_on)
        return standing

    def place_all(self, rsa: Moment) -> None:
        """A call at every moment at once; the module of each vault holds one of them.

        Args:
            rsa: where the call for an RSA key stands; the others are for EC keys.
        """
        types = dict.fromkeys(Moment, KEY_TYPE_EC_P256) | {rsa: KEY_TYPE_RSA_2048}
        goes_on = {}
        for moment in (Moment.ANSWER, Moment.COMPLETION, Moment.CLIENT):
            _, goes_on[moment] = self._at_door(moment, types[moment], lambda interposer: interposer.after)
        self._at_door(Moment.VAULT, types[Moment.VAULT], lambda interposer: interposer.before)
        first = self._in_module(Moment.KEY_PAIR, types[Moment.KEY_PAIR], KEY_PAIR)
        second = self._in_module(Moment.WRAP, types[Moment.WRAP], WRAP)
        assert {first.slot, second.slot} == {0, 1}
        self._commit(_AFTER_A_COMMIT, goes_on[Moment.CLIENT])
        answered = self._answered()
        goes_on[Moment.COMPLETION].set()
        until(lambda: self._answered() == answered + 1, "the front has the answer")
        # The committer stands: whether this one waits for it already, or is on its way to the front, nobody can see.
        self._begin(Moment.RESERVATION, types[Moment.RESERVATION]).surely_begun = False

    def _begin(self, moment: Moment, key_type: int) -> Standing:
        request = issue_request(key_type)
        standing = Standing(moment, request, self._issuer.begin_issue(request))
        self.standing.append(standing)
        return standing

    def _at_door(
        self, moment: Moment, key_type: int, side: Callable[[Interposer], Gate]
    ) -> tuple[Standing, threading.Event]:
        gates = {slot: side(interposer) for slot, interposer in self._site.interposers.items()}
        before = {slot: gate.standing for slot, gate in gates.items()}
        for gate in gates.values():
            gate.stop()
        standing = self._begin(moment, key_type)

        def came() -> list[tuple[int, threading.Event]]:
            return [(slot, call) for slot, gate in gates.items() for call in gate.standing if call not in before[slot]]

        until(lambda: bool(came()), f"a call stands {moment}")
        for gate in gates.values():
            gate.stop(0)
        [(standing.slot, go_on)] = came()
        return standing, go_on

    def _in_module(self, moment: Moment, key_type: int, which: Which) -> Standing:
        vaults = self._site.vaults
        assert vaults
        hold = self._held.enter_context(self._site.shim.hold(which))
        standing = self._begin(moment, key_type)
        pid = hold.wait()
        standing.slot = next(slot for slot, of_slot in vaults.pids().items() if of_slot == pid)
        return standing

    def _commit(self, fault: Fault, go_on: threading.Event) -> None:
        self._disk.arm(fault)
        go_on.set()
        self._disk.wait()

    def _answered(self) -> int:
        return sum(interposer.answered for interposer in self._site.interposers.values())
