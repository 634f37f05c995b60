# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL arithmetic, at and around every boundary."""

from __future__ import annotations

import random
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import timelines as _timelines
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.timelines import HistoryEntry, WalRange

from tests.unit.helpers.made_up_wal import segment_header

MB = 1 << 20
SIZES = [MB, 16 * MB, 64 * MB, 1024 * MB]


@pytest.mark.parametrize(
    "text, lsn",
    [
        ("0/0", 0),
        ("0/1", 1),
        ("0/3000000", 0x3000000),
        ("0/03000000", 0x3000000),
        ("00000002/030000a8", 0x2030000A8),
        ("FFFFFFFF/FFFFFFFF", 2**64 - 1),
    ],
)
def test_parse_lsn(text: str, lsn: int) -> None:
    assert _wal.parse_lsn(text) == lsn
    assert _wal.parse_lsn(_wal.format_lsn(lsn)) == lsn


@pytest.mark.parametrize(
    "text",
    ["", "/", "0", "0/", "/0", "0/0/0", "0/0 ", " 0/0", "0/0\n", "0x1/0", "-1/0", "g/0", "100000000/0", "0/100000000"],
)
def test_parse_lsn_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN"):
        _wal.parse_lsn(text)


def test_format_lsn_is_not_padded() -> None:
    assert _wal.format_lsn(0x2030000A8) == "2/30000A8"


@pytest.mark.parametrize("size", SIZES)
def test_segments_around_boundaries(size: int) -> None:
    per_log = 2**32 // size
    for segment in (1, 2, per_log - 1, per_log, per_log + 1, 7 * per_log, 2**32 * per_log - 1):
        boundary = segment * size
        assert _wal.segment_of(boundary, size) == segment
        assert _wal.segment_of(boundary - 1, size) == segment - 1
        assert _wal.last_segment_of(boundary, size) == segment - 1
        assert _wal.last_segment_of(boundary + 1, size) == segment
        name = _wal.segment_name(5, segment, size)
        assert _wal.is_segment_name(name)
        assert _wal.parse_segment_name(name, size) == (5, segment)


@pytest.mark.parametrize(
    "size, lsn, name",
    [
        (MB, 0xFFFFFFFF, "000000010000000000000FFF"),
        (MB, 0x100000000, "000000010000000100000000"),
        (16 * MB, 0xFFFFFFFF, "0000000100000000000000FF"),
        (16 * MB, 0x2030000A8, "000000010000000200000003"),
        (64 * MB, 0xFFFFFFFF, "00000001000000000000003F"),
        (64 * MB, 0x100000000, "000000010000000100000000"),
        (1024 * MB, 0x2FFFFFFFF, "000000010000000200000003"),
    ],
)
def test_segment_names(size: int, lsn: int, name: str) -> None:
    assert _wal.segment_name(1, _wal.segment_of(lsn, size), size) == name


def test_segment_names_sort_as_segments_do() -> None:
    chance = random.Random(1)  # noqa: S311 - no secret
    for size in SIZES:
        segments = sorted(chance.randrange(2**64 // size) for _number in range(500))
        names = [_wal.segment_name(0xABCDEF01, segment, size) for segment in segments]
        assert names == sorted(names)
        assert [_wal.parse_segment_name(name, size) for name in names] == [(0xABCDEF01, item) for item in segments]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "00000001000000000000000",
        "0000000100000000000000001",
        "0000000100000000000000FF\n",
        "0000000a00000000000000FF",
        "000000010000000000000100",
        "000000000000000000000001",
        "000000010000000000000001.partial",
        "00000002.history",
    ],
)
def test_parse_segment_name_refuses(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a WAL segment"):
        _wal.parse_segment_name(name, 16 * MB)


def test_history_names() -> None:
    assert _wal.history_name(10) == "0000000A.history"
    assert _wal.is_history_name("0000000A.history")
    for name in ("0000000a.history", "A.history", "0000000A.history.done", "000000010000000000000001"):
        assert not _wal.is_history_name(name)


def test_parse_history() -> None:
    text = (
        "# a comment\n\n1\t0/3000148\tno recovery target specified\n2\t1/0A000000\tbefore 2000-01-01 00:00:00+00\n"
        "4\t1/A000000\t\n"
    )
    assert _timelines.parse_history(text) == [
        HistoryEntry(1, 0x3000148),
        HistoryEntry(2, 0x10A000000),
        HistoryEntry(4, 0x10A000000),
    ]
    assert _timelines.parse_history("") == []


def test_parse_history_of_a_timeline_left_before_it_began() -> None:
    """Recovery along timeline 2 that stops on timeline 1 starts timeline 3 there."""
    history = _timelines.parse_history("1\t0/5000000\n2\t0/3000148\n")
    assert history == [HistoryEntry(1, 0x3000148), HistoryEntry(2, 0x3000148)]
    ranges = _timelines.wal_ranges(1, 0x2000028, 3, 0x4000000, history)
    assert _timelines.required_wal(ranges, 16 << 20)[:2] == ["000000010000000000000002", "000000030000000000000003"]


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "1\t3000148\n",
        "x\t0/3000148\n",
        "1\t0/3000148x\n",
        "0\t0/3000148\n",
        "1\t0/3000148\n1\t0/4000148\n",
        "2\t0/3000148\n1\t0/4000148\n",
        "1\t0/130000148\n",
    ],
)
def test_parse_history_refuses(text: str) -> None:
    with pytest.raises(BackupError, match="Invalid line") as caught:
        _timelines.parse_history(text)
    assert caught.value.code == "bad_history"


