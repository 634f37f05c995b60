# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of an archive: gaps by name, odd files by kind, backups by how far they can recover."""

from __future__ import annotations

import os
import pathlib
import time
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._catalogue.recoverable import archive_info
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup, Cluster
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import DirectoryArchive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.report import detect

from tests.unit.helpers.backups import IDENTIFIER, edit, make_backup, make_cluster
from tests.unit.helpers.made_up_wal import FIRST, SIZE, Wal


def name(timeline: int, number: int) -> str:
    return _wal.segment_name(timeline, number, SIZE)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """An empty archive."""
    place = tmp_path / "wal"
    place.mkdir()
    return place


def put(folder: pathlib.Path, timeline: int, *numbers: int) -> None:
    """Archive segments, in each of which exactly one transaction ends."""
    wal = Wal(first=min(numbers), timeline=timeline)
    for number in range(min(numbers), max(numbers) + 1):
        wal.commit(number)
        wal.switch()
    for number in numbers:
        (folder / name(timeline, number)).write_bytes(wal.segment(number))


def history(folder: pathlib.Path, timeline: int, *entries: tuple[int, int]) -> None:
    """Archive the history of a timeline; a switch is in the middle of the given segment."""
    lines = [f"{parent}\t{_wal.format_lsn(number * SIZE + SIZE // 2)}\tx\n" for parent, number in entries]
    (folder / _wal.history_name(timeline)).write_text("".join(lines))


def info(folder: pathlib.Path, cluster: Cluster | None = None, every: bool = False) -> dict[str, t.Any]:
    return archive_info(DirectoryArchive(str(folder), SIZE, int(IDENTIFIER)), cluster, 3600, every)


def gaps(folder: pathlib.Path) -> dict[int, list[tuple[str, str, list[str]]]]:
    """Return the gaps of each timeline: after, before, missing."""
    return {
        one["timeline"]: [(gap["after"], gap["before"], gap["missing"]) for gap in one["gaps"]]
        for one in info(folder)["timelines"]
    }


def test_nothing(folder: pathlib.Path) -> None:
    answer = info(folder)
    assert (answer["timelines"], answer["problems"], answer["newest"], answer["bytes_per_hour"]) == ([], [], None, None)
    assert detect(str(folder)) == (None, None)


def test_gaps_on_one_timeline(folder: pathlib.Path) -> None:
    put(folder, 1, 3, 4, 7, 8, 10)
    assert gaps(folder) == {
        1: [(name(1, 4), name(1, 7), [name(1, 5), name(1, 6)]), (name(1, 8), name(1, 10), [name(1, 9)])]
    }
    (one,) = info(folder)["timelines"]
    assert (one["first"], one["last"], one["segments"]) == (name(1, 3), name(1, 10), 5)
    first, second = info(folder)["problems"]
    assert first == f"2 WAL files are missing between {name(1, 4)} and {name(1, 7)}, from {name(1, 5)} on."
    assert second.startswith("1 WAL files are missing")


def test_long_gap(folder: pathlib.Path) -> None:
    put(folder, 1, 3)
    put(folder, 1, 5003)
    ((gap,),) = (one["gaps"] for one in info(folder)["timelines"])
    assert (gap["count"], len(gap["missing"]), gap["missing"][-1]) == (4999, 100, name(1, 103))


def test_switch_is_not_a_gap(folder: pathlib.Path) -> None:
    """Timeline 2 begins in segment 5, which the old one never archives; the old primary may also continue."""
    put(folder, 1, 3, 4)
    put(folder, 2, 5, 6)
    history(folder, 2, (1, 5))
    assert gaps(folder) == {1: [], 2: []}
    put(folder, 1, 5, 6, 7)
    assert gaps(folder) == {1: [], 2: []}
    (folder / name(2, 5)).unlink()
    # The old timeline's file does not replace it.
    assert gaps(folder) == {1: [], 2: [(name(1, 4), name(2, 6), [name(2, 5)])]}


