"""The exit status: what is wrong before what is open, and only attacks can be accepted."""

import pytest

from appliance.hsm.check.finding import Finding, Section, Status, Verdict, exit_status

FINE = Finding(Section.MECHANISMS, "AES_CMAC", "", Verdict.RIGHT, "is RFC 4493")
WRONG_KEY = Finding(Section.KEYS, "copy-weaker", "kcv", Verdict.WRONG, "A5AE31 | 000000", Status.UNFIT)
POSSIBLE = Finding(Section.ATTACKS, "copy-weaker", "K_PKG", Verdict.POSSIBLE, "worked", Status.OPEN)
UNCLEAR = Finding(Section.ATTACKS, "wrap-weak", "AES_CBC", Verdict.UNKNOWN, "GeneralError", Status.OPEN)
CRASHED = Finding(Section.ATTACKS, "wrap-weak", "AES_ECB", Verdict.CRASHED, "SIGSEGV", Status.UNFIT)


@pytest.mark.parametrize(
    ("findings", "accepted", "status"),
    [
        ([], [], Status.FIT),
        ([FINE], [], Status.FIT),
        ([FINE, POSSIBLE], [], Status.OPEN),
        ([FINE, POSSIBLE], ["copy-weaker"], Status.FIT),
        ([FINE, POSSIBLE], ["wrap-weak"], Status.OPEN),
        ([POSSIBLE, UNCLEAR], ["copy-weaker"], Status.OPEN),
        ([POSSIBLE, UNCLEAR], ["copy-weaker", "wrap-weak"], Status.FIT),
        ([POSSIBLE, WRONG_KEY], [], Status.UNFIT),
        ([WRONG_KEY], ["copy-weaker"], Status.UNFIT),
        ([POSSIBLE, CRASHED], ["copy-weaker"], Status.UNFIT),
        ([POSSIBLE, CRASHED], ["copy-weaker", "wrap-weak"], Status.FIT),
    ],
)
def test_status_follows_from_what_is_not_accepted(findings: list[Finding], accepted: list[str], status: Status) -> None:
    assert exit_status(findings, accepted) is status


def test_statuses_are_those_that_help_and_readme_name() -> None:
    """2 is argparse's."""
    assert [int(status) for status in Status] == [0, 1, 3]
