"""What stands in a shard: the readable reference's scripts, byte for byte, and what a SIM does with them."""

import hashlib
import io
import json
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from appliance.apdu import expanded, scp03, script
from appliance.apdu.scp03 import Mode, kdf3
from appliance.api.v1 import bureau_pb2 as pb
from appliance.api.v1 import issuance_pb2
from appliance.bureau.export import Export
from appliance.bureau.keys import ChannelKeys
from appliance.bureau.orders import require_keys
from appliance.bureau.records import read
from appliance.bureau.rendering import BATCH, Renderer
from appliance.bureau.shards import Directory, Job
from appliance.domain.derivation import CHANNEL_ENC, CHANNEL_MAC
from appliance.domain.package import KeyType, SimPackage
from appliance.domain.sim import Iccid
from appliance.errors import ApplianceError, Reason
from appliance.vsim import script as vsim_script
from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import Memory, State
from tests.bureau.samples import KVN, SSD_AID, by_hand, export, iccid, package, route, with_session
from tests.vsim.packages import KM_CHAN, P256, P384, RSA, octets, personalisation

CODINGS = {
    "expanded-definite": expanded.Coding.DEFINITE,
    "expanded-indefinite": expanded.Coding.INDEFINITE,
}


def static() -> ChannelKeys:
    return ChannelKeys({("example-mno", KVN): bytearray(KM_CHAN)}, {})


class Made:
    """Shards of an export, as `directory` has them, and the notes on them."""

    def __init__(self, source: Path, form: str = "commands", window: int = 0, size: int = 1000) -> None:
        opened = Export.open(source)
        self.told: list[int] = []
        self.form = form
        self.directory = Directory(
            source.parent / f"{form}-{window}-{size}", Job(opened.digest.hex(), form, window, size)
        )
        shards = opened.shards(size)
        with self.directory.claimed():
            renderer = Renderer(
                opened, self.directory, None if opened.head.session_keys else static(), self.told.append
            )
            for shard in shards:
                renderer.render(shard)
            self.manifest = self.directory.finish(len(shards), {})

    @property
    def files(self) -> list[bytes]:
        return [(self.directory.path / shard["file"]).read_bytes() for shard in self.manifest["shards"]]

    @property
    def scripts(self) -> list[pb.RenderedScript]:
        return [
            pb.RenderedScript.FromString(record.content)
            for file in self.files
            for record in read(io.BytesIO(file), 0, len(file))
        ]

    @property
    def failures(self) -> list[dict[str, Any]]:
        file = self.directory.path / "failures.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def texts(self) -> dict[str, str]:
        found = {}
        for file in self.files:
            with tarfile.open(fileobj=io.BytesIO(file)) as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    assert content is not None
                    found[member.name] = content.read().decode("ascii")
        return found


def reference(made: pb.ExportedPackage, way: pb.ExportRoute, counter: int, host_challenge: bytes) -> script.Script:
    """What the readable Python makes of a package."""
    kdd, mode = Iccid(made.iccid).ef_coding, Mode(16 if way.channel_i & 1 else 8)
    k_enc, k_mac = (kdf3(KM_CHAN, constant, kdd, way.channel_key_bits) for constant in (CHANNEL_ENC, CHANNEL_MAC))
    challenge = scp03.card_challenge(k_enc, counter, way.ssd_aid, mode)
    keys = scp03.derive_session_keys(k_enc, k_mac, host_challenge, challenge)
    channel = script.Channel(way.ssd_aid, way.channel_kvn, keys, host_challenge, challenge, way.security_level, mode)
    return script.render(made.package, KeyType(made.key_type), made.applet_aid, channel)


def commands_of(rendered: pb.RenderedScript) -> list[tuple[bytes, tuple[int, ...], str]]:
    return [
        (command.apdu, tuple(command.expected_status_words), command.purpose) for command in rendered.script.commands
    ]


