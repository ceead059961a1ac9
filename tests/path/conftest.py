"""Sites for the tests of this folder: one demo is set up in each worker, and every site is a copy of it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .site import Site, set_up

MakeSite = Callable[..., Site]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("d") / "demo"
    set_up(directory)
    return directory


@pytest.fixture(scope="module")
def make_site(demo: Path, shim_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeSite]:
    """Makes sites; whatever of them still runs after the module's tests is ended."""
    with ExitStack() as stack:

        def make(**settings: object) -> Site:
            # Not tmp_path: a socket's path is short.
            site = Site(demo, tmp_path_factory.mktemp("s") / "s", shim_module, **settings)  # type: ignore[arg-type]  # TOML
            stack.callback(site.end)
            return site

        yield make
