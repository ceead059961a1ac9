"""`appliance ledger export`: what is READY for one SIM issuer, as of one moment, and nothing else."""

import asyncio
import io
import re
import shutil
import uuid
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import event

from appliance.apdu.scp03 import kcv
from appliance.api.v1 import bureau_pb2 as pb
from appliance.bureau.content import lines
from appliance.bureau.export import Export
from appliance.bureau.records import read
from appliance.domain.keyset import Channel, KeySet, KeySetState, MasterKey, SimIssuer
from appliance.errors import ApplianceError, Reason
from appliance.ledger import Ledger, database
from appliance.ledger.command import main
from appliance.ledger.export import Scripts, export
from tests.bureau.samples import ROOT, keys, run
from tests.ledger.conftest import Sql
from tests.ledger.samples import DIGEST, ISSUER, TSM, Clock, answer, make_awaiting, make_ready, order
from tests.vsim.packages import KM_CHAN

NOW = datetime(2026, 7, 2, tzinfo=UTC)


def issuer(*kvns: int, name: str = "example-mno") -> SimIssuer:
    return SimIssuer(
        name,
        "D392F000260100000001",
        "A0000001515350534F",
        tuple(
            KeySet(
                kvn,
                KeySetState.OLD,
                MasterKey(f"bind-{kvn}", f"{kvn:06X}", "000000"),
                MasterKey(f"chan-{kvn}", f"{kvn + 128:06X}", "000000"),
                Channel(kvn=0x41, key_bits=256, i="71", security_level="33"),
            )
            for kvn in kvns
        ),
    )


def exported(
    url: str,
    path: Path,
    of: SimIssuer,
    scripts: Scripts = Scripts(),  # noqa: B008 - it cannot change
) -> tuple[pb.ExportHead, list[pb.ExportedPackage]]:
    engine = database.connect(url, read_only=True)
    with engine.connect() as connection:
        count = export(connection, of, scripts, path, NOW)
    engine.dispose()
    opened = Export.open(path)
    assert sum(shard.packages for shard in opened.shards(2)) == count
    records = read(io.BytesIO(path.read_bytes()), opened.body, opened.end)
    return opened.head, [pb.ExportedPackage.FromString(record.content) for record in records]


def refusal(url: str, path: Path, of: SimIssuer, scripts: Scripts = Scripts()) -> ApplianceError:  # noqa: B008 - likewise
    with pytest.raises(ApplianceError) as caught:
        exported(url, path, of, scripts)
    assert not path.exists()
    assert not list(path.parent.glob("*.partial"))
    return caught.value


async def test_what_is_ready_for_the_sim_issuer_is_exported(ledger: Ledger, url: str, sql: Sql, tmp_path: Path) -> None:
    ready = {}
    for number in range(12):
        wanted = replace(order(f"person-{number}", sim=number), kvn=(0x32, 0x30)[number % 2])
        reservation, made = await make_ready(ledger, wanted)
        ready[f"issuances/{reservation.record.id}"] = reservation.record, made.encode()
    await make_awaiting(ledger, order("awaits", sim=100))
    await ledger.reserve(ISSUER, order("reserved", sim=101), DIGEST)
    for number, end in enumerate((ledger.abandon, ledger.activate), 102):
        ended, _ = await make_ready(ledger, order(f"ended-{number}", sim=number))
        await end(TSM, str(uuid.uuid4()), DIGEST, ended.record.id, answer)
    await make_ready(ledger, order("other", sim=104))
    sql("UPDATE issuances SET sim_issuer = 'other-mno' WHERE person_id = 'other'")

    head, packages = exported(url, tmp_path / "export", issuer(0x30, 0x31, 0x32), Scripts(7, 3))
    assert [package.issuance for package in packages] == sorted(ready)
    for package in packages:
        record, content = ready[package.issuance]
        assert (package.package, package.iccid) == (content, record.iccid)
        assert (int(package.key_type), package.applet_aid) == (record.key_type, record.applet_aid)
        assert head.routes[package.route].kvn == record.kvn
        assert (package.sequence_counter, package.window) == (7, 3)
        assert not package.sessions
    assert (head.packages, head.session_keys, head.create_time.ToDatetime(UTC)) == (12, False, NOW)
    # Only key sets in use: the bureau need not have the keys of others.
    assert [(way.kvn, way.km_chan_kcv.hex()) for way in head.routes] == [(0x30, "0000b0"), (0x32, "0000b2")]
    for way in head.routes:
        assert way.sim_issuer == "simIssuers/example-mno"
        assert way.ssd_aid.hex().upper() == "A0000001515350534F"
        assert (way.channel_kvn, way.channel_key_bits, way.channel_i, way.security_level) == (0x41, 256, 0x71, 0x33)


