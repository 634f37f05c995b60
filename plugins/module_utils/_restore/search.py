# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Searching the WAL for the record at which recovery stops.

Source: PostgreSQL, recoveryStopsBefore and recoveryStopsAfter of xlogrecovery.c.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import itertools
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.target import Target, is_stop
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import Archive, DirectoryArchive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.path import Path, path_segment
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.reach import Reach
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.records import RESTORE_POINT, Event, scan_segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import (
    is_segment_name,
    parse_segment_name,
    segment_of,
)

# By timeline: the position from which the WAL has been searched for a transaction or a name, and its first record
# found.
Searched = t.Dict[int, t.Tuple[int, t.Optional[Event]]]


class Search:
    """The WAL of an archive from the LSN ``start`` on, along a path of timelines.

    ``size`` is the segment size in bytes. ``reach`` is how far the archive goes, None where that is unknown: then only
    :meth:`end_of_record` works.
    """

    def __init__(self, archive: Archive, path: Path, start: int, size: int, reach: t.Optional[Reach]) -> None:
        self._archive = archive
        self._path = path
        self._start = start
        self._reach = reach
        self._size = size

    @property
    def _known_reach(self) -> Reach:
        return t.cast(Reach, self._reach)

    def end_of_record(self, lsn: int) -> int:
        """Return an LSN up to which the first record at or after ``lsn`` needs WAL, 0 when there is no such record."""
        if self._reach and (self._reach.last_lsn is None or self._reach.last_lsn < lsn):
            return 0
        first = segment_of(lsn, self._size)
        for scan in scan_segments(self._segments(first, self._reach and self._reach.end_segment), self._size):
            if scan.last_lsn is not None and scan.last_lsn >= lsn:
                return t.cast(int, scan.last_end) if scan.segment > first else lsn + 1
        return 0

    def by_time(self, target: Target) -> t.Optional[Event]:
        """Return the record before which recovery to a time stops, None when the WAL ends before.

        Times are assumed to rise along the WAL.
        """
        newest = self._known_reach.last_time_us
        value = t.cast(int, target.value)
        if newest is None or newest < value or (newest == value and target.inclusive):
            return None
        end = self._known_reach.end_segment
        low = first = segment_of(self._start, self._size)
        high = end + 1
        # The first segment from which on every transaction ends too late; the record is in it or in the one before.
        while low < high:
            middle = (low + high) // 2
            if self._is_late(target, middle):
                high = middle
            else:
                low = middle + 1
        return self._first_stop(target, max(first, low - 1), end)

    def by_content(self, target: Target, searched: Searched) -> t.Optional[Event]:
        """Return the first record at which recovery to a transaction or a name stops, or None.

        ``searched`` has the results of earlier searches for the same target from later positions, and is updated.
        """
        limit, later = searched.get(self._path.timeline, (None, None))
        last = self._known_reach.end_segment if limit is None else segment_of(limit, self._size)
        event = self._first_stop(target, segment_of(self._start, self._size), last, limit) or later
        searched[self._path.timeline] = (self._start, event)
        return event

    def gap(self) -> list[str]:
        """Return the names of the segments missing between the first and the last one that the archive has."""
        names = t.cast(DirectoryArchive, self._archive).names()
        segments = [parse_segment_name(name, self._size)[1] for name in names if is_segment_name(name)]
        last = max(one for one in segments if path_segment(self._path, one, self._size) in names)
        first = segment_of(self._start, self._size)
        wanted = (path_segment(self._path, one, self._size) for one in range(first, last))
        return [name for name in wanted if name not in names]

    def _segments(self, first: int, last: t.Optional[int]) -> t.Iterator[tuple[int, bytes]]:
        """Yield segments of the path up to ``last``, or up to the first one missing in the archive."""
        for segment in itertools.count(first):
            name = path_segment(self._path, segment, self._size)
            if (last is not None and segment > last) or not self._archive.has(name):
                return
            yield segment, self._archive.read(name)

    def _is_late(self, target: Target, segment: int) -> bool:
        """Return whether the first transaction that ends in or after a segment ends too late for the target."""
        for scan in scan_segments(self._segments(segment, self._known_reach.end_segment), self._size):
            for event in scan.events:
                if event.kind != RESTORE_POINT and event.lsn >= self._start:
                    return is_stop(target, event)
        return True

    def _first_stop(self, target: Target, first: int, last: int, limit: t.Optional[int] = None) -> t.Optional[Event]:
        """Return the first record before ``limit`` at which recovery stops."""
        for scan in scan_segments(self._segments(first, last), self._size):
            for event in scan.events:
                if event.lsn >= self._start and (limit is None or event.lsn < limit) and is_stop(target, event):
                    return event
        return None
