"""The table of targets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.fuzz import bureau, calls, certificates, channel, engine, files, formats, orders, played, request, sim
from tests.fuzz.target import Target

TARGETS: Final[Mapping[str, Target]] = {
    "tlv": formats.TLV,
    "package": formats.PACKAGE,
    "receipt": formats.RECEIPT,
    "opening": sim.OPENING,
    "sim": sim.SIM,
    "sim-memory": files.MEMORY,
    "channel": channel.CHANNEL,
    "delivery": channel.DELIVERY,
    "engine": engine.ENGINE,
    "played": played.PLAYED,
    "export": bureau.EXPORT,
    "bureau-keys": bureau.KEYS,
    "script-text": channel.SCRIPT_TEXT,
    "request": request.REQUEST,
    "calls": calls.CALLS,
    "orders": orders.ORDERS,
    "settings": files.SETTINGS,
    "profile": certificates.PROFILES,
    "ca-certificate": certificates.CA,
    "lints": certificates.LINTS,
    "submission": certificates.SUBMISSION,
}
"""By name: of its command, and of its directory in regressions/ and build/fuzz/."""

REGRESSIONS: Final = Path(__file__).parent / "regressions"


def regressions(name: str) -> list[Path]:
    """Inputs that were findings once."""
    return sorted((REGRESSIONS / name).glob("*"))
