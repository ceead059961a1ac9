"""FetchScript as TSMs see it: scripts per second over mutual TLS, session keys from the vault, on the demo's appliance.

The callers share the machine with it, and one connection. Packages are those of RSA keys.
"""

import asyncio
import time
from collections.abc import Iterator

from appliance.demo.run import applicants, fetch_request
from appliance.domain.package import KeyType
from tests.bench.effort import Effort
from tests.bench.figures import SCRIPTS_PER_SECOND, Figure, median
from tests.bench.site import Served, served

CALLERS = {"fetch_script_one_caller": 1, "fetch_script": 16}


def measure(effort: Effort) -> Iterator[Figure]:
    """One rate for each number of callers."""
    rates = asyncio.run(_rates(effort))
    for figure, runs in rates.items():
        yield median(figure, runs, SCRIPTS_PER_SECOND)


async def _rates(effort: Effort) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {figure: [] for figure in CALLERS}
    async with served() as site:
        everybody = applicants({KeyType.RSA_2048: max(CALLERS.values())})
        issued = await asyncio.gather(*(site.issuer.issue(site.run.request(applicant)) for applicant in everybody))
        names = [issuance.name for issuance in issued]
        for _ in range(effort.runs):
            for figure, callers in CALLERS.items():
                rates[figure].append(await _rate(site, names[:callers], effort.seconds))
    return rates


async def _rate(site: Served, names: list[str], seconds: float) -> float:
    """Each issuance has a caller of its own, who fetches one script after the other."""
    began = time.perf_counter()

    async def caller(name: str) -> int:
        fetched = 0
        while time.perf_counter() - began < seconds:
            await site.tsm.fetch_script(fetch_request(name))
            fetched += 1
        return fetched

    fetched = sum(await asyncio.gather(*(caller(name) for name in names)))
    return fetched / (time.perf_counter() - began)
