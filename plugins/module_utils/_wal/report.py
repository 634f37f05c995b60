# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of a WAL archive: its files by kind, its timelines and their gaps.

Private to pgfleet.basebackup. Room ``_wal``: names, records and archives of WAL; it knows no server and no backup.

Source: PostgreSQL, section "Continuous Archiving and Point-in-Time Recovery"; the names are those of xlog_internal.h.
"""

from __future__ import annotations

import collections
import os
import re
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import DirectoryArchive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.files import UNREADABLE, Entry, list_files, load
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.path import Path, path_segment
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import is_segment, segment_numbers
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.timelines import HistoryEntry

# Most names reported for one gap, and for each kind of unexpected file.
LISTED = 100
HEADER_BYTES = 8192
_PARTIAL = re.compile(r"[0-9A-F]{24}\.partial")
_BACKUP_HISTORY = re.compile(r"[0-9A-F]{24}\.[0-9A-F]{8}\.backup")

# Those of pgfleet_wal.py and basic_archive, and common ones.
_TEMPORARY = re.compile(r"\..*|archtemp.*|.*\.(tmp|temp|part)|.*~")


class _Sorted(t.NamedTuple):
    """The files of an archive by kind."""

    segments: list[Entry]
    histories: list[Entry]
    labels: list[Entry]
    partials: list[Entry]
    temporary: list[Entry]
    incomplete: list[Entry]
    unknown: list[Entry]


def detect(directory: str) -> tuple[t.Optional[int], t.Optional[int]]:
    """Return segment size and system identifier from the newest readable segment, (None, None) without one."""
    for entry in sorted(list_files(directory), key=lambda one: one.mtime, reverse=True):
        if _segments.is_segment_name(entry.name):
            try:
                header = _segments.parse_segment_header(
                    load(os.path.join(directory, entry.file), entry.suffix, HEADER_BYTES)
                )
            except (BackupError, *UNREADABLE):
                continue
            return header.segment_size, header.system_identifier
    return None, None


def _names(entries: t.Iterable[Entry]) -> list[str]:
    return [entry.file for entry in entries]


def _sort(archive: DirectoryArchive) -> _Sorted:
    files = _Sorted([], [], [], [], [], [], [])
    for entry in archive.entries():
        history = _segments.is_history_name(entry.name)
        if archive.counts(entry):
            (files.histories if history else files.segments).append(entry)
        elif history or is_segment(entry.name, archive.size):
            files.incomplete.append(entry)
        elif _BACKUP_HISTORY.fullmatch(entry.name):
            files.labels.append(entry)
        elif _PARTIAL.fullmatch(entry.name):
            files.partials.append(entry)
        elif _TEMPORARY.fullmatch(entry.file):
            files.temporary.append(entry)
        else:
            files.unknown.append(entry)
    return files


def _twice(entries: t.Iterable[Entry]) -> list[str]:
    return sorted(name for name, times in collections.Counter(entry.name for entry in entries).items() if times > 1)


def _growth(entries: t.Sequence[Entry], window: float) -> t.Optional[int]:
    """Return the bytes per hour archived in the last ``window`` seconds, or since the oldest file if that is shorter.

    None when that is less than a minute, too short for an estimate.
    """
    now = time.time()
    span = min(window, now - min((entry.mtime for entry in entries), default=now))
    if span < 60:
        return None
    return int(sum(entry.size for entry in entries if entry.mtime > now - span) * 3600 / span)


def _foreign(archive: DirectoryArchive, segments: t.Sequence[Entry], every: bool) -> list[str]:
    """Return the segments whose first page is another cluster's, or another position's."""
    foreign = []
    numbers = {entry.name: _segments.parse_segment_name(entry.name, archive.size) for entry in segments}
    there = set(numbers.values())
    for entry in segments:
        timeline, number = numbers[entry.name]
        if not every and {(timeline, number - 1), (timeline, number + 1)} <= there:
            continue
        try:
            first = load(os.path.join(archive.directory, entry.file), entry.suffix, HEADER_BYTES)
            identifier = archive.system_identifier or _segments.parse_segment_header(first).system_identifier
            _segments.check_segment(first, entry.name, archive.size, identifier)
        except FileNotFoundError:
            continue
        except (BackupError, *UNREADABLE) as exc:
            if isinstance(exc, BackupError) and exc.code == "tool_missing":
                raise
            foreign.append(entry.name)
    return foreign


def _histories(
    archive: DirectoryArchive, present: t.AbstractSet[str]
) -> tuple[dict[int, list[HistoryEntry]], list[str], list[str]]:
    """Return the history of each timeline that has segments or a history file, the missing files, and problems."""
    names = {name for name in archive.names() if _segments.is_history_name(name)}
    wanted = {int(name[:8], 16) for name in (*present, *names)}
    histories: dict[int, list[HistoryEntry]] = {}
    missing, problems = [], []
    for timeline in sorted(wanted, reverse=True):
        try:
            histories[timeline] = archive.history(timeline)
        except BackupError as exc:
            if exc.code == "history_missing":
                missing.append(_segments.history_name(timeline))
            else:
                problems.append(exc.msg)
    return histories, sorted(missing), problems


def _timelines(
    size: int, present: t.AbstractSet[str], histories: t.Mapping[int, list[HistoryEntry]]
) -> list[dict[str, t.Any]]:
    """Return each timeline that has segments, with the gaps that begin on it."""
    numbers = segment_numbers(present, size)
    # Paths that share an ancestor share its gaps.
    gaps: dict[int, dict[tuple[str, ...], dict[str, t.Any]]] = {timeline: {} for timeline in numbers}
    for timeline in sorted(numbers):
        for gap in _gaps(size, numbers, Path(timeline, histories.get(timeline, []))):
            key = (*gap["missing"], str(gap["count"]))
            gaps.setdefault(int(key[0][:8], 16), {}).setdefault(key, gap)
    found_timelines = []
    for timeline, found in sorted(gaps.items()):
        own = sorted(numbers.get(timeline, ()))
        first, last = (_segments.segment_name(timeline, own[at], size) if own else None for at in (0, -1))
        found_timelines.append(
            {"timeline": timeline, "first": first, "last": last, "segments": len(own), "gaps": list(found.values())}
        )
    return found_timelines


def _gaps(size: int, numbers: t.Mapping[int, set[int]], path: Path) -> t.Iterator[dict[str, t.Any]]:
    """Yield the gaps between the first and the last segment that the archive has along a path.

    The segment of a timeline switch is expected on the newer timeline only: the older one never completes it.
    """
    on_path = sorted(
        number
        for timeline in (*(entry.timeline for entry in path.history), path.timeline)
        for number in numbers.get(timeline, ())
        if path_segment(path, number, size) == _segments.segment_name(timeline, number, size)
    )
    for before, after in zip(on_path, on_path[1:]):
        if after > before + 1:
            yield {
                "after": path_segment(path, before, size),
                "before": path_segment(path, after, size),
                "count": after - before - 1,
                "missing": [
                    path_segment(path, number, size) for number in range(before + 1, min(after, before + 1 + LISTED))
                ],
            }
