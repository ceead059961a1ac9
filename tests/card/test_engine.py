"""Scripts of the APDU engine in a real reader: scriptor plays them through pcscd into the virtual SIM."""

import re
from pathlib import Path

import pytest

from appliance.apdu import engine
from appliance.apdu.engine import Form, Order, Route
from appliance.apdu.scp03 import Mode
from appliance.domain.derivation import CHANNEL_ENC, CHANNEL_MAC
from appliance.domain.package import KeyType
from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import FileMemory, State
from tests.card.stack import CardStack
from tests.vsim.packages import KM_CHAN, RSA, octets, personalisation

HOST_CHALLENGE = bytes(range(16))
I_WITH_RESPONSE_PROTECTION = 0x70
SECURE_MESSAGING = 0x04


@pytest.mark.parametrize("level", [0x03, 0x33], ids=["03", "33"])
@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.name)
def test_scriptor_plays_a_script_of_the_engine_and_the_receipt_comes_back(
    tmp_path: Path, mode: Mode, level: int
) -> None:
    named = personalisation(RSA, channel_i=I_WITH_RESPONSE_PROTECTION | (mode is Mode.S16))
    FileMemory.create(tmp_path / "sim.json", State(named))
    k_enc, k_mac = (engine.kdf3(KM_CHAN, constant, named.iccid, 128) for constant in (CHANNEL_ENC, CHANNEL_MAC))
    route = Route(named.ssd_aid, named.applet_aid, named.channel.kvn, level, mode, KeyType.RSA_2048)
    host_challenge = HOST_CHALLENGE[:mode]
    order = Order(route, octets(RSA, "package"), host_challenge, 1, k_enc, k_mac, static=True)
    script = engine.render_one(order, Form.TEXT).decode()
    (tmp_path / "script.txt").write_text(script)
    with CardStack(tmp_path / "sim.json", tmp_path) as card:
        done = card.run("scriptor", "script.txt")
    assert done.returncode == 0, done.stderr
    answers = [bytes.fromhex(answer) for answer in re.findall(r"^< ([0-9A-F\s]+) :", done.stdout, re.MULTILINE)]
    commands = [bytes.fromhex(line) for line in script.splitlines()]
    assert len(answers) == len(commands), done.stdout
    assert all(answer.endswith(b"\x90\x00") for answer in answers), done.stdout
    installed = VirtualSim.load(tmp_path / "sim.json").state.installed
    assert installed is not None
    assert b"".join(answer[:-2] for answer in answers[-3:]) == installed.receipt
    wrapped = [at for at, command in enumerate(commands) if command[0] & SECURE_MESSAGING]
    keys = engine.derive_session_keys(
        k_enc, k_mac, host_challenge, engine.card_challenge(k_enc, 1, named.ssd_aid, mode)
    )
    plain = engine.unwrap(keys, level, mode, [commands[at] for at in wrapped], [answers[at] for at in wrapped[1:]])
    assert plain == [b"\x00\x90\x00" if at == wrapped[1] else b"\x90\x00" for at in wrapped[1:]]
