"""The examination: what is looked at, in steps each of which stands for itself.

The same order gives the same steps, so that a process that takes over from one that died goes on behind its last step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.domain.keyset import SimIssuer
from appliance.domain.profile import CertificateProfile
from appliance.errors import ApplianceError
from appliance.hsm.check import attack, holdings, mechanisms
from appliance.hsm.check.attacks import ATTACKS
from appliance.hsm.check.finding import Finding, Section, Status, Verdict
from appliance.hsm.keys import Role
from appliance.hsm.module import TokenSession
from appliance.hsm.orders import ModuleParameters


@dataclass(frozen=True)
class Order:
    """What to examine.

    Args:
        issuers: whose key sets should be on the token.
        profiles: certificate profiles, each with its CA certificate (DER).
    """

    module: ModuleParameters
    issuers: tuple[SimIssuer, ...] = ()
    profiles: tuple[tuple[CertificateProfile, bytes], ...] = ()


class Step:
    """One look at the token; section, name and part are those of what it finds."""

    def __init__(
        self, section: Section, name: str, part: str, look: Callable[..., Finding | list[Finding]], *arguments: Any
    ) -> None:
        self.section, self.name, self.part = section, name, part
        self._look, self._arguments = look, arguments

    def take(self, session: TokenSession) -> list[Finding]:
        """Look; the session is a new one if the last step has broken it.

        Raises:
            ApplianceError: the token cannot be opened any more.
        """
        if session.broken or not session.is_open:
            session.renew()
        try:
            found = self._look(session, *self._arguments)
        except ApplianceError as error:
            found = Finding(self.section, self.name, self.part, Verdict.UNKNOWN, attack.answer(error), Status.UNFIT)
        return [found] if isinstance(found, Finding) else found


def steps(order: Order) -> list[Step]:
    """All of them, in the order of the report."""
    return list(_steps(order))


def _steps(order: Order) -> Iterator[Step]:
    yield Step(Section.TOKEN, "description", "", holdings.token)  # first: it tells the flags before the first login
    yield Step(Section.MODULE, "description", "", holdings.module, order.module)
    yield Step(Section.OBJECTS, "on the token", "before", holdings.objects, "before")
    for behaviour in mechanisms.behaviours([profile for profile, _ in order.profiles]):
        yield Step(Section.MECHANISMS, behaviour.name, behaviour.part, mechanisms.examine, behaviour)
    yield from _keys(order)
    for tried in ATTACKS:
        for variant in tried.tries:
            yield Step(Section.ATTACKS, tried.name, variant, attack.attempt, tried, variant)
    yield Step(Section.OBJECTS, "on the token", "after", holdings.objects, "after")


def _keys(order: Order) -> Iterator[Step]:
    labels = []
    for issuer in order.issuers:
        for key_set in issuer.key_sets:
            field = f"sim_issuers.{issuer.name}.key_sets[{key_set.kvn:02X}]"
            masters = ((Role.KM_BIND, key_set.bind, "bind"), (Role.KM_CHAN, key_set.chan, "chan"))
            for role, declared, name in masters:
                labels.append(declared.label)
                yield Step(Section.KEYS, declared.label, "", holdings.master, role, declared, f"{field}.{name}")
    for profile, certificate in order.profiles:
        if profile.ca_label:
            labels.append(profile.ca_label)
            yield Step(Section.KEYS, profile.ca_label, "", holdings.ca_key, profile, certificate)
    yield Step(Section.KEYS, "other keys", "", holdings.undeclared, tuple(labels))


def balance(findings: Sequence[Finding]) -> list[Finding]:
    """The findings, and whether the token holds as many objects after the examination as before."""
    counts = {f.part: f.found for f in findings if f.section is Section.OBJECTS and f.verdict is Verdict.NOTED}
    if counts.keys() != {"before", "after"}:
        verdict, found = Verdict.UNKNOWN, "they could not be counted twice"
    elif counts["before"] == counts["after"]:
        verdict, found = Verdict.RIGHT, "as many as before"
    else:
        verdict, found = Verdict.WRONG, "not as many as before: look for what was left or made meanwhile"
    demands = Status.FIT if verdict is Verdict.RIGHT else Status.UNFIT
    return [*findings, Finding(Section.OBJECTS, "on the token", "in the end", verdict, found, demands)]
