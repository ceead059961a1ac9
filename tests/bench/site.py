"""The demo's appliance, set up anew and serving, and a client of it in each role."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from appliance.client import IssuerClient, OperatorClient, TsmClient, connect
from appliance.demo.command import DEFAULT_PROFILE, free_port, migrate, ready, running
from appliance.demo.run import DemoRun
from appliance.demo.setup import set_up

SITE = Path("build/bench/site")
_TIMEOUT = 120.0
"""Seconds for a call: RSA keys of many callers wait for each other."""


class Served(NamedTuple):
    """Who calls it, and the demo's applicants."""

    issuer: IssuerClient
    tsm: TsmClient
    run: DemoRun


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[Served]:
    """An appliance with an empty ledger, stopped afterwards."""
    SITE.parent.mkdir(parents=True, exist_ok=True)
    site = set_up(SITE, DEFAULT_PROFILE, port=free_port())
    migrate(site)
    with running(site) as appliance:
        async with (
            connect(site.target, *site.tls("operator")) as operator,
            connect(site.target, *site.tls("issuer")) as issuer,
            connect(site.target, *site.tls("tsm")) as tsm,
        ):
            await ready(OperatorClient(operator), site, appliance)
            clients = IssuerClient(issuer, timeout=_TIMEOUT), TsmClient(tsm, timeout=_TIMEOUT)
            yield Served(*clients, DemoRun(site, *clients))
