"""Latency and rate of Issue, FetchScript and ReportReceipt over mutual TLS, on the demo's appliance and this machine.

One caller at a time for latency, then several at once for the rate. Prints a table and writes build/bench.json: a list
of {figure, value, unit, goal, direction, met, runs}; goal and met are null where a figure is only reported.
"""

import argparse
import asyncio
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from appliance.api.v1.issuance_pb2 import IssueRequest
from appliance.client import IssuerClient, OperatorClient, TsmClient, connect
from appliance.demo.command import DEFAULT_PROFILE, free_port, migrate, ready, running
from appliance.demo.run import DemoRun, applicants, deliver, fetch_request, receipt_request
from appliance.demo.setup import DemoSite, set_up
from appliance.domain.package import KeyType

SITE = Path("build/bench")
RESULTS = Path("build/bench.json")


def percentile(values: list[float], fraction: float) -> float:
    """The value that this fraction of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * fraction) - 1)]


class Figures:
    """Collects what build/bench.json gets."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, figure: str, value: float, unit: str, direction: str, runs: int) -> None:
        """One reported figure."""
        self.rows.append(
            {"figure": figure, "value": round(value, 3), "unit": unit, "goal": None, "direction": direction}
            | {"met": None, "runs": runs}
        )

    def latencies(self, figure: str, seconds: list[float]) -> None:
        """p50 and p99 in milliseconds."""
        self.add(f"{figure}_p50", statistics.median(seconds) * 1000, "ms", "lower", len(seconds))
        self.add(f"{figure}_p99", percentile(seconds, 0.99) * 1000, "ms", "lower", len(seconds))


async def measure(
    site: DemoSite, appliance: "subprocess.Popen[bytes]", count: int, callers: int, figures: Figures
) -> None:
    """All figures of one site; `count` calls of EC keys and a quarter of that of RSA keys."""
    async with (
        connect(site.target, *site.tls("operator")) as operator_channel,
        connect(site.target, *site.tls("issuer")) as issuer_channel,
        connect(site.target, *site.tls("tsm")) as tsm_channel,
    ):
        await ready(OperatorClient(operator_channel), site, appliance)
        issuer, tsm = IssuerClient(issuer_channel, timeout=120), TsmClient(tsm_channel)
        run = DemoRun(site, issuer, tsm)
        for key_type in KeyType:
            number = max(8, count // 4) if key_type is KeyType.RSA_2048 else count
            issue: list[float] = []
            fetch: list[float] = []
            receipt: list[float] = []
            everybody = applicants({key_type: number * 2})
            for applicant in everybody[:number]:
                started = time.perf_counter()
                issued = await issuer.issue(run.request(applicant))
                issue.append(time.perf_counter() - started)
                started = time.perf_counter()
                script = await tsm.fetch_script(fetch_request(issued.name))
                fetch.append(time.perf_counter() - started)
                data = deliver(run.personalised_sim(applicant), script)
                started = time.perf_counter()
                await tsm.report_receipt(receipt_request(issued.name, data))
                receipt.append(time.perf_counter() - started)
            figures.latencies(f"issue_{key_type.name.lower()}", issue)
            figures.latencies(f"fetch_script_{key_type.name.lower()}", fetch)
            figures.latencies(f"report_receipt_{key_type.name.lower()}", receipt)
            waiting = iter([run.request(applicant) for applicant in everybody[number:]])

            async def caller(waiting: Iterator[IssueRequest] = waiting) -> None:
                for request in waiting:
                    await issuer.issue(request)

            started = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(callers)))
            rate = number / (time.perf_counter() - started)
            figures.add(f"issue_rate_{key_type.name.lower()}_{callers}_callers", rate, "1/s", "higher", number)


def main() -> None:
    """Set up, start, measure, stop, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="calls of each EC key type (%(default)s)")
    parser.add_argument("--callers", type=int, default=8, help="callers at once for the rate (%(default)s)")
    arguments = parser.parse_args()
    site = set_up(SITE, DEFAULT_PROFILE, port=free_port())
    migrate(site)
    figures = Figures()
    with running(site) as appliance:
        asyncio.run(measure(site, appliance, arguments.count, arguments.callers, figures))
    table = Table(title=f"{platform.machine()}, {platform.python_version()}")
    for heading in ("figure", "value", "unit", "runs"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for row in figures.rows:
        table.add_row(str(row["figure"]), f"{row['value']}", str(row["unit"]), str(row["runs"]))
    Console().print(table)
    RESULTS.write_text(json.dumps(figures.rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
