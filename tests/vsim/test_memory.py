"""The SIM's memory: what is answered is stored, in a file only its owner reads."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import FileMemory, State

from .host import Host, delivery_script
from .packages import P256, RSA, blank_sim, case, octets, personalisation

SELECT_PIN = ("00A4040C0AD392F000260100000001", "00A4020C020018")


def sim_in(file: Path) -> VirtualSim:
    return VirtualSim(FileMemory.create(file, State(personalisation(RSA), b"\x30\x00")))


def test_everything_survives_a_reload(tmp_path: Path) -> None:
    file = tmp_path / "sim.json"
    card = sim_in(file)
    code = case(RSA)["activation_code"].encode()
    set_pin = b"\x00\x24\x00\x80" + bytes([1 + len(code) + 4, len(code)]) + code + b"1234"
    script = [*delivery_script(card, octets(RSA, "package")), *map(bytes.fromhex, SELECT_PIN), set_pin]
    for apdu in script:
        assert card.transmit(apdu)[-2:].hex() == "9000"
        assert VirtualSim.load(file).state == card.state
    again = VirtualSim.load(file)
    for command in (*SELECT_PIN, "0020008004" + b"1234".hex(), "00A4020C020017"):
        assert again.transmit(bytes.fromhex(command)).hex() == "9000"
    info = "3031300d060960864801650304020105000420" + "11" * 32
    assert again.transmit(bytes.fromhex("802A008033" + info + "00"))[-2:].hex() == "9000"


def test_wrong_codes_are_counted_over_a_reload(tmp_path: Path) -> None:
    file = tmp_path / "sim.json"
    sim_in(file).install(octets(RSA, "package"))
    wrong = "002400800D08" + b"AAAAAAAA1234".hex()
    for tries in range(4, -1, -1):
        card = VirtualSim.load(file)
        answers = [card.transmit(bytes.fromhex(apdu)).hex() for apdu in (*SELECT_PIN, wrong)]
        assert answers == ["9000", "9000", f"63c{tries}"]


def test_counter_of_an_unfinished_handshake_survives(tmp_path: Path) -> None:
    file = tmp_path / "sim.json"
    card = sim_in(file)
    host = Host(card.transmit, card.state.sim)
    host.select()
    host.initialize_update()
    assert VirtualSim.load(file).state.sequence_counter == 1


def test_file_is_the_owners_alone_and_holds_no_pin(tmp_path: Path) -> None:
    file = tmp_path / "sim.json"
    card = sim_in(file)
    Host(card.transmit, card.state.sim).open()
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["sim.json"]  # noqa: PTH208  # names, in one word
    assert json.loads(file.read_text())["sequence_counter"] == 1


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "sim.json"
    file.write_text("precious")
    with pytest.raises(FileExistsError):
        sim_in(file)
    assert file.read_text() == "precious"


def test_state_that_cannot_be_written_is_not_answered(tmp_path: Path) -> None:
    file = tmp_path / "there" / "sim.json"
    file.parent.mkdir()
    card = sim_in(file)
    host = Host(card.transmit, card.state.sim)
    host.select()
    file.unlink()
    file.parent.rmdir()
    assert card.transmit(bytes.fromhex("8050000008010203040506070800")).hex() == "6581"
    assert card.state.sequence_counter == 0


def test_failed_replacement_leaves_no_second_file(tmp_path: Path) -> None:
    file = tmp_path / "sim.json"
    card = sim_in(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(OSError, match="directory"):
        card.install(octets(RSA, "package"))
    assert card.state.installed is None
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.replace("virtual-sim-1", "virtual-sim-0"),
        lambda s: s.replace('"package_counter"', '"packet_counter"'),
        lambda s: s.replace('"package_counter"', '"colour": 1, "package_counter"'),
        lambda s: s[:-2],
        lambda s: s.replace('"pin_tries": 3', '"pin_tries": "k"'),
        lambda _: "[]",
    ],
)
def test_file_of_another_kind_is_refused_without_quoting_it(tmp_path: Path, change: Callable[[str], str]) -> None:
    file = tmp_path / "sim.json"
    sim_in(file)
    file.write_text(change(file.read_text()))
    with pytest.raises(ValueError, match="not the state file of a virtual SIM") as refused:
        VirtualSim.load(file)
    assert personalisation(RSA).binding.k_sim.hex() not in str(refused.value)


def test_no_secret_shows_in_a_repr() -> None:
    card = blank_sim(P256)
    card.install(octets(P256, "package"))
    text = repr(card.state)
    for secret in (octets(P256, "pkcs8"), card.state.sim.binding.k_sim, card.state.sim.channel.k_mac):
        assert repr(secret) not in text
