# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a WAL archive goes along a path of timelines.

Sources: PostgreSQL, "Recovering Using a Continuous Archive Backup"; ReadRecord of xlogrecovery.c, for which the first
segment that is missing or not good is the end.

Private to pgfleet.basebackup. Room ``_wal``: names, records and archives of WAL; it knows no server and no backup.
"""

from __future__ import annotations

import sys
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import DirectoryArchive, Tail
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.path import Path, path_segment
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.records import RESTORE_POINT, scan_segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.timelines import HistoryEntry


class Reach(t.NamedTuple):
    """How far an archive goes along a path.

    ``segments`` is the number of segments without a gap, ``end_segment`` the last of them (without any, the one before
    the start). ``first_missing`` is the file that would come next; ``gap`` is true when the archive has later ones.
    ``last_lsn`` is the start of the last complete record, ``last_time_us`` the newest time of a commit or abort in the
    last segment that has one (microseconds since 1970); both are None when there is none after the start.
    ``damage`` is set when ``first_missing`` is in the archive but unusable.
    """

    segments: int
    first_missing: str
    end_segment: int
    last_lsn: t.Optional[int]
    last_time_us: t.Optional[int]
    gap: bool
    damage: t.Optional[BackupError] = None


def reach(archive: DirectoryArchive, path: Path, start_lsn: int, times: bool = True) -> Reach:
    """Return how far one can recover along ``path`` from ``start_lsn``; without ``times`` no file is read.

    A bad last segment (torn by a crash, or still being written) is the end, not a ``gap``.
    """
    size = archive.size
    first = end = _segments.segment_of(start_lsn, size)
    for timeline, last in (*path.history, HistoryEntry(path.timeline, sys.maxsize)):
        # The same as asking path_segment for each segment, in a tenth of the time.
        own = archive.numbers().get(timeline, set())
        while end < last // size and end in own:
            end += 1
        if end < last // size:
            break
    gap = any(
        segment > end and path_segment(path, segment, size) == _segments.segment_name(timeline, segment, size)
        for timeline in (*(entry.timeline for entry in path.history), path.timeline)
        for segment in archive.numbers().get(timeline, ())
    )
    last_lsn = last_time = damage = None
    while times:
        try:
            last_lsn, last_time = _newest(archive, path, first, end - 1, start_lsn)
            break
        except BackupError as exc:
            if exc.code != "bad_segment":
                raise
            damage, end = exc, end - 1
    return Reach(end - first, path_segment(path, end, size), end - 1, last_lsn, last_time, gap, damage)


def _newest(
    archive: DirectoryArchive, path: Path, first: int, last: int, start_lsn: int
) -> t.Tuple[t.Optional[int], t.Optional[int]]:
    """Return ``last_lsn`` and ``last_time_us`` of :class:`Reach` for the segments from ``first`` to ``last``."""
    last_lsn = None
    for segment in range(last, first - 1, -1):
        tail_lsn, tail = _tail(archive, path, segment, last)
        last_lsn = last_lsn if last_lsn is not None else tail_lsn
        found = [time_us for lsn, time_us in tail if lsn >= start_lsn]
        if found:
            return last_lsn, max(found)
    return (last_lsn if last_lsn is not None and last_lsn >= start_lsn else None), None


def _tail(archive: DirectoryArchive, path: Path, segment: int, last: int) -> Tail:
    """Return the records that begin in ``segment``, also those that end in a later one, up to the segment ``last``."""
    key = (path_segment(path, segment, archive.size), last)
    if key not in archive.tails:
        contents = (
            (number, archive.read(path_segment(path, number, archive.size))) for number in range(segment, last + 1)
        )
        lsn, ends = None, []
        for scan in scan_segments(contents, archive.size):
            lsn = scan.last_lsn if scan.last_lsn is not None else lsn
            ends += [(event.lsn, event.time_us) for event in scan.events if event.kind != RESTORE_POINT]
            if scan.segment > segment and scan.last_lsn is not None:
                break
        archive.tails[key] = (lsn, ends)
    return archive.tails[key]
