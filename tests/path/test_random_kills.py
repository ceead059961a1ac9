"""A short run of random kills with a seed; `make soak` makes a long one with a seed of its own."""

from pathlib import Path

from .conftest import MakeSite
from .random_kills import VAULTS, Run

SECONDS, DELIVERIES = 5, 5
SEED = 20261122


def test_whatever_dies_every_answer_stands(make_site: MakeSite, disk_library: Path) -> None:
    site = make_site(count=VAULTS)
    run = Run(site, site.on(disk_library), SEED)
    run.go(SECONDS, DELIVERIES)
    site.end()
    assert not run.violations, "\n".join(run.violations)
