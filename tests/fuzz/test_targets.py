"""Each target over its seeds, its regressions, and mutations of both: always the same ones (`make fuzz` looks further).

Derandomized, so that a change is judged by what it changes; and nobody else's commit meets a new finding.
"""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.target import Choices, chunk
from tests.fuzz.targets import REGRESSIONS, TARGETS, regressions

EXAMPLES = 100
EDGES = (0x00, 0x01, 0x0A, 0x22, 0x30, 0x5B, 0x7F, 0x80, 0x81, 0x82, 0xFF)
"""Bytes that mean something somewhere: zero, ends of ranges, quotes and brackets, length forms."""


@st.composite
def mutations(draw: st.DrawFn, seeds: Sequence[bytes], longest: int) -> bytes:
    """A seed with one to three places changed."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        at, length, change = draw(st.integers(0, len(data))), draw(st.integers(1, 16)), draw(st.integers(0, 4))
        if change == 0:
            data[at : at + 1] = bytes([draw(st.sampled_from(EDGES))])
        elif change == 1:
            del data[at : at + length]
        elif change == 2:
            data[at:at] = draw(st.binary(min_size=1, max_size=4))
        elif change == 3:
            data[at:at] = data[at : at + length]
        else:
            other = draw(st.sampled_from(seeds))
            data[at:] = other[at : at + draw(st.integers(0, len(other)))]
    return bytes(data[:longest])


@pytest.mark.filterwarnings("ignore:Parsed a serial number", "ignore:Attribute's length")  # of what is refused
@pytest.mark.parametrize("name", TARGETS)
def test_target_has_no_finding(name: str) -> None:
    target = TARGETS[name]
    seeds = [*target.seeds(), *(path.read_bytes() for path in regressions(name))]
    assert seeds
    with target.open() as run:
        for seed in seeds:
            run(seed)

        @settings(derandomize=True, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
        @given(st.one_of(mutations(seeds, target.longest), st.binary(max_size=min(target.longest, 256))))
        def search(data: bytes) -> None:
            run(data)

        search()


def test_every_regression_belongs_to_a_target() -> None:
    assert {path.name for path in REGRESSIONS.iterdir()} <= set(TARGETS)


def test_choices_end_with_zeros_and_empty_bytes() -> None:
    choices = Choices(b"\x07" + chunk(b"abc") + b"\x01\x00")
    assert (choices.number(), choices.chunk(), choices.number(2)) == (7, b"abc", 0x100)
    assert not choices
    assert (choices.number(), choices.chunk(), choices.rest()) == (0, b"", b"")
