# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far the WAL of an archive reaches without a gap."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.path import (
    Path,
    path_segment,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.reach import reach
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.timelines import HistoryEntry

from tests.unit.helpers.made_up_wal import FIRST, NOW_US, SIZE, Wal, directory_archive, put


def test_reach(tmp_path: pathlib.Path, wal: Wal) -> None:
    names = put(tmp_path, wal)
    path, start = Path(1, []), FIRST * SIZE + 40
    found = reach(directory_archive(tmp_path), path, start)
    assert (found.segments, found.end_segment, found.gap) == (4, FIRST + 3, False)
    assert found.first_missing == _wal.segment_name(1, FIRST + 4, SIZE)
    assert (found.last_lsn, found.last_time_us) == (wal.previous, NOW_US + 3)
    (tmp_path / names[1]).unlink()
    found = reach(directory_archive(tmp_path), path, start)
    assert (found.segments, found.first_missing, found.gap) == (1, names[1], True)
    assert (found.last_lsn, found.last_time_us) == (FIRST * SIZE + 40 + 40, NOW_US + 1)
    # After the only transaction.
    found = reach(directory_archive(tmp_path), path, start + 8)
    assert (found.last_lsn, found.last_time_us) == (start + 40, None)
    (tmp_path / names[0]).unlink()
    found = reach(directory_archive(tmp_path), path, start)
    assert found == (0, names[0], FIRST - 1, None, None, True, None)
    put(tmp_path, wal)
    assert reach(directory_archive(tmp_path), path, start, times=False)[3:5] == (None, None)
    for damaged in (3, 2, 1, 0):
        (tmp_path / names[damaged]).write_bytes(b"x" * SIZE)
        found = reach(directory_archive(tmp_path), path, start)
        assert (found.segments, found.end_segment, found.first_missing) == (
            damaged,
            FIRST + damaged - 1,
            names[damaged],
        )
        assert found.damage is not None
        assert found.damage.code == "bad_segment"
        assert found.gap is False
    assert (found.last_lsn, found.last_time_us) == (None, None)


@pytest.mark.parametrize("length", [100, SIZE // 2, 2 * SIZE + 100, 4 * SIZE])
def test_reach_through_a_long_record(tmp_path: pathlib.Path, length: int) -> None:
    """The last transaction begins in one segment and ends in another, with nothing after it."""
    wal = Wal()
    wal.commit(1)
    wal.fill((FIRST + 1) * SIZE - 64)
    last = wal.commit(2, padding=length)
    put(tmp_path, wal)
    found = reach(directory_archive(tmp_path), Path(1, []), FIRST * SIZE + 40)
    assert (found.last_lsn, found.last_time_us) == (last, NOW_US + 2)
    # A truncated transaction does not count.
    (tmp_path / _wal.segment_name(1, wal.last, SIZE)).unlink()
    assert reach(directory_archive(tmp_path), Path(1, []), FIRST * SIZE + 40).last_time_us == NOW_US + 1


def test_reach_across_timelines(tmp_path: pathlib.Path, wal: Wal) -> None:
    """The segment of the switch exists on the newer timeline only."""
    put(tmp_path, wal, 1, [FIRST])
    put(tmp_path, wal, 2, [FIRST + 1, FIRST + 2])
    path = Path(2, [HistoryEntry(1, (FIRST + 1) * SIZE + 4000)])
    found = reach(directory_archive(tmp_path), path, FIRST * SIZE + 40)
    assert (found.segments, found.first_missing) == (3, _wal.segment_name(2, FIRST + 3, SIZE))
    assert reach(directory_archive(tmp_path), Path(1, []), FIRST * SIZE + 40).gap is False


@pytest.mark.parametrize("switch", [0x500000, 0x500008, 0x5FFFF8, 0x600000])
def test_reach_as_path_segment_says(tmp_path: pathlib.Path, switch: int) -> None:
    path = Path(3, [HistoryEntry(1, switch), HistoryEntry(2, 0x7F0000)])
    names = [path_segment(path, number, SIZE) for number in range(4, 11)]
    for name in names:
        with (tmp_path / name).open("wb") as file:
            file.truncate(SIZE)
    for number, name in enumerate(names[:-1], 4):
        assert reach(directory_archive(tmp_path), path, 0x400028, times=False).segments == 7
        (tmp_path / name).rename(tmp_path / "away")
        found = reach(directory_archive(tmp_path), path, 0x400028, times=False)
        assert (found.segments, found.first_missing, found.gap) == (number - 4, name, True)
        (tmp_path / "away").rename(tmp_path / name)
