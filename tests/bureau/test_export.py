"""Export files: written whole or not at all, and refused when a single byte is not as it was written."""

import errno
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.api.v1 import bureau_pb2 as pb
from appliance.bureau.export import Export, write
from appliance.errors import ApplianceError, Reason
from tests.bureau.samples import by_hand, export, package, route, with_session


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three packages of a few bytes each: as far as the file goes, any bytes are a package."""
    return export(tmp_path / "export", [package(number, content=b"package%d" % number) for number in range(3)])


def refusal(call: Callable[[], object]) -> ApplianceError:
    with pytest.raises(ApplianceError) as caught:
        call()
    return caught.value


def test_an_export_is_cut_into_shards_that_leave_nothing_out(small: Path) -> None:
    opened = Export.open(small)
    for size, counts in ((1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (9, [3])):
        shards = opened.shards(size)
        assert [shard.packages for shard in shards] == counts
        assert [shard.first for shard in shards] == [1 + size * number for number in range(len(shards))]
        assert [shards[0].offset, *(shard.end for shard in shards)] == [
            *(shard.offset for shard in shards),
            opened.end,
        ]


def test_an_export_is_its_owners_alone(small: Path) -> None:
    assert stat.S_IMODE(small.stat().st_mode) == 0o600


def test_no_byte_of_an_export_changes_unseen(small: Path) -> None:
    sound = small.read_bytes()
    for at in range(len(sound)):
        small.write_bytes(sound[:at] + bytes([sound[at] ^ 0x10]) + sound[at + 1 :])
        assert refusal(lambda: Export.open(small).shards(2)).reason is Reason.EXPORT_INVALID, at


def test_an_export_that_is_cut_off_anywhere_is_refused(small: Path) -> None:
    sound = small.read_bytes()
    for length in range(len(sound)):
        small.write_bytes(sound[:length])
        assert refusal(lambda: Export.open(small).shards(2)).reason is Reason.EXPORT_INVALID, length


def test_a_cut_off_export_is_told_with_record_and_offset(small: Path) -> None:
    second = Export.open(small).shards(1)[1]
    sound = small.read_bytes()
    small.write_bytes(sound[: second.offset + 20])
    error = refusal(lambda: Export.open(small))
    assert error.facts == {"record": 2, "offset": second.offset}
    small.write_bytes(sound[: second.offset])
    error = refusal(lambda: Export.open(small))
    assert "ends behind record 1" in error.detail
    assert "of 3" in error.detail


def test_a_changed_package_is_told_with_record_and_offset(small: Path) -> None:
    second = Export.open(small).shards(1)[1]
    small.write_bytes(small.read_bytes().replace(b"package1", b"package9"))
    error = refusal(lambda: Export.open(small).shards(2))
    assert error.facts == {"record": 2, "offset": second.offset}


def test_an_export_with_fewer_packages_than_its_head_says_is_refused(tmp_path: Path) -> None:
    fewer = by_hand(tmp_path / "fewer", [package(0), package(1)], told=3)
    assert "record 2 is the last" in refusal(lambda: Export.open(fewer).shards(2)).detail


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sim_issuer", "simIssuers/\x1b[2J"),
        ("sim_issuer", "example-mno"),
        ("kvn", 0),
        ("ssd_aid", b"1234"),
        ("channel_kvn", 200),
        ("channel_i", 0x60),
        ("channel_key_bits", 160),
        ("security_level", 0x00),
        ("km_chan_kcv", b"12"),
    ],
)
def test_a_route_that_cannot_be_is_refused(tmp_path: Path, field: str, value: object) -> None:
    way = route()
    setattr(way, field, value)
    made = export(tmp_path / "export", [package(0, content=b"x")], way=way)
    error = refusal(lambda: Export.open(made))
    assert error.reason is Reason.EXPORT_INVALID
    assert error.field.startswith("head.routes[0].")


def test_what_is_no_export_is_told_so(tmp_path: Path) -> None:
    for content in (b"", b"\x00", b"hello, world", bytes(100), b"\xff" * 100):
        (tmp_path / "x").write_bytes(content)
        assert "no export" in refusal(lambda: Export.open(tmp_path / "x")).detail, content
    assert refusal(lambda: Export.open(tmp_path / "nowhere")).reason is Reason.FILE_UNUSABLE
    assert refusal(lambda: Export.open(tmp_path)).reason is Reason.FILE_UNUSABLE
    assert "pipe" in refusal(lambda: Export.open(Path("/dev/null"))).hint


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize(("numbers", "record"), [((0, 1, 1), 3), ((2, 1, 2), 2), ((0, 2, 3, 1), 4)])
def test_packages_that_do_not_ascend_are_refused_wherever_shards_begin(
    tmp_path: Path, numbers: tuple[int, ...], record: int, size: int
) -> None:
    made = by_hand(tmp_path / "export", [package(number, content=b"x") for number in numbers], len(numbers))
    opened = Export.open(made)
    error = refusal(lambda: opened.shards(size))
    assert error.reason is Reason.EXPORT_INVALID
    assert error.facts == {"record": record, "offset": [one.offset for one in opened.records()][record - 1]}
    assert package(numbers[record - 1]).issuance in error.detail
    assert ("is there twice" in error.detail) == (numbers[record - 1] == numbers[record - 2])


def test_a_record_that_is_no_package_is_told_with_record_and_offset(tmp_path: Path) -> None:
    broken = pb.ExportEnd(sha256=b"\xff")  # field 1 of a package is text
    made = by_hand(tmp_path / "export", [package(0, content=b"x"), broken], 2)  # type: ignore[list-item] # that is the point
    error = refusal(lambda: Export.open(made).shards(5))
    assert "Record 2 at offset" in error.detail
    assert "is no ExportedPackage" in error.detail


def test_damage_is_told_as_such_even_if_it_disturbs_the_order(small: Path) -> None:
    small.write_bytes(small.read_bytes().replace(package(1).issuance.encode(), package(9).issuance.encode()))
    assert "another digest" in refusal(lambda: Export.open(small).shards(2)).detail


def test_session_keys_that_others_may_read_are_refused_with_the_way_out(tmp_path: Path) -> None:
    made = export(tmp_path / "export", [with_session(package(0), route())])
    for mode in (0o640, 0o604, 0o620, 0o777):
        made.chmod(mode)
        error = refusal(lambda: Export.open(made))
        assert error.reason is Reason.FILE_UNUSABLE
        assert f"chmod 600 {made}" in error.hint
    for mode in (0o600, 0o400):
        made.chmod(mode)
        assert Export.open(made).head.session_keys


def test_an_export_without_keys_may_be_read_by_others(small: Path) -> None:
    small.chmod(0o644)
    assert len(Export.open(small).shards(3)) == 1


def test_a_file_that_is_there_is_never_overwritten(small: Path) -> None:
    before = small.read_bytes()
    assert refusal(lambda: export(small, [package(9)])).reason is Reason.FILE_UNUSABLE
    assert small.read_bytes() == before


def test_of_two_writers_of_one_name_the_first_to_be_ready_has_it(tmp_path: Path) -> None:
    path = tmp_path / "export"

    def overtaken() -> Iterator[pb.ExportedPackage]:
        yield package(0, content=b"x")
        export(path, [package(number, content=b"y") for number in range(3)])

    error = refusal(lambda: write(path, pb.ExportHead(packages=1, routes=[route()]), overtaken()))
    assert (error.reason, f"{path} is there already" in error.detail) == (Reason.FILE_UNUSABLE, True)
    assert Export.open(path).shards(5)[0].packages == 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_hard_links_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(target), None, str(self))  # link(2)

    monkeypatch.setattr(Path, "hardlink_to", refused)
    assert "without hard links" in refusal(lambda: export(tmp_path / "export", [package(0, content=b"x")])).detail
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("numbers", "told"), [((0, 0), 2), ((1, 0), 2), ((0, 1), 3), ((0, 1), 1)])
def test_a_write_that_goes_wrong_leaves_nothing(tmp_path: Path, numbers: tuple[int, ...], told: int) -> None:
    head = pb.ExportHead(packages=told, routes=[route()])
    with pytest.raises(ValueError, match=r"order|packages"):
        write(tmp_path / "export", head, [package(number, content=b"x") for number in numbers])
    assert list(tmp_path.iterdir()) == []
