"""Session keys from the HSM: orders per second of one vault's engine, on a throwaway SoftHSM token."""

import os
import tempfile
import time
from itertools import cycle
from pathlib import Path
from unittest.mock import patch

import pkcs11

from appliance.hsm.orders import ChannelOrder
from tests.hsm.site import ICCID, ISSUER, MODULE, OTHER_ICCID, build, use

WARM_UP = 100
CLOCK_EVERY = 20


def measure(seconds: float) -> float:
    """Orders per second, as FetchScript gives them (S8, AES-128 keys), asked for one after the other."""
    with tempfile.TemporaryDirectory() as directory, patch.dict(os.environ):
        use(Path(directory), os.environ.__setitem__)
        try:
            with build(Path(directory)).engine(profiles={}) as engine:
                sims = cycle((ICCID, OTHER_ICCID))
                orders = (
                    ChannelOrder(ISSUER, 1, sim, counter % 0xFFFFFF + 1, os.urandom(8))
                    for counter, sim in enumerate(sims)
                )
                for _ in range(WARM_UP):
                    engine.open_channel(next(orders))
                made, started = 0, time.perf_counter()
                while (spent := time.perf_counter() - started) < seconds:
                    for _ in range(CLOCK_EVERY):
                        engine.open_channel(next(orders))
                    made += CLOCK_EVERY
                return made / spent
        finally:
            pkcs11.lib(MODULE).finalize()


if __name__ == "__main__":
    print(f"{measure(3):.0f} orders per second")
