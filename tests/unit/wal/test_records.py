# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records in generated WAL: every way to span pages and segments, and every way to end."""

from __future__ import annotations

import itertools
import random
import struct
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.records import Event, SegmentScan, scan_segments

from tests.unit.helpers.made_up_wal import FIRST, NOW_US, SIZE, Wal


def scan(wal: Wal, first: int = FIRST) -> list[SegmentScan]:
    return list(scan_segments(((number, wal.segment(number)) for number in range(first, wal.last + 1)), SIZE))


def events(wal: Wal, first: int = FIRST) -> list[Event]:
    return [event for one in scan(wal, first) for event in one.events]


def test_kinds() -> None:
    wal = Wal()
    wal.other(100)
    lsn = wal.commit(7)
    wal.abort(8)
    wal.restore_point(b"here")
    wal.commit(9, prepared=10)
    wal.abort(11, prepared=12)
    wal.other(50)
    found = events(wal)
    assert [(event.kind, event.xid, event.name) for event in found] == [
        ("commit", 7, b""), ("abort", 8, b""), ("restore_point", 0, b"here"), ("commit", 10, b""), ("abort", 12, b""),
    ]  # fmt: skip
    assert found[0].lsn == lsn
    assert [event.time_us for event in found] == [NOW_US + number for number in range(1, 6)]
    assert all(one.end == two.lsn for one, two in itertools.pairwise(found))


@pytest.mark.parametrize("major", [14, 18])
@pytest.mark.parametrize("flags", range(1 << 5))
def test_transaction_that_was_prepared(major: int, flags: int) -> None:
    """The transaction's id comes after optional lists."""
    wal = Wal(magic={14: 0xD10D, 18: 0xD118}[major])
    wal.commit(1, prepared=4711, lists=flags)
    assert [event.xid for event in events(wal)] == [4711]


@pytest.mark.parametrize("parts", [b"", b"\xfd\x05\x00", b"\xfc\x01\x02\x03\x04", b"\xfd\x05\x00\xfc\x01\x02\x03\x04"])
def test_parts_before_the_data(parts: bytes) -> None:
    wal = Wal()
    wal.commit(5, parts=parts)
    wal.commit(6, parts=parts, padding=1000)
    assert [event.xid for event in events(wal)] == [5, 6]


def test_every_position() -> None:
    """A record at each distance from the end of a page and of a segment: header and body split at every offset."""
    for fill in range(8192 - 24 - 200, 8192 - 24, 8):
        for base in (0, SIZE - 8192):
            wal = Wal()
            wal.fill(FIRST * SIZE + base + 24 + fill)
            expected = [wal.commit(number, padding=number % 40) for number in range(1, 9)]
            wal.other(3000)
            found = events(wal)
            assert [event.lsn for event in found] == expected, (fill, base)
            assert [event.xid for event in found] == list(range(1, 9))
            assert all(one.end in (two.lsn, two.lsn - 24, two.lsn - 40) for one, two in itertools.pairwise(found))


def test_records_longer_than_segments() -> None:
    wal = Wal()
    wal.commit(1)
    long = wal.other(3 * SIZE + 5000)
    after = wal.commit(2)
    crossing = wal.commit(3, padding=2 * SIZE)
    wal.commit(4)
    found = scan(wal)
    assert [[event.xid for event in one.events] for one in found] == [[1], [], [], [2], [], [3, 4]]
    assert [one.last_lsn for one in found[1:4]] == [None, None, after]
    assert 0 < (found[0].last_lsn or 0) < long
    assert found[5].events[0].lsn == crossing
    assert [one.stops_at for one in found[:-1]] == [None] * 5
    # A reader that begins in the middle skips the rest of the long record.
    assert [event.xid for event in events(wal, FIRST + 2)] == [2, 3, 4]
    assert [event.xid for event in events(wal, FIRST + 4)] == [4]


def test_switch() -> None:
    """Zeros fill the rest of the segment, and the next record begins in the next segment."""
    wal = Wal()
    wal.commit(1)
    switch = wal.switch()
    assert wal.commit(2) == (FIRST + 1) * SIZE + 40
    found = scan(wal)
    assert [(one.last_lsn, one.stops_at) for one in found[:1]] == [(switch, None)]
    assert [event.xid for one in found for event in one.events] == [1, 2]


@pytest.mark.parametrize("before_end", [8, 16])
def test_switch_whose_header_crosses(before_end: int) -> None:
    """The switch finishes the segment in which its header ends."""
    wal = Wal()
    wal.fill((FIRST + 1) * SIZE - before_end)
    switch = wal.switch()
    wal.commit(2)
    found = scan(wal)
    assert [(one.last_lsn == switch, one.stops_at) for one in found[1:2]] == [(True, None)]
    assert [event.xid for event in found[2].events] == [2]


