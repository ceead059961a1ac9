"""How long the measurements take: the full effort, and a quick look whose figures are not worth quoting."""

from typing import NamedTuple


class Effort(NamedTuple):
    """What every group goes by.

    Args:
        rounds: in which the contenders of a comparison take turns.
        turn: seconds of each.
        calls: of Issue for each EC key type; a quarter of that for RSA.
        runs: of whole commands, and of many calls at once.
        seconds: of a run of many calls.
        scripts: that a whole command renders.
    """

    rounds: int
    turn: float
    calls: int
    runs: int
    seconds: float
    scripts: int


FULL = Effort(rounds=31, turn=0.1, calls=200, runs=5, seconds=2.0, scripts=50_000)
QUICK = Effort(rounds=3, turn=0.02, calls=8, runs=2, seconds=0.3, scripts=1_000)