@pytest.mark.parametrize("with_sessions", [False, True], ids=["static keys", "session keys"])
@pytest.mark.parametrize(("level", "i"), [(0x03, 0x70), (0x33, 0x71), (0x01, 0x10), (0x11, 0x31)])
@pytest.mark.parametrize("bits", [128, 256])
def test_commands_are_the_references(tmp_path: Path, level: int, i: int, bits: int, with_sessions: bool) -> None:
    way = route(level, i, bits)
    given = [package(number, counter=7 + number) for number in range(2)]
    if with_sessions:
        given = [with_session(one, way) for one in given]
    made = Made(export(tmp_path / "export", given, way=way))
    for number, (one, rendered) in enumerate(zip(given, made.scripts, strict=True)):
        expected = reference(one, way, 7 + number, rendered.host_challenge)
        assert commands_of(rendered) == [
            (command.apdu, command.expected_sw, command.purpose) for command in expected.commands
        ]
        assert (rendered.issuance, rendered.script.iccid) == (one.issuance, one.iccid)
        assert rendered.script.sequence_counter == 7 + number
        if with_sessions:
            assert rendered.host_challenge == one.sessions[0].host_challenge
    assert made.failures == []


@pytest.mark.parametrize("form", CODINGS)
def test_templates_are_the_references(tmp_path: Path, form: str) -> None:
    given = [package(number) for number in range(2)]
    made = Made(export(tmp_path / "export", given), form)
    for one, rendered in zip(given, made.scripts, strict=True):
        expected = reference(one, route(), 1, rendered.host_challenge)
        assert [(part.application_aid, part.template) for part in rendered.script.remote_scripts] == [
            (part.aid, expanded.command_template((command.apdu for command in part.addressed), CODINGS[form]))
            for part in expected.parts
        ]
        assert not rendered.script.commands


def test_texts_are_the_references_in_archives_that_tar_reads(tmp_path: Path) -> None:
    given = [package(number) for number in range(3)]
    made = Made(export(tmp_path / "export", given), "text", window=2, size=2)
    assert len(made.files) == 2
    assert len(made.texts) == 6
    for (name, text), (number, counter) in zip(
        made.texts.items(), [(number, counter) for number in range(3) for counter in (1, 2)], strict=True
    ):
        assert name == f"{number // 2:06}/{iccid(number).digits}-{counter:08}-{number:032x}.txt"
        challenge = bytes.fromhex(text.splitlines()[1])[5:13]
        assert text == reference(given[number], route(), counter, challenge).text()


@pytest.mark.parametrize("index", [P256, RSA, P384])
@pytest.mark.parametrize(("form", "level", "i"), [("text", 0x03, 0x70), ("commands", 0x33, 0x71)])
def test_scripts_play_in_the_virtual_sim(tmp_path: Path, index: int, form: str, level: int, i: int) -> None:
    content = octets(index, "package")
    header = SimPackage.decode(content).header
    way = route(level, i)
    way.channel_kvn = way.kvn = header.kvn
    given = package(0, content=content)
    given.iccid = Iccid.from_ef_coding(header.iccid).digits
    given.key_type = issuance_pb2.KeyType.ValueType(header.key_type)
    way.sim_issuer = "simIssuers/example-mno"
    made_of = export(tmp_path / "export", [given], way=way)
    opened = Export.open(made_of)
    keys = ChannelKeys({("example-mno", header.kvn): bytearray(KM_CHAN)}, {})
    directory = Directory(tmp_path / "d", Job(opened.digest.hex(), form, 2, 1))
    with directory.claimed():
        (shard,) = opened.shards(1)
        Renderer(opened, directory, keys, lambda _: None).render(shard)
        directory.finish(1, {})
    file = directory.file(0).read_bytes()
    if form == "text":
        with tarfile.open(fileobj=io.BytesIO(file)) as archive:
            texts = [archive.extractfile(member).read().decode() for member in archive]  # type: ignore[union-attr] # files
        scripts = [[step.apdu for step in vsim_script.read(text.splitlines())] for text in texts]
    else:
        records = read(io.BytesIO(file), 0, len(file))
        scripts = [
            [command.apdu for command in pb.RenderedScript.FromString(record.content).script.commands]
            for record in records
        ]
    sim = VirtualSim(Memory(State(personalisation(index, channel_i=i))))
    for commands in scripts:  # the window: counters 1 and 2; a package that is there already changes nothing
        for apdu in commands:
            assert apdu is not None
            assert sim.transmit(apdu)[-2:] == b"\x90\x00"
    assert sim.state.sequence_counter == 2
    assert sim.state.installed is not None
    assert sim.state.installed.certificate == SimPackage.decode(content).certificate