def test_gap_before_a_switch(folder: pathlib.Path) -> None:
    """The gap is reported once, though two timelines branch off after it."""
    put(folder, 1, 3)
    put(folder, 2, 6, 7)
    put(folder, 3, 6)
    history(folder, 2, (1, 6))
    history(folder, 3, (1, 6))
    assert gaps(folder) == {1: [(name(1, 3), name(2, 6), [name(1, 4), name(1, 5)])], 2: [], 3: []}
    # A longer gap on the old timeline itself counts separately.
    put(folder, 1, 8)
    assert [missing for _after, _before, missing in gaps(folder)[1]] == [
        [name(1, 4), name(1, 5), name(1, 6), name(1, 7)], [name(1, 4), name(1, 5)],
    ]  # fmt: skip
    (folder / name(1, 8)).unlink()
    # Segments expired at the beginning are not a gap.
    (folder / name(1, 3)).unlink()
    assert gaps(folder) == {2: [], 3: []}


def test_a_timeline_all_missing(folder: pathlib.Path) -> None:
    put(folder, 1, 3, 4)
    put(folder, 3, 9)
    history(folder, 2, (1, 5))
    history(folder, 3, (1, 5), (2, 8))
    answer = info(folder)["timelines"][1]
    assert {**answer, "gaps": []} == {"timeline": 2, "first": None, "last": None, "segments": 0, "gaps": []}
    assert answer["gaps"][0]["missing"] == [name(2, 5), name(2, 6), name(2, 7), name(3, 8)]


def test_histories(folder: pathlib.Path) -> None:
    put(folder, 1, 3)
    put(folder, 2, 4)
    put(folder, 3, 5)
    history(folder, 3, (1, 4))
    (folder / _wal.history_name(7)).write_text("7\t0/300000\tx\n")
    answer = info(folder)
    assert answer["missing_histories"] == [_wal.history_name(2)]
    assert [problem for problem in answer["problems"] if "00000007.history" in problem]


def test_kinds_of_files(folder: pathlib.Path) -> None:
    put(folder, 1, 3, 4, 5)
    for file in ("archtemp.x.77.1", ".x", "x.tmp"):
        (folder / file).write_bytes(b"x")
    (folder / f"{name(1, 6)}.partial").write_bytes(b"x" * SIZE)
    (folder / f"{name(1, 3)}.00000028.backup.gz").write_bytes(b"x" * 20)
    (folder / name(1, 7)).write_bytes(b"x")
    (folder / f"{name(1, 4)}.zst").write_bytes(b"x" * 10)
    (folder / "notes.txt").write_text("x")
    (folder / "sub").mkdir()
    answer = info(folder)
    assert answer["temporary"] == [".x", "archtemp.x.77.1", "x.tmp"]
    assert (answer["partials"], answer["unknown"]) == ([f"{name(1, 6)}.partial"], ["notes.txt"])
    assert (answer["files"], answer["bytes"]) == (6, 4 * SIZE + 30)
    short, twice = answer["problems"]
    assert short.startswith("Files shorter than a segment")
    assert name(1, 7) in short
    assert twice == f"Files present twice, with different endings: {name(1, 4)}."
    assert [one["segments"] for one in answer["timelines"]] == [3]


def test_foreign(folder: pathlib.Path) -> None:
    put(folder, 1, 3, 4, 5, 6, 9)
    for number in (4, 9):
        content = bytearray((folder / name(1, number)).read_bytes())
        content[24:32] = b"\1" * 8
        (folder / name(1, number)).write_bytes(content)
    answer = info(folder)
    assert answer["foreign"] == [name(1, 9)]
    assert answer["timelines"][0]["last"] == name(1, 6)
    answer = info(folder, every=True)
    assert answer["foreign"] == [name(1, 4), name(1, 9)]
    assert answer["timelines"][0]["gaps"][0]["missing"] == [name(1, 4)]


def test_detect(folder: pathlib.Path) -> None:
    put(folder, 1, 3)
    (folder / name(1, 4)).write_bytes(b"no header")
    os.utime(folder / name(1, 3), (1, 1))
    assert detect(str(folder)) == (SIZE, int(IDENTIFIER))


def test_growth(folder: pathlib.Path) -> None:
    put(folder, 1, *range(3, 9))
    now = time.time()
    for number in range(3, 9):
        age = {3: 90000, 4: 3500, 5: 1800, 6: 60, 7: 30, 8: 10}[number]
        os.utime(folder / name(1, number), (now - age, now - age))
    answer = info(folder)
    assert answer["bytes_per_hour"] == 5 * SIZE
    assert answer["newest"] == name(1, 8)
    assert answer["newest_age_seconds"] == pytest.approx(10, abs=5)
    # An archive younger than the window: it spans half an hour, and its oldest file opens that span.
    for number in (3, 4):
        (folder / name(1, number)).unlink()
    assert info(folder)["bytes_per_hour"] == pytest.approx(2 * 4 * SIZE, rel=0.3)
    (folder / name(1, 5)).unlink()
    (folder / name(1, 6)).unlink()
    assert info(folder)["bytes_per_hour"] is None