async def test_packages_for_one_sim_share_no_counter(ledger: Ledger, url: str, tmp_path: Path) -> None:
    given_up, _ = await make_ready(ledger, order("given-up", sim=1))
    made = [await make_ready(ledger, order(f"person-{number}", sim=1)) for number in range(3)]
    await make_ready(ledger, order("other", sim=2))
    await ledger.abandon(ISSUER, str(uuid.uuid4()), DIGEST, given_up.record.id, answer)
    _, packages = exported(url, tmp_path / "export", issuer(0x30), Scripts(5, 3))
    counters = {package.issuance: package.sequence_counter for package in packages}
    # In the order of the packages' own counters: a SIM that has one takes no earlier one.
    assert [counters.pop(f"issuances/{reservation.record.id}") for reservation, _ in made] == [5, 8, 11]
    assert list(counters.values()) == [5]
    last = Scripts(0xFFFFFF - 8, 3)
    assert len(exported(url, tmp_path / "last", issuer(0x30), last)[1]) == 4
    assert refusal(url, tmp_path / "beyond", issuer(0x30), replace(last, counter=0xFFFFFF - 7)).field == "--counter"


async def test_an_export_beside_a_writing_front_is_of_one_moment(ledger: Ledger, url: str, tmp_path: Path) -> None:
    for number in range(30):
        await make_ready(ledger, order(f"before-{number}", sim=number))
    stop = asyncio.Event()

    async def go_on() -> None:
        number = 0
        while not stop.is_set():
            reservation, _ = await make_ready(ledger, order(f"during-{number}", sim=1000 + number))
            await ledger.abandon(ISSUER, str(uuid.uuid4()), DIGEST, reservation.record.id, answer)
            number += 1

    writing = asyncio.create_task(go_on())
    for number in range(5):
        head, packages = await asyncio.to_thread(exported, url, tmp_path / f"export-{number}", issuer(0x30))
        assert head.packages == len(packages) >= 30
    stop.set()
    await writing


async def test_rows_come_in_order_and_are_never_sorted_in_a_file(ledger: Ledger, url: str, tmp_path: Path) -> None:
    await make_ready(ledger, order())
    engine = database.connect(url, read_only=True)
    asked = []
    event.listen(engine, "before_cursor_execute", lambda *told: asked.append(told[2:4]))
    with engine.connect() as connection:
        export(connection, issuer(0x30), Scripts(), tmp_path / "export", NOW)
        for statement, parameters in [one for one in asked if "ORDER BY" in one[0]]:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            assert "USING INDEX" in str(plan)
            assert "TEMP B-TREE" not in str(plan)
    engine.dispose()
    assert len(asked) > 1


async def test_what_cannot_be_exported_is_told_and_leaves_nothing(
    ledger: Ledger, url: str, sql: Sql, tmp_path: Path
) -> None:
    path = tmp_path / "export"
    assert refusal(url, path, issuer(0x30)).reason is Reason.ISSUANCE_NOT_READY
    await make_ready(ledger, order("first", sim=1))
    await make_ready(ledger, order("second", sim=2))
    assert refusal(url, path, issuer(0x31)).reason is Reason.KEY_SET_UNKNOWN
    for scripts, field in (
        (Scripts(0), "--counter"),
        (Scripts(0xFFFFFF, 2), "--counter"),
        (Scripts(1, 0), "--window"),
        (Scripts(1, 1001), "--window"),
    ):
        assert refusal(url, path, issuer(0x30), scripts).field == field
    assert len(exported(url, path, issuer(0x30), Scripts(0xFFFFFF))[1]) == 2
    path.unlink()
    sql("UPDATE issuances SET package_mac = zeroblob(16) WHERE person_id = 'second'")
    assert refusal(url, path, issuer(0x30)).reason is Reason.SEAL_REJECTED


@pytest.fixture
def settings(tmp_path: Path, url: str) -> Path:
    """The exemplary settings, for this ledger and SIMs of the samples."""
    copy = shutil.copytree(ROOT / "hsm_config", tmp_path / "settings")
    file = copy / "sim_issuers" / "example-mno.toml"
    text = file.read_text().replace("kvn = 0x02 ", "kvn = 0x30 ", 1).replace('"41D2C8"', f'"{kcv(KM_CHAN).hex()}"')
    file.write_text(text)
    main_file = copy / "appliance.toml"
    main_file.write_text(re.sub(r'ledger = "[^"]+"', f'ledger = "{url}"', main_file.read_text()))
    return main_file


async def test_an_export_becomes_scripts(settings: Path, url: str, clock: Clock, tmp_path: Path) -> None:
    with closing(Ledger.open(url, clock=clock)) as ledger:
        ready = [await make_ready(ledger, order(f"person-{number}", sim=number)) for number in range(3)]
    names = sorted(reservation.record.id for reservation, _ in ready)
    path = tmp_path / "export"
    arguments = ["export", "--config", str(settings), "--sim-issuer", "example-mno", str(path), "--window", "2"]
    assert main(arguments) == 0
    with pytest.raises(ApplianceError, match="is there already"):
        main(arguments)
    done = run("render", path, tmp_path / "scripts", "--keys-fd", 0, "--jobs", 1, given=keys())
    assert done.returncode == 0, done.stderr
    told = [line.split()[0] for line in lines(tmp_path / "scripts/000000.scripts")]
    assert told == [f"issuances/{name}" for name in names for _ in range(2)]


def test_a_sim_issuer_that_is_not_declared_is_told(settings: Path, tmp_path: Path) -> None:
    with pytest.raises(ApplianceError, match="Choose among example-mno") as caught:
        main(["export", "--config", str(settings), "--sim-issuer", "other", str(tmp_path / "export")])
    assert caught.value.reason is Reason.SIM_ISSUER_UNKNOWN
