"""What a vault does for FetchScript, without the calls around it: session keys from a SoftHSM token, by one process."""

from collections.abc import Iterator

from tests.bench import channel_keys
from tests.bench.effort import Effort
from tests.bench.figures import Figure, median


def measure(effort: Effort) -> Iterator[Figure]:
    """Orders per second."""
    yield median("channel_keys", [channel_keys.measure(effort.seconds) for _ in range(effort.runs)], "orders/s")
