"""A token behind the shim with the engine on it, and what may be left of an order: nothing."""

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pkcs11

from appliance.hsm import cryptoki
from appliance.hsm.engine import Engine
from tests.foreign_ca import ForeignCa
from tests.hsm.site import MODULE, Calls, Site, build, external_profile, profile, use
from tests.shim import Call, Shim

INTERNAL, EXTERNAL = "p256-ca", "external"
CA: Final = ForeignCa()
ENDING: Final = {"C_CloseSession", "C_CloseAllSessions", "C_Finalize"}
"""What destroys every session object: one session is all that there is."""


class Bench:
    """One engine in this process.

    Args:
        site: whose module is the shim's.
    """

    def __init__(self, site: Site, shim: Shim) -> None:
        self.site, self.shim = site, shim
        self.engine: Engine | None = None
        self.samples: dict[str, object] = {}
        self.unraisable: list[str] = []
        """What destructors complained of, since it was last emptied."""

    def start(self) -> Engine:
        """Starts the engine."""
        profiles = [(profile(INTERNAL), self.site.authorities[INTERNAL]), (external_profile(EXTERNAL), CA.der)]
        self.engine = Engine.start(
            self.site.module,
            (self.site.issuer(),),
            profiles,
            self.site.pin,
            clock=lambda: datetime.now(UTC),
            stamp=Calls(),
        )
        return self.engine

    def ready(self) -> Engine:
        """The engine, in an open session."""
        return self.engine or self.start()

    def forget(self) -> None:
        """As if the process had ended: no engine, and a module that is not initialised."""
        self.engine = None
        with suppress(pkcs11.PKCS11Error):  # what it takes the module for need not be what it is
            pkcs11.lib(self.site.module.path).finalize()
        cryptoki.functions(self.site.module.path).finalize(None)

    def resources(self) -> Mapping[str, int]:
        """What may not grow: open descriptors of this process, and files and objects of the token."""
        with self.site.backstage() as session:
            objects = len(list(session.get_objects()))
        files = sum(1 for _ in (self.site.directory / "tokens").rglob("*"))
        return {"descriptors": len(os.listdir("/proc/self/fd")), "objects": objects, "files": files}  # noqa: PTH208 (a count)


def survivors(calls: list[Call]) -> set[int]:
    """Session objects that these calls made and neither destroyed nor ended with their session."""
    alive: set[int] = set()
    for call in calls:
        if call.real != 0:
            continue
        if call.function in ENDING:
            alive.clear()
        alive |= set(call.made.values())
        alive -= {call.objects["object"]} if call.function == "C_DestroyObject" else set()
    return alive


@contextmanager
def bench(directory: Path, module: Path) -> Iterator[Bench]:
    """A new token in this directory, and an engine on it through this module of tests/shim."""
    with _environment() as environment:
        use(directory, environment.__setitem__)
        site = build(directory)
        pkcs11.lib(MODULE).finalize()
        shim = Shim(directory / "shim")
        environment.update(shim.environment(MODULE))
        made = Bench(dataclasses.replace(site, module=dataclasses.replace(site.module, path=str(module))), shim)
        hook, sys.unraisablehook = (
            sys.unraisablehook,
            lambda unraised: made.unraisable.append(type(unraised.exc_value).__name__),
        )
        try:
            yield made
        finally:
            sys.unraisablehook = hook
            made.forget()


@contextmanager
def _environment() -> Iterator[Any]:
    before = dict(os.environ)
    try:
        yield os.environ
    finally:
        os.environ.clear()
        os.environ.update(before)