def test_a_window_has_a_script_for_each_counter_each_with_a_challenge_of_its_own(tmp_path: Path) -> None:
    given = [package(number, counter=5, window=3) for number in range(2)]
    source = export(tmp_path / "export", given)
    found = Made(source).scripts
    assert [one.script.sequence_counter for one in found] == [5, 6, 7] * 2
    longer = Made(source, window=4).scripts
    assert [one.script.sequence_counter for one in longer] == [5, 6, 7, 8] * 2
    challenges = {one.host_challenge for one in (*found, *longer)}
    assert len(challenges) == 14
    for one in longer:
        made = given[int(one.issuance[-1])]
        expected = reference(made, route(), one.script.sequence_counter, one.host_challenge)
        assert [command.apdu for command in one.script.commands] == [command.apdu for command in expected.commands]


def test_more_scripts_than_a_batch_stand_in_their_order(tmp_path: Path) -> None:
    given = [package(number, window=BATCH // 2 + 1, content=b"") for number in range(3)]
    made = Made(export(tmp_path / "export", given))
    assert [(one.issuance, one.script.sequence_counter) for one in made.scripts] == [
        (one.issuance, counter) for one in given for counter in range(1, BATCH // 2 + 2)
    ]
    assert sum(made.told) == 3


def test_the_manifest_tells_what_is_there(tmp_path: Path) -> None:
    made = Made(export(tmp_path / "export", [package(number) for number in range(5)]), window=2, size=2)
    assert made.manifest["job"] == asdict(made.directory.job)
    assert [shard["packages"] for shard in made.manifest["shards"]] == [2, 2, 1]
    assert [shard["scripts"] for shard in made.manifest["shards"]] == [4, 4, 2]
    for shard, file in zip(made.manifest["shards"], made.files, strict=True):
        assert shard["bytes"] == len(file)
        assert shard["sha256"] == hashlib.sha256(file).hexdigest()
    assert (made.manifest["packages"], made.manifest["scripts"], made.manifest["failed"]) == (5, 10, 0)
    names = {path.name for path in made.directory.path.iterdir()}
    assert names == {"manifest.json", *(shard["file"] for shard in made.manifest["shards"])}
    assert made.directory.manifest() == made.manifest


def broken(field: str, value: object) -> pb.ExportedPackage:
    made = package(1)
    setattr(made, field, value)
    return made


@pytest.mark.parametrize(
    ("wrong", "field", "reason"),
    [
        (broken("issuance", f"issuances/{1:032x}A"), "issuance", "NAME_INVALID"),
        (broken("route", 1), "route", "EXPORT_INVALID"),
        (broken("iccid", "12345"), "iccid", "EXPORT_INVALID"),
        (broken("iccid", "898130900000000000\u0661"), "iccid", "EXPORT_INVALID"),
        (broken("iccid", iccid(2).digits), "package", "EXPORT_INVALID"),
        (broken("applet_aid", SSD_AID), "package", "EXPORT_INVALID"),
        (broken("key_type", 2), "package", "EXPORT_INVALID"),
        (broken("key_type", 9), "key_type", "EXPORT_INVALID"),
        (broken("package", b""), "package", "EXPORT_INVALID"),
        (broken("sequence_counter", 0), "sequence_counter", "EXPORT_INVALID"),
        (broken("sequence_counter", 0x1000000), "sequence_counter", "EXPORT_INVALID"),
        (broken("window", 1001), "sequence_counter", "EXPORT_INVALID"),
        (with_session(package(1), route()), "sessions", "EXPORT_INVALID"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_one_package_is_told_and_the_others_are_made(
    tmp_path: Path, wrong: pb.ExportedPackage, field: str, reason: str
) -> None:
    made = Made(by_hand(tmp_path / "export", [package(0), wrong, package(2)], 3))
    assert [one.issuance for one in made.scripts] == [package(number).issuance for number in (0, 2)]
    (failure,) = made.failures
    assert failure["record"] == 2
    assert failure["issuance"] == wrong.issuance
    assert (failure["field"], failure["reason"]) == (field, reason)
    assert "render that into a new directory" in failure["hint"]
    assert made.manifest["failed"] == 1


def damaged(made: pb.ExportedPackage, **fields: object) -> pb.ExportedPackage:
    for name, value in fields.items():
        setattr(made.sessions[0], name, value)
    return made


@pytest.mark.parametrize(
    "fields",
    [
        {"s_enc": bytes(24), "s_mac": bytes(24)},  # keys of a length that there is, but not this key set's
        {"s_enc": bytes(17)},
        {"s_mac": b""},
        {"host_challenge": bytes(7)},
        {"card_challenge": bytes(16)},
        {"sequence_counter": 0},
    ],
    ids=lambda fields: " ".join(fields),
)
def test_a_session_that_cannot_be_is_told_and_the_others_are_made(tmp_path: Path, fields: dict[str, object]) -> None:
    way = route()
    given = [with_session(package(number), way) for number in range(3)]
    damaged(given[1], **fields)
    made = Made(export(tmp_path / "export", given))
    assert [one.issuance for one in made.scripts] == [given[0].issuance, given[2].issuance]
    (failure,) = made.failures
    assert (failure["record"], failure["issuance"]) == (2, given[1].issuance)
    assert given[1].sessions[0].s_enc.hex() not in json.dumps(failure)


@pytest.mark.parametrize("counters", [(1, 1), (2, 1), (1, 3, 2)])
def test_sessions_whose_counters_do_not_ascend_are_refused(tmp_path: Path, counters: tuple[int, ...]) -> None:
    made = package(1)
    for counter in counters:
        made.sequence_counter = counter
        with_session(made, route())
    rendered = Made(export(tmp_path / "export", [with_session(package(0), route()), made]))
    assert [one.issuance for one in rendered.scripts] == [package(0).issuance]
    (failure,) = rendered.failures
    assert failure["field"] == f"sessions[{len(counters) - 1}].sequence_counter"
    assert "ascending" in failure["hint"]


@pytest.mark.parametrize("change", ["another name", "a record less", "cut off"])
def test_what_was_not_checked_is_not_rendered(tmp_path: Path, change: str) -> None:
    source = export(tmp_path / "export", [package(number) for number in range(4)])
    opened = Export.open(source)
    _, shard = opened.shards(2)
    sound, last = source.read_bytes(), [record.offset for record in opened.records()][-1]
    changed = {
        "another name": sound.replace(package(3).issuance.encode(), package(9).issuance.encode()),
        "a record less": sound[:last],
        "cut off": sound[: last + 9],
    }
    directory = Directory(tmp_path / "d", Job("ab" * 32, "commands", 0, 2))
    with directory.claimed():
        renderer = Renderer(opened, directory, static(), lambda _: None)
        source.write_bytes(changed[change])
        with pytest.raises(ApplianceError) as caught:
            renderer.render(shard)
        assert caught.value.reason is Reason.EXPORT_INVALID
        assert change == "cut off" or "changed during the run" in caught.value.detail
        assert not directory.finished(1)
        source.write_bytes(sound)
        renderer.render(shard)
        assert directory.finished(1)


def lines(*numbers: int, bits: int = 128) -> ChannelKeys:
    """Keys of these SIMs, and no master."""
    return ChannelKeys({}, {iccid(one).ef_coding: (bytearray(bits // 8), bytearray(bits // 8)) for one in numbers})


def test_sims_without_keys_are_told_before_anything_is_made(tmp_path: Path) -> None:
    other = package(3)
    other.iccid = iccid(8).digits  # refused by itself: nobody need have keys for it
    source = Export.open(by_hand(tmp_path / "export", [package(0), package(1), package(2), other], 4))
    require_keys(source, lines(0, 1, 2))
    require_keys(source, ChannelKeys(static().masters, lines(1).sims))
    for keys, first, count, hint in (
        (lines(0), 1, 2, "Add its line"),
        (lines(0, 1, 2, bits=256), 0, 3, "Correct the SIM's line"),
        (ChannelKeys(static().masters, lines(2, bits=192).sims), 2, 1, "Correct the SIM's line"),
    ):
        with pytest.raises(ApplianceError) as caught:
            require_keys(source, keys)
        assert (caught.value.reason, caught.value.field) == (Reason.FIELD_INVALID, "--keys-fd")
        assert f"SIM {iccid(first).digits}, record {first + 1}:" in caught.value.detail
        assert f"{count} of 4 packages" in caught.value.detail
        assert hint in caught.value.hint