def test_end_of_wal() -> None:
    """Zeros, wherever they begin; the pages of an older segment; a previous-record link that points elsewhere."""
    wal = Wal()
    wal.commit(1)
    end = wal.at
    (only,) = scan(wal)
    assert (only.stops_at, only.last_end) == (end, end)
    old_page = bytearray(wal.segment(FIRST))
    old_page[8192:16384] = struct.pack("<HHIQI4x", wal.magic, 0, 1, 8192, 0).ljust(8192, b"\xff")
    wal.other(10000)
    crossing = wal.segment(FIRST)
    for damaged in (bytes(old_page), crossing[:8192] + bytes(SIZE - 8192), crossing[:8192] + old_page[8192:]):
        (only,) = scan_segments([(FIRST, damaged)], SIZE)
        assert (only.stops_at, only.last_lsn) == (end, only.events[-1].lsn)

    wal = Wal()
    first, second, third = wal.commit(1), wal.other(60), wal.commit(2)
    for damage in (struct.pack("<I", 23), struct.pack("<I", 1 << 31), struct.pack("<I", 72)):
        content = bytearray(wal.segment(FIRST))
        at = second - FIRST * SIZE
        content[at : at + 4] = damage
        (only,) = scan_segments([(FIRST, bytes(content))], SIZE)
        assert only.stops_at is not None
        assert second <= only.stops_at <= third
        assert [event.lsn for event in only.events] == [first]
    content = bytearray(wal.segment(FIRST))
    content[third - FIRST * SIZE + 8] ^= 8
    (only,) = scan_segments([(FIRST, bytes(content))], SIZE)
    assert (only.stops_at, only.last_lsn) == (third, second)


@pytest.mark.parametrize("pages", [1, 2, SIZE // 8192 - 1, SIZE // 8192, SIZE // 8192 + 3])
def test_record_that_a_crash_left_unfinished(pages: int) -> None:
    """The page flagged so discards the partial record; the next record follows the last complete one."""
    wal = Wal()
    wal.commit(1)
    wal.unfinished(2, pages)
    wal.commit(3)
    wal.fill((FIRST + 2) * SIZE + 100)
    found = events(wal)
    assert [event.xid for event in found] == [1, 3]


def test_lost_continuation() -> None:
    """The next segment neither continues the record nor discards it."""
    wal = Wal()
    wal.commit(1)
    lsn = wal.other(SIZE)
    other = Wal()
    other.fill((FIRST + 2) * SIZE)
    found = list(scan_segments([(FIRST, wal.segment(FIRST)), (FIRST + 1, other.segment(FIRST + 1))], SIZE))
    assert (found[-1].stops_at, [one.last_lsn for one in found][1:]) == (lsn, [None])


def test_continuation_of_nothing() -> None:
    """The previous segment ends with a complete record, but this one claims to continue it."""
    wal = Wal()
    wal.fill((FIRST + 1) * SIZE)
    other = Wal()
    other.fill((FIRST + 1) * SIZE - 64)
    other.commit(1, padding=500)
    found = list(scan_segments([(FIRST, wal.segment(FIRST)), (FIRST + 1, other.segment(FIRST + 1))], SIZE))
    assert (found[0].stops_at, found[1].stops_at, found[1].last_lsn) == (None, (FIRST + 1) * SIZE, None)


def test_no_segment() -> None:
    with pytest.raises(BackupError) as caught:
        list(scan_segments([(FIRST, bytes(SIZE))], SIZE))
    assert caught.value.code == "bad_segment"
    # A segment of another position provides nothing for this one.
    wal = Wal()
    wal.commit(1)
    (only,) = scan_segments([(FIRST + 1, wal.segment(FIRST))], SIZE)
    assert (only.events, only.stops_at) == ([], (FIRST + 1) * SIZE)


def test_random_records() -> None:
    chance = random.Random(3)  # noqa: S311 - the same in every run, no secret
    for _round in range(20):
        wal = Wal()
        expected: list[tuple[int, int]] = []
        for xid in range(1, 60):
            length = chance.choice([1, 10, 500, 8168, 30000, SIZE // 2])
            what = chance.random()
            if what < 0.5:
                expected.append((wal.commit(xid, padding=chance.randrange(length)), xid))
            elif what < 0.97:
                wal.other(chance.randrange(length))
            else:
                wal.switch()
        assert [(event.lsn, event.xid) for event in events(wal)] == expected
        for number in range(FIRST + 1, wal.last + 1):
            part: t.Any = [one for one in expected if one[0] >= number * SIZE]
            assert [(event.lsn, event.xid) for event in events(wal, number)] == part