# --- backups ---


def published(tmp_path: pathlib.Path, number: int, timeline: int = 1, **more: t.Any) -> Backup:
    """Publish a backup that starts and ends in one segment, after its transaction."""
    cluster = Cluster(make_cluster(tmp_path).repository, "main")
    content = {
        "server": {"wal_segment_size": SIZE},
        "start": {"start_lsn": _wal.format_lsn(number * SIZE + 80), "timeline": timeline},
        "stop": {"stop_lsn": _wal.format_lsn(number * SIZE + 4000), "timeline": timeline},
        "required_wal": [name(timeline, number)],
    }
    backup = make_backup(cluster, f"b{number}", "complete", **{**content, **more})
    backup.publish()
    return backup


def told(folder: pathlib.Path, backup: Backup) -> dict[str, t.Any]:
    (answer,) = (one for one in info(folder, backup.cluster)["backups"] if one["backup_id"] == backup.id)
    return t.cast("dict[str, t.Any]", answer)


def test_backup(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(folder, 1, 3, 4, 5, 6)
    backup = published(tmp_path, 4)
    answer = told(folder, backup)
    assert (answer["wal"], answer["missing"], answer["timeline"], answer["problem"]) == ("present", [], 1, None)
    # In the last segment the switch is the last record.
    assert answer["recoverable_until_lsn"] == _wal.format_lsn(6 * SIZE + 80)
    assert answer["recoverable_until"] == "2026-05-28T20:26:40.000004Z"
    (folder / name(1, 5)).unlink()
    answer = told(folder, backup)
    assert (answer["recoverable_until"], answer["recoverable_until_lsn"]) == (None, _wal.format_lsn(4 * SIZE + 4000))
    assert answer["problem"] == f"recovery ends before {name(1, 5)}, which is missing."
    (folder / name(1, 4)).unlink()
    answer = told(folder, backup)
    assert (answer["wal"], answer["missing"], answer["recoverable_until_lsn"]) == ("incomplete", [name(1, 4)], None)
    assert name(1, 4) in answer["problem"]


def test_backup_with_its_wal_or_none(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(folder, 1, 6)
    included = published(tmp_path, 4, wal="include", wal_proof={"sha256": {name(1, 4): "0" * 64}})
    none = published(tmp_path, 3, wal="none")
    answer = told(folder, included)
    assert (answer["wal"], answer["missing"], answer["recoverable_until"]) == ("included", [], None)
    assert answer["recoverable_until_lsn"] == _wal.format_lsn(4 * SIZE + 4000)
    answer = told(folder, none)
    assert (answer["wal"], answer["missing"], answer["problem"]) == ("none", [name(1, 3)], None)
    put(folder, 1, 3, 4, 5, 6)
    assert [told(folder, one)["wal"] for one in (included, none)] == ["included", "present"]
    assert told(folder, included)["recoverable_until"] is not None


def test_backup_that_a_new_timeline_left_behind(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """An old primary backed up after another's promotion: only its own timeline can be recovered."""
    put(folder, 1, 3, 4, 5, 6)
    put(folder, 2, 4)
    history(folder, 2, (1, 4))
    before, after = published(tmp_path, 3), published(tmp_path, 5)
    assert (told(folder, before)["timeline"], told(folder, after)["timeline"]) == (2, 1)
    assert told(folder, after)["recoverable_until_lsn"] == _wal.format_lsn(6 * SIZE + 80)


def test_backup_whose_end_is_kept_on_a_newer_timeline(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(folder, 2, FIRST, FIRST + 1)
    history(folder, 2, (1, FIRST))
    answer = told(folder, published(tmp_path, FIRST))
    assert (answer["wal"], answer["timeline"]) == ("present", 2)


def test_damaged_backups(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(folder, 1, 3)
    first, second = published(tmp_path, 3), published(tmp_path, 4)
    pathlib.Path(first.file("backup.json")).write_text("{")
    edit(second, stop={})
    answer = info(folder, first.cluster)
    assert [bool(one["problem"]) for one in answer["backups"]] == [True, True]
    assert len(answer["problems"]) == 2
