# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of a WAL archive: what is there, what is missing, and up to when each backup can be recovered.

Private to pgfleet.basebackup: no stability is promised. Source: PostgreSQL, section "Continuous Archiving and
Point-in-Time Recovery"; the names are those of xlog_internal.h.
"""

from __future__ import annotations

import collections
import datetime
import os
import re
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils import _wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._archive import (
    DirectoryArchive,
    Path,
    is_segment,
    needed_segments,
    path_segment,
    segment_numbers,
    timeline_path,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._reach import reach
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository import Backup, Cluster
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import HistoryEntry
from ansible_collections.pgfleet.basebackup.plugins.module_utils._walfile import UNREADABLE, Entry, list_files, load

# Names told of one gap, and of each kind of odd file.
LISTED = 100
HEADER_BYTES = 8192
_PARTIAL = re.compile(r"[0-9A-F]{24}\.partial")
_BACKUP_HISTORY = re.compile(r"[0-9A-F]{24}\.[0-9A-F]{8}\.backup")
# Of our own script, of basic_archive, and what people use.
_TEMPORARY = re.compile(r"\..*|archtemp.*|.*\.(tmp|temp|part)|.*~")


class _Sorted(t.NamedTuple):
    """The files of an archive by what they are."""

    segments: list[Entry]
    histories: list[Entry]
    labels: list[Entry]
    partials: list[Entry]
    temporary: list[Entry]
    incomplete: list[Entry]
    unknown: list[Entry]


def archive_info(
    archive: DirectoryArchive, cluster: t.Optional[Cluster], window: float, every_header: bool
) -> dict[str, t.Any]:
    """Return what the module wal_archive_info documents; ``window`` in seconds.

    ``every_header`` looks into all segments for another cluster's, else into those at the ends of each stretch.
    """
    files = _sort(archive)
    foreign = _foreign(archive, files.segments, every_header)
    present = {entry.name for entry in files.segments} - set(foreign)
    histories, missing_histories, problems = _histories(archive, present)
    timelines = _timelines(archive.size, present, histories)
    by_age = sorted(files.segments, key=lambda entry: (entry.mtime, entry.name))
    kept = [entry for kind in (files.segments, files.histories, files.labels, files.partials) for entry in kind]
    backups = [_backup(archive, backup) for backup in cluster.published()] if cluster else []
    for one in timelines:
        problems += [
            f"{gap['count']} WAL files are missing between {gap['after']} and {gap['before']}, from"
            f" {gap['missing'][0]} on."
            for gap in one["gaps"]
        ]
    for what, names in (
        ("History files are missing", missing_histories),
        ("Files of another cluster", foreign),
        ("Files shorter than a segment, still being written or left by a crash", _names(files.incomplete)),
        ("Files present twice, with different endings", _twice(kept)),
    ):
        if names:
            problems.append(f"{what}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}.")
    problems += [f"Backup {one['backup_id']}: {one['problem']}" for one in backups if one["problem"]]
    return {
        "timelines": timelines,
        "missing_histories": missing_histories,
        "partials": _names(files.partials)[-LISTED:],
        "foreign": foreign[:LISTED],
        "temporary": _names(files.temporary)[:LISTED],
        "unknown": _names(files.unknown)[:LISTED],
        "files": len(kept),
        "bytes": sum(entry.size for entry in kept),
        "bytes_per_hour": _growth(kept, window),
        "newest": by_age[-1].name if by_age else None,
        "newest_age_seconds": round(max(0.0, time.time() - by_age[-1].mtime), 1) if by_age else None,
        "backups": backups,
        "problems": problems,
    }


def detect(directory: str) -> tuple[t.Optional[int], t.Optional[int]]:
    """Return segment size and system identifier that the newest readable segment of an archive tells, or None."""
    for entry in sorted(list_files(directory), key=lambda one: one.mtime, reverse=True):
        if _wal.is_segment_name(entry.name):
            try:
                header = _wal.parse_segment_header(
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
        history = _wal.is_history_name(entry.name)
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
    """Return the bytes per hour that came in the last ``window`` seconds, or since the oldest file when it is younger.

    None when that is less than a minute, from which nothing can be told.
    """
    now = time.time()
    span = min(window, now - min((entry.mtime for entry in entries), default=now))
    if span < 60:
        return None
    return int(sum(entry.size for entry in entries if entry.mtime > now - span) * 3600 / span)


def _foreign(archive: DirectoryArchive, segments: t.Sequence[Entry], every: bool) -> list[str]:
    """Return the segments whose first page is another cluster's, or another position's."""
    foreign = []
    numbers = {entry.name: _wal.parse_segment_name(entry.name, archive.size) for entry in segments}
    there = set(numbers.values())
    for entry in segments:
        timeline, number = numbers[entry.name]
        if not every and {(timeline, number - 1), (timeline, number + 1)} <= there:
            continue
        try:
            first = load(os.path.join(archive.directory, entry.file), entry.suffix, HEADER_BYTES)
            identifier = archive.system_identifier or _wal.parse_segment_header(first).system_identifier
            _wal.check_segment(first, entry.name, archive.size, identifier)
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
    names = {name for name in archive.names() if _wal.is_history_name(name)}
    wanted = {int(name[:8], 16) for name in (*present, *names)}
    histories: dict[int, list[HistoryEntry]] = {}
    missing, problems = [], []
    for timeline in sorted(wanted, reverse=True):
        try:
            histories[timeline] = archive.history(timeline)
        except BackupError as exc:
            if exc.code == "history_missing":
                missing.append(_wal.history_name(timeline))
            else:
                problems.append(exc.msg)
    return histories, sorted(missing), problems


def _timelines(
    size: int, present: t.AbstractSet[str], histories: t.Mapping[int, list[HistoryEntry]]
) -> list[dict[str, t.Any]]:
    """Return each timeline that has segments, with the gaps that begin on it."""
    numbers = segment_numbers(present, size)
    # Paths that share an ancestor have its gaps in common.
    gaps: dict[int, dict[tuple[str, ...], dict[str, t.Any]]] = {timeline: {} for timeline in numbers}
    for timeline in sorted(numbers):
        for gap in _gaps(size, numbers, Path(timeline, histories.get(timeline, []))):
            key = (*gap["missing"], str(gap["count"]))
            gaps.setdefault(int(key[0][:8], 16), {}).setdefault(key, gap)
    told = []
    for timeline, found in sorted(gaps.items()):
        own = sorted(numbers.get(timeline, ()))
        first, last = (_wal.segment_name(timeline, own[at], size) if own else None for at in (0, -1))
        told.append(
            {"timeline": timeline, "first": first, "last": last, "segments": len(own), "gaps": list(found.values())}
        )
    return told


def _gaps(size: int, numbers: t.Mapping[int, set[int]], path: Path) -> t.Iterator[dict[str, t.Any]]:
    """Yield what is missing between the first and the last segment that is there along a path.

    The segment of a timeline switch is looked for on the newer timeline only: of the older one it never becomes whole.
    """
    on_path = sorted(
        number
        for timeline in (*(entry.timeline for entry in path.history), path.timeline)
        for number in numbers.get(timeline, ())
        if path_segment(path, number, size) == _wal.segment_name(timeline, number, size)
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


def _backup(archive: DirectoryArchive, backup: Backup) -> dict[str, t.Any]:
    """Return how far a published backup can be recovered with this archive."""
    entry: dict[str, t.Any] = {
        "backup_id": backup.id,
        "wal": "incomplete",
        "missing": [],
        "timeline": None,
        "recoverable_until": None,
        "recoverable_until_lsn": None,
        "problem": None,
    }
    try:
        content = backup.load()
        start = _wal.parse_lsn(content["start"]["start_lsn"])
        stop = _wal.parse_lsn(content["stop"]["stop_lsn"])
        timeline = content["stop"]["timeline"]
        required = content["required_wal"]
        mode = content.get("wal", "archive")
    except BackupError as exc:
        return {**entry, "problem": exc.msg}
    except (KeyError, TypeError, ValueError) as exc:
        return {**entry, "problem": f"backup.json is not what was written: {exc!r}"}
    try:
        path = _path(archive, timeline, stop)
    except BackupError as exc:
        return {**entry, "problem": exc.msg}
    names = archive.names()
    missing = [name for name in required if name not in names]
    if missing and not [name for name in needed_segments(path, start, stop, archive.size) if name not in names]:
        # The end of it is kept on a newer timeline only.
        missing = []
    entry["timeline"] = path.timeline
    if mode == "include":
        entry["wal"] = "included"
    elif missing:
        entry.update(missing=missing, wal="none" if mode == "none" else "incomplete")
        if mode != "none":
            entry["problem"] = f"{len(missing)} WAL files that it needs are missing, the first is {missing[0]}."
        return entry
    else:
        entry["wal"] = "present"
    entry["recoverable_until_lsn"] = _wal.format_lsn(stop)
    try:
        found = reach(archive, path, stop)
    except BackupError as exc:
        return {**entry, "problem": exc.msg}
    if found.last_lsn is not None:
        entry["recoverable_until_lsn"] = _wal.format_lsn(found.last_lsn)
    if found.last_time_us is not None:
        entry["recoverable_until"] = utc_us(found.last_time_us)
    if found.damage:
        entry["problem"] = f"recovery ends before {found.first_missing}: {found.damage.msg}"
    elif found.gap:
        entry["problem"] = f"recovery ends before {found.first_missing}, which is missing."
    return entry


def _path(archive: DirectoryArchive, timeline: int, stop: int) -> Path:
    """Return the path to the newest timeline that goes on from the backup's end."""
    try:
        return timeline_path(archive, timeline, stop, "latest")
    except BackupError as exc:
        if exc.code != "timeline_unreachable":
            raise
        return timeline_path(archive, timeline, stop, "current")


def utc_us(time_us: int) -> str:
    """Return microseconds since the epoch as ISO 8601 in UTC, with microseconds."""
    epoch = datetime.datetime(1970, 1, 1)
    return (epoch + datetime.timedelta(microseconds=time_us)).isoformat(timespec="microseconds") + "Z"