HISTORY = [HistoryEntry(1, 100), HistoryEntry(2, 200), HistoryEntry(5, 300)]


@pytest.mark.parametrize(
    "start_timeline, start, stop_timeline, stop, expected",
    [
        (6, 310, 6, 400, [WalRange(6, 310, 400)]),
        (5, 250, 6, 400, [WalRange(6, 300, 400), WalRange(5, 250, 300)]),
        (5, 300, 6, 300, [WalRange(6, 300, 300), WalRange(5, 300, 300)]),
        (
            1,
            50,
            6,
            400,
            [WalRange(6, 300, 400), WalRange(5, 200, 300), WalRange(2, 100, 200), WalRange(1, 50, 100)],
        ),
    ],
)
def test_wal_ranges(start_timeline: int, start: int, stop_timeline: int, stop: int, expected: t.List[WalRange]) -> None:
    assert _timelines.wal_ranges(start_timeline, start, stop_timeline, stop, HISTORY) == expected


@pytest.mark.parametrize(
    "start_timeline, start, stop_timeline, stop, message",
    [
        (3, 50, 6, 400, "Timeline 3, on which the backup started, is not in the history of timeline 6"),
        (7, 50, 6, 400, "Timeline 7, on which"),
        (5, 301, 6, 400, "Timeline 5 would be needed from 0/12D back to 0/12C"),
        (5, 250, 6, 299, "Timeline 6 would be needed from 0/12C back to 0/12B"),
        (6, 400, 6, 399, "Timeline 6 would be needed from 0/190 back to 0/18F"),
    ],
)
def test_wal_ranges_refuses(start_timeline: int, start: int, stop_timeline: int, stop: int, message: str) -> None:
    with pytest.raises(BackupError, match=message) as caught:
        _timelines.wal_ranges(start_timeline, start, stop_timeline, stop, HISTORY)
    assert caught.value.code == "bad_wal_range"


def test_wal_ranges_needs_no_history_on_one_timeline() -> None:
    assert _timelines.wal_ranges(9, 5, 9, 6, []) == [WalRange(9, 5, 6)]


