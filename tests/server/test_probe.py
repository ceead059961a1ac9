"""`appliance health` beside a running front and vaults."""

import asyncio
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config import Settings
from appliance.errors import ApplianceError
from appliance.server import probe

from .fake_vault import FakeVault
from .site import serving, until_ready, with_front
from .test_main import process, write_settings


@pytest.fixture
def settings(settings: Settings, sockets: Path) -> Settings:
    return with_front(settings, health_socket=sockets / "front.sock")


@pytest.fixture
def config(settings: Settings, tmp_path: Path) -> Iterator[Path]:
    path = write_settings(settings, tmp_path)
    text = path.read_text("utf-8").replace("[front]\n", f'[front]\nhealth_socket = "{settings.front.health_socket}"\n')
    path.write_text(text, "utf-8")
    yield path


async def health(part: str, config: Path) -> int:
    return await asyncio.to_thread(probe.main, [part, "--config", str(config)])


async def test_the_front_is_healthy_while_an_issue_call_would_be_served(
    settings: Settings, config: Path, sockets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await health("front", config) == 1
    assert f"may this user reach {sockets}/front.sock?" in capsys.readouterr().out
    async with serving(settings) as front:
        assert await health("front", config) == 1
        assert "no vault that serves or no ledger" in capsys.readouterr().out
        async with FakeVault(sockets):
            await until_ready(front)
            assert await health("front", config) == 0
            assert capsys.readouterr().out.splitlines()[-1] == "front: serves"


async def test_the_vaults_are_healthy_while_one_of_them_answers(
    config: Path, sockets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await health("vaults", config) == 1
    assert capsys.readouterr().out == "vaults: 0 of 1 serve\n"
    (sockets / "v1-7.sock").touch()  # of one that has died
    assert await health("vaults", config) == 1
    assert capsys.readouterr().out == "vaults: 0 of 1 serve\n"
    async with FakeVault(sockets, "v0-5"):
        assert await health("vaults", config) == 0
    assert capsys.readouterr().out == "vaults: 1 of 1 serve (v0-5)\n"


async def test_a_front_without_a_health_socket_is_told_how_to_get_one(config: Path) -> None:
    config.write_text(
        "".join(line for line in config.read_text("utf-8").splitlines(True) if "health_socket =" not in line)
    )
    with pytest.raises(ApplianceError) as caught:
        await health("front", config)
    assert caught.value.field == "appliance.toml: front.health_socket"


async def test_a_health_socket_that_cannot_be_is_refused(settings: Settings, sockets: Path) -> None:
    with pytest.raises(ApplianceError) as caught:
        async with serving(with_front(settings, health_socket=sockets / ("x" * 107))):
            pass
    assert caught.value.field == "appliance.toml: front.health_socket"


async def test_the_health_socket_is_for_the_fronts_user_alone(config: Path, sockets: Path, tmp_path: Path) -> None:
    async with process(config, tmp_path / "log") as front:
        await front.line("front serves")
        assert stat.S_IMODE((sockets / "front.sock").stat().st_mode) == 0o700
