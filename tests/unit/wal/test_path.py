# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The timelines that lead to a point, and the WAL segments along them."""

from __future__ import annotations

import itertools
import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import timelines as _timelines
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import (
    DirectoryArchive,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.path import (
    Path,
    needed_segments,
    path_segment,
    timeline_path,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.timelines import HistoryEntry

from tests.unit.helpers.errors import code_of
from tests.unit.helpers.made_up_wal import SIZE, directory_archive


@pytest.fixture
def family(tmp_path: pathlib.Path) -> DirectoryArchive:
    """Timeline 2 leaves 1 at 0/500000, 3 leaves 1 at 0/700000, 4 leaves 3, 6 leaves 2, and 5 has no file."""
    for timeline, text in {
        2: "1\t0/500000\tx\n",
        3: "1\t0/700000\tx\n",
        4: "1\t0/700000\tx\n3\t0/900010\tx\n",
        6: "1\t0/500000\tx\n2\t0/800000\tx\n",
    }.items():
        (tmp_path / _wal.history_name(timeline)).write_text(text)
    return directory_archive(tmp_path)


@pytest.mark.parametrize(
    "timeline, lsn, wanted, found",
    [
        (1, 0x400000, "latest", 4),
        (1, 0x400000, "current", 1),
        (1, 0x400000, "1", 1),
        (1, 0x400000, "2", 2),
        (1, 0x400000, "0x6", 6),
        (1, 0x600000, "latest", 4),
        (1, 0x600000, "2", "timeline_unreachable"),
        (1, 0x700000, "latest", 4),
        (1, 0x700001, "latest", "timeline_unreachable"),
        (1, 0x700001, "current", 1),
        (2, 0x600000, "current", 2),
        (2, 0x500000, "current", 2),
        (2, 0x4FFFFF, "current", "timeline_unreachable"),
        (2, 0x600000, "latest", "timeline_unreachable"),
        (2, 0x600000, "6", 6),
        (2, 0x600000, "1", "timeline_unreachable"),
        (3, 0x800000, "latest", 4),
        (4, 0xA00000, "latest", 4),
        (1, 0x400000, "5", "timeline_unknown"),
        (5, 0x400000, "current", 5),
        (5, 0x400000, "latest", "timeline_unreachable"),
        (9, 0x400000, "latest", 9),
        (1, 0x400000, "0", "bad_timeline"),
        (1, 0x400000, "-1", "bad_timeline"),
        (1, 0x400000, "newest", "bad_timeline"),
        (1, 0x400000, "0x100000000", "bad_timeline"),
    ],
)
def test_timeline_path(family: DirectoryArchive, timeline: int, lsn: int, wanted: str, found: int | str) -> None:
    if isinstance(found, str):
        assert code_of(lambda: timeline_path(family, timeline, lsn, wanted)) == found
    else:
        path = timeline_path(family, timeline, lsn, wanted)
        assert path.timeline == found
        assert path.history == (family.history(found) if found not in (5, 9) else [])


def test_unreachable_is_explained(family: DirectoryArchive) -> None:
    with pytest.raises(BackupError) as caught:
        timeline_path(family, 2, 0x600000, "latest")
    assert "it left timeline 1 at 0/700000, it left timeline 3 at 0/900010" in caught.value.msg


@pytest.mark.parametrize("switch", [0x500000, 0x500008, 0x5FFFF8])
def test_needed_segments(switch: int) -> None:
    """The segments that the proof of a backup lists, wherever the range begins and ends."""
    path = Path(3, [HistoryEntry(1, switch), HistoryEntry(2, 0x7F0000)])
    for start, end in itertools.combinations(range(0x400028, 0x900000, 0x3FFF8), 2):
        names = needed_segments(path, start, end, SIZE)
        assert names[-1] == "00000003.history"
        assert names[:-1] == [
            path_segment(path, number, SIZE) for number in range(start // SIZE, (end - 1) // SIZE + 1)
        ]
        if start < switch and end > 0x7F0000:
            ranges = _timelines.wal_ranges(1, start, 3, end, path.history)
            assert names[:-1] == [one for one in _timelines.required_wal(ranges, SIZE) if _wal.is_segment_name(one)]
    # Before the switch, in the same segment: only the newer timeline's file is certain to be archived.
    assert needed_segments(path, 0x7E0000, 0x7EFF00, SIZE)[0][:8] == "00000003"
    assert needed_segments(Path(1, []), 0x400028, 0x500000, SIZE) == [_wal.segment_name(1, 4, SIZE)]
