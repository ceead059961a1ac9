"""What the figures were measured on."""

import os
import platform
import re
import ssl
from importlib.metadata import version
from pathlib import Path

from cryptography.hazmat.backends.openssl import backend

_CPUINFO = Path("/proc/cpuinfo")
_FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")


def described() -> str:
    """A few lines: processor, kernel, Python, OpenSSL, and how busy the machine is already."""
    cores, busy = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return "\n".join(
        (
            f"{_processor()}, {cores} of {os.cpu_count()} cores, {_frequency()}",
            f"{platform.system()} {platform.release()} {platform.machine()}, load of the last minute {busy:.2f}",
            f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}; cryptography {version('cryptography')} "
            f"has its own {backend.openssl_version_text()}",
        )
    )


def _processor() -> str:
    return _told("model name") or platform.processor() or "unknown processor"


def _frequency() -> str:
    """The highest, or where that is not told what the kernel says of now."""
    if _FREQUENCY.exists():
        return f"up to {int(_FREQUENCY.read_text('ascii')) / 1000:.0f} MHz"
    mhz = _told("cpu MHz")
    return f"{float(mhz):.0f} MHz" if mhz else "frequency unknown"


def _told(name: str) -> str:
    found = re.search(rf"^{name}\s*: (.*)$", _CPUINFO.read_text("utf-8"), flags=re.MULTILINE)
    return found[1].strip() if found else ""
