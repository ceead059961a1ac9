"""What an examination finds, and what each finding means for the exit status. No PKCS#11 here."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Section(StrEnum):
    """Parts of the report, in its order."""

    MODULE = "module"
    TOKEN = "token"  # noqa: S105 - a heading
    MECHANISMS = "mechanisms"
    KEYS = "keys"
    ATTACKS = "attacks"
    OBJECTS = "objects"


class Verdict(StrEnum):
    """How something was found."""

    RIGHT = "right"
    WRONG = "WRONG"
    NOTED = "noted"
    """Neither right nor wrong by itself."""
    BLOCKED = "blocked"
    """The module refused the attack."""
    POSSIBLE = "POSSIBLE"
    """The attack worked."""
    NOT_OFFERED = "not offered"
    """The module has no such mechanism or attribute."""
    UNKNOWN = "UNKNOWN"
    """The attempt ended in an error that tells neither."""
    CRASHED = "CRASHED"
    HUNG = "HUNG"


class Status(IntEnum):
    """Exit status, and what a finding asks for; argparse takes 2."""

    FIT = 0
    UNFIT = 1
    """Vaults would not start, or should not."""
    OPEN = 3
    """Vaults would serve; but an attack is possible, or not excluded, that modules and their settings can close."""


@dataclass(frozen=True)
class Finding:
    """One row of the report.

    Args:
        name: of the mechanism, key or attack; what `--accept` takes is an attack's.
        part: which part of it, or "".
        found: what was seen, in words.
        demands: the exit status that it asks for by itself.
    """

    section: Section
    name: str
    part: str
    verdict: Verdict
    found: str
    demands: Status = Status.FIT


def exit_status(findings: Iterable[Finding], accepted: Iterable[str] = ()) -> Status:
    """UNFIT before OPEN before FIT, over the findings that are not accepted."""
    known = set(accepted)
    demanded = {finding.demands for finding in findings if finding.name not in known or not_an_attack(finding)}
    return next((status for status in (Status.UNFIT, Status.OPEN) if status in demanded), Status.FIT)


def not_an_attack(finding: Finding) -> bool:
    """Only attacks can be accepted: what keeps a vault from starting does so whether or not it is expected."""
    return finding.section is not Section.ATTACKS
