"""Latency and rate of Issue, FetchScript and ReportReceipt over mutual TLS, on the demo's appliance.

One caller at a time for latency, then several at once for the rate of Issue.
"""

import asyncio
import math
import statistics
import time
from collections.abc import Iterator

from appliance.api.v1.issuance_pb2 import IssueRequest
from appliance.demo.run import applicants, deliver, fetch_request, receipt_request
from appliance.domain.package import KeyType
from tests.bench.effort import Effort
from tests.bench.figures import Figure
from tests.bench.site import Served, served

CALLERS = 8


def measure(effort: Effort) -> Iterator[Figure]:
    """The figures of each key type."""
    yield from asyncio.run(_measure(effort))


async def _measure(effort: Effort) -> list[Figure]:
    figures: list[Figure] = []
    async with served() as site:
        for key_type in KeyType:
            calls = max(8, effort.calls // 4) if key_type is KeyType.RSA_2048 else effort.calls
            figures += await _of_one_key_type(site, key_type, calls)
    return figures


async def _of_one_key_type(site: Served, key_type: KeyType, calls: int) -> list[Figure]:
    name = key_type.name.lower()
    times: dict[str, list[float]] = {"issue": [], "fetch_script": [], "report_receipt": []}
    everybody = applicants({key_type: calls * 2})
    for applicant in everybody[:calls]:
        started = time.perf_counter()
        issued = await site.issuer.issue(site.run.request(applicant))
        times["issue"].append(time.perf_counter() - started)
        started = time.perf_counter()
        script = await site.tsm.fetch_script(fetch_request(issued.name))
        times["fetch_script"].append(time.perf_counter() - started)
        receipt = deliver(site.run.personalised_sim(applicant), script)
        started = time.perf_counter()
        await site.tsm.report_receipt(receipt_request(issued.name, receipt))
        times["report_receipt"].append(time.perf_counter() - started)
    figures = [figure for call, seconds in times.items() for figure in latencies(f"{call}_{name}", seconds)]

    waiting = iter([site.run.request(applicant) for applicant in everybody[calls:]])

    async def caller(waiting: Iterator[IssueRequest] = waiting) -> None:
        for request in waiting:
            await site.issuer.issue(request)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    rate = calls / (time.perf_counter() - started)
    return [*figures, Figure(f"issue_rate_{name}_{CALLERS}_callers", rate, "issuances/s", "higher", calls)]


def latencies(figure: str, seconds: list[float]) -> tuple[Figure, Figure]:
    """p50 and p99 in milliseconds."""
    p50, p99 = statistics.median(seconds) * 1000, percentile(seconds, 0.99) * 1000
    return (
        Figure(f"{figure}_p50", p50, "ms", "lower", len(seconds)),
        Figure(f"{figure}_p99", p99, "ms", "lower", len(seconds)),
    )


def percentile(values: list[float], fraction: float) -> float:
    """The value that this fraction of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * fraction) - 1)]
