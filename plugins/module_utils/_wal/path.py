# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The path of timelines that recovery takes.

Private to pgfleet.basebackup. Room ``_wal``: names, records and archives of WAL; it knows no server and no backup.
"""

from __future__ import annotations

import sys
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import Archive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.timelines import HistoryEntry


class Path(t.NamedTuple):
    """A timeline to recover along, and its ancestors, oldest first."""

    timeline: int
    history: list[HistoryEntry]


def timeline_path(archive: Archive, start_timeline: int, start_lsn: int, wanted: str) -> Path:
    """Return the path that ``recovery_target_timeline`` = ``wanted`` means for a server at this position.

    The position, best the end of a backup, must be in the past of the target timeline, or recovery refuses to start.
    ``latest`` is the newest timeline for which the archive has all histories after ``start_timeline``; ``current`` is
    ``start_timeline``; otherwise it is a number, decimal or 0x... Raises :class:`BackupError`: ``bad_timeline`` for
    another word, ``timeline_unknown`` without its history, ``timeline_unreachable`` when the
    position is not in its past.
    """
    timeline = start_timeline
    if wanted == "latest":
        while archive.has(_segments.history_name(timeline + 1)):
            timeline += 1
    elif wanted != "current":
        timeline = _timeline_number(wanted)
    try:
        history = archive.history(timeline)
    except BackupError as exc:
        if exc.code != "history_missing":
            raise
        if timeline != start_timeline:
            raise BackupError(
                f"Timeline {timeline} is unknown: {exc.msg}",
                code="timeline_unknown",
                hint="Put the file back into the archive, or recover along latest or current.",
                missing=exc.details["missing"],
            ) from exc
        history = []
    path = Path(timeline, history)
    begin = 0
    for ancestor, end in (*history, HistoryEntry(timeline, sys.maxsize)):
        if ancestor == start_timeline and begin <= start_lsn <= end:
            return path
        begin = end
    raise BackupError(
        f"Timeline {timeline} cannot be reached from timeline {start_timeline} at {_segments.format_lsn(start_lsn)}: "
        + ", ".join(f"it left timeline {entry.timeline} at {_segments.format_lsn(entry.end)}" for entry in history)
        + ".",
        code="timeline_unreachable",
        hint="Recover along another timeline, or from an older backup.",
    )


def _timeline_number(text: str) -> int:
    try:
        number = int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        number = 0
    if not 0 < number <= 0xFFFFFFFF:
        raise BackupError(
            f"{text!r} is not a timeline.", code="bad_timeline", hint="Use latest, current or the number of a timeline."
        )
    return number


def path_segment(path: Path, segment: int, size: int) -> str:
    """Return the file name of a segment on a path; where the timeline changes within it, the newer timeline's."""
    for entry in path.history:
        if (segment + 1) * size <= entry.end:
            return _segments.segment_name(entry.timeline, segment, size)
    return _segments.segment_name(path.timeline, segment, size)


def needed_segments(path: Path, start_lsn: int, end_lsn: int, size: int) -> list[str]:
    """Return the files that recovery from ``start_lsn`` to ``end_lsn`` reads, oldest segment first, the history last.

    The server needs only the history of the path's last timeline.
    """
    names = [
        path_segment(path, segment, size)
        for segment in range(_segments.segment_of(start_lsn, size), _segments.last_segment_of(end_lsn, size) + 1)
    ]
    return names + ([_segments.history_name(path.timeline)] if path.history else [])