def test_timeline_at_is_that_of_wal_ending_there() -> None:
    for lsn, timeline in [(1, 1), (100, 1), (101, 2), (200, 2), (201, 5), (300, 5), (301, 6), (2**60, 6)]:
        assert _timelines.timeline_at(lsn, 6, HISTORY) == timeline


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "start, stop, count",
    [((1, 40), (1, 41), 1), ((1, 0), (2, 0), 1), ((1, 0), (2, 1), 2), ((1, -1), (2, 0), 2), ((1, -1), (2, 1), 3)],
)
def test_required_wal_on_one_timeline(size: int, start: t.Tuple[int, int], stop: t.Tuple[int, int], count: int) -> None:
    first, last = (segment * size + offset for segment, offset in (start, stop))
    names = _timelines.required_wal([WalRange(3, first, last)], size)
    segments = range(first // size, first // size + count)
    assert names == [_wal.segment_name(3, segment, size) for segment in segments]


def test_required_wal_takes_the_newer_file_where_the_timeline_changes() -> None:
    ranges = [WalRange(3, 40 * MB, 50 * MB), WalRange(2, 24 * MB, 40 * MB), WalRange(1, 8 * MB, 24 * MB)]
    assert _timelines.required_wal(ranges, 16 * MB) == [
        "000000010000000000000000",
        "000000020000000000000001",
        "000000030000000000000002",
        "000000030000000000000003",
        "00000002.history",
        "00000003.history",
    ]


def test_required_wal_with_a_switch_on_a_boundary() -> None:
    # The old timeline's last segment is complete then, and the new timeline has no copy of it.
    ranges = [WalRange(2, 32 * MB, 33 * MB), WalRange(1, 20 * MB, 32 * MB)]
    assert _timelines.required_wal(ranges, 16 * MB) == [
        "000000010000000000000001",
        "000000020000000000000002",
        "00000002.history",
    ]


def test_required_wal_with_two_switches_in_one_segment() -> None:
    ranges = [WalRange(3, 20 * MB, 21 * MB), WalRange(2, 19 * MB, 20 * MB), WalRange(1, 10 * MB, 19 * MB)]
    assert _timelines.required_wal(ranges, 16 * MB)[:2] == ["000000010000000000000000", "000000030000000000000001"]


def test_required_wal_covers_every_byte_once() -> None:
    chance = random.Random(2)  # noqa: S311 - no secret
    for _turn in range(300):
        size = chance.choice(SIZES)
        switches = sorted(chance.randrange(1, 9 * size) for _number in range(chance.randrange(4)))
        history = [HistoryEntry(timeline, end) for timeline, end in enumerate(switches, 1)]
        newest = len(history) + 1
        start = chance.randrange(1, 10 * size)
        stop = chance.randrange(max([start, *switches]) + 1, 12 * size)
        oldest = _timelines.timeline_at(start + 1, newest, history)
        ranges = _timelines.wal_ranges(oldest, start, newest, stop, history)
        names = _timelines.required_wal(ranges, size)
        segments = {}
        for name in names:
            if _wal.is_segment_name(name):
                timeline, segment = _wal.parse_segment_name(name, size)
                assert segment not in segments
                segments[segment] = timeline
        assert sorted(segments) == list(range(start // size, (stop - 1) // size + 1))
        for segment, timeline in segments.items():
            # The file's timeline is the one of its last needed byte, and recovery finds it: it searches for
            # the newest timeline that had begun in this segment or before.
            assert timeline == _timelines.timeline_at(min((segment + 1) * size, stop), newest, history)
        assert names[len(segments) :] == [_wal.history_name(item) for item in range(oldest + 1, newest + 1)]


def test_check_segment_accepts() -> None:
    name = "000000020000000000000003"
    for first in (segment_header(2), segment_header(1), segment_header(2)[:40], segment_header(2, flags=7)):
        _wal.check_segment(first, name, 16 * MB, 77)
    _wal.check_segment(
        segment_header(2, 0x100000000 + 5 * MB, 2**64 - 1, MB), "000000020000000100000005", MB, 2**64 - 1
    )


@pytest.mark.parametrize(
    "first, name, message",
    [
        (segment_header(identifier=78), "000000010000000000000003", "system identifier 78 instead of 77"),
        (segment_header(size=MB), "000000010000000000000003", "segment size 1048576 instead of 16777216"),
        (segment_header(), "000000010000000000000004", "page address 0/3000000 instead of 0/4000000"),
        (
            segment_header(address=0x103000000),
            "000000010000000000000003",
            "page address 1/3000000 instead of 0/3000000",
        ),
        (segment_header(timeline=3), "000000020000000000000003", "timeline 3 in the file of timeline 2"),
        (segment_header(timeline=0), "000000020000000000000003", "timeline 0 in the file"),
        (segment_header(flags=1), "000000010000000000000003", "does not begin with the header"),
        (bytes(64), "000000010000000000000003", "does not begin with the header"),
        (b"\x28\xb5\x2f\xfd" + bytes(60), "000000010000000000000003", "does not begin with the header"),
        (segment_header()[:39], "000000010000000000000003", "has only 39 bytes"),
        (b"", "000000010000000000000003", "has only 0 bytes"),
        (segment_header(), "000000010000000000000003.partial", "not the name of a WAL segment"),
    ],
)
def test_check_segment_refuses(first: bytes, name: str, message: str) -> None:
    with pytest.raises(BackupError, match=message) as caught:
        _wal.check_segment(first, name, 16 * MB, 77)
    assert caught.value.code == "bad_segment"
    assert name in caught.value.msg
