# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Timelines: their histories, and the WAL that lies between two positions.

Private to pgfleet.basebackup. Room ``_wal``: names, records and archives of WAL; it knows no server and no backup.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import (
    format_lsn,
    history_name,
    last_segment_of,
    parse_lsn,
    segment_name,
    segment_of,
)

_HISTORY_LINE = re.compile(r"\s*([0-9]+)\s+([0-9A-Fa-f]+/[0-9A-Fa-f]+)(?:\s.*)?")


class HistoryEntry(t.NamedTuple):
    """An ancestor timeline and the LSN at which its successor left it."""

    timeline: int
    end: int


class WalRange(t.NamedTuple):
    """The part ``start`` to ``end`` (exclusive) of one timeline's log that a restore needs."""

    timeline: int
    start: int
    end: int


def parse_history(text: str) -> list[HistoryEntry]:
    """Return the ancestors that a timeline's history file lists, oldest first, their ends in ascending order.

    The file may list a timeline that was left before it began: recovery along it stopped while it was still on an
    ancestor. Of such an ancestor only the WAL before that point counts (``tliOfPointInHistory`` of timeline.c, which
    searches from the newest entry). Raises BackupError for what the server would refuse.
    """
    entries: list[HistoryEntry] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            # No match is an AttributeError, refused below like a bad LSN.
            timeline, lsn = _HISTORY_LINE.fullmatch(line).groups()  # type: ignore[union-attr]
            entry = HistoryEntry(int(timeline), parse_lsn(lsn))
        except (AttributeError, ValueError):
            entry = HistoryEntry(0, 0)
        if entry.timeline <= (entries[-1].timeline if entries else 0):
            raise BackupError(f"Invalid line in a timeline history: {line!r}.", code="bad_history")
        entries = [HistoryEntry(one.timeline, min(one.end, entry.end)) for one in entries] + [entry]
    return entries


def wal_ranges(
    start_timeline: int, start: int, stop_timeline: int, stop: int, history: t.Sequence[HistoryEntry]
) -> list[WalRange]:
    """Return the log between two positions, one range a timeline, newest first, as ``backup_manifest`` lists it.

    ``history`` is that of ``stop_timeline``; it is not used when there is only one timeline.
    Raises BackupError, code ``bad_wal_range``, when the start is not in the past of the stop.
    """
    ranges: list[WalRange] = []
    timeline, end = stop_timeline, stop
    ancestors = list(history)
    while timeline != start_timeline:
        if not ancestors:
            raise BackupError(
                f"Timeline {start_timeline}, on which the backup started, is not in the history of"
                f" timeline {stop_timeline}, on which it ended.",
                code="bad_wal_range",
            )
        ancestor, begin = ancestors.pop()
        ranges.append(WalRange(timeline, begin, end))
        timeline, end = ancestor, begin
    ranges.append(WalRange(timeline, start, end))
    for part in ranges:
        if part.end < part.start:
            raise BackupError(
                f"Timeline {part.timeline} would be needed from {format_lsn(part.start)} back to"
                f" {format_lsn(part.end)}: the start of the backup is not in the past of its end.",
                code="bad_wal_range",
            )
    return ranges


def timeline_at(lsn: int, newest_timeline: int, history: t.Sequence[HistoryEntry]) -> int:
    """Return the timeline that holds the WAL *ending at* ``lsn``, seen from ``newest_timeline`` and its history."""
    for entry in history:
        if lsn <= entry.end:
            return entry.timeline
    return newest_timeline


def required_wal(ranges: t.Sequence[WalRange], size: int) -> list[str]:
    """Return the names of the files that a restore needs to replay ``ranges`` (newest first), oldest first.

    A segment in which the timeline changes is needed from the newer one only: it holds the older one's WAL up to the
    switch, and the older file is archived as ``.partial`` at best. The newer timelines' history files come last.
    """
    timelines: dict[int, int] = {}
    for timeline, start, end in reversed(ranges):
        for segment in range(segment_of(start, size), last_segment_of(end, size) + 1):
            timelines[segment] = timeline
    names = [segment_name(timelines[segment], segment, size) for segment in sorted(timelines)]
    return names + [history_name(part.timeline) for part in reversed(ranges[:-1])]
