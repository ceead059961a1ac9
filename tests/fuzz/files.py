"""Targets that are files: settings that a person has written, and the memory of a virtual SIM."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance import config
from appliance.errors import Reason
from appliance.vsim.memory import FileMemory, State
from tests.fuzz.target import Run, Target, refused_with
from tests.vsim.packages import P256, personalisation

HSM_CONFIG = Path(__file__).parents[2] / "hsm_config"
FILES = ("appliance.toml", "sim_issuers/example-mno.toml", "profiles/jpki-user-authentication.toml")
BETWEEN = b"\n#----\n"


@contextmanager
def open_settings() -> Iterator[Run]:
    """An input has the files, with a line between them."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for file in FILES:
            (directory / file).parent.mkdir(exist_ok=True)

        def run(data: bytes) -> None:
            for file, text in zip(FILES, [*data.split(BETWEEN), b"", b""], strict=False):
                (directory / file).write_bytes(text)
            with refused_with(Reason.SETTINGS_INVALID, Reason.DEMO_IN_PRODUCTION):
                settings = config.load(directory / FILES[0])
                assert settings.front.profile in settings.profiles

        yield run


def settings() -> Iterator[bytes]:
    texts = [_bare((HSM_CONFIG / file).read_text(encoding="utf-8")) for file in FILES]
    yield BETWEEN.join(texts)


def _bare(text: str) -> bytes:
    """Without comments and empty lines, so that mutations meet what is read."""
    lines = (line.partition(" #")[0].rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("#")).encode()


@contextmanager
def open_memory() -> Iterator[Run]:
    """A state file is right, or is refused without a word of what stands in it."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "sim.json"

        def run(data: bytes) -> None:
            path.write_bytes(data)
            try:
                state = FileMemory(path).state
            except ValueError as refusal:
                assert str(refusal).startswith(f"{path}: not the state file")
                return
            path.unlink()
            assert FileMemory.create(path, state).state == state

        yield run


def memories() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "sim.json"
        FileMemory.create(path, State(personalisation(P256)))
        yield path.read_bytes()


SETTINGS = Target(open_settings, settings, 5000)
MEMORY = Target(open_memory, memories, 3000)
