# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Up to when each backup can be recovered with an archive.

Private to pgfleet.basebackup. Room ``_catalogue``: what a repository has, how far it can be recovered; it only reads.
"""

from __future__ import annotations

import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.clock import utc_microseconds
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import INCLUDE, NONE
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup, Cluster
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import DirectoryArchive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.path import Path, needed_segments, timeline_path
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.reach import reach
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.report import (
    LISTED,
    _foreign,
    _growth,
    _histories,
    _names,
    _sort,
    _timelines,
    _twice,
)


def archive_info(
    archive: DirectoryArchive, cluster: t.Optional[Cluster], window: float, every_header: bool
) -> dict[str, t.Any]:
    """Return what the module wal_archive_info documents; ``window`` in seconds.

    ``every_header`` reads the headers of all segments to find those of another cluster, else only of those at the ends
    of each contiguous range.
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
        record = backup.load()
    except BackupError as exc:
        return {**entry, "problem": exc.msg}
    start, stop = record.start.lsn, record.stop.lsn
    try:
        path = _path(archive, record.stop.timeline, stop)
    except BackupError as exc:
        return {**entry, "problem": exc.msg}
    names = archive.names()
    missing = [name for name in record.required_wal if name not in names]
    if missing and not [name for name in needed_segments(path, start, stop, archive.size) if name not in names]:
        # Its end is archived on a newer timeline only.
        missing = []
    entry["timeline"] = path.timeline
    if record.wal == INCLUDE:
        entry["wal"] = "included"
    elif missing:
        entry.update(missing=missing, wal="none" if record.wal == NONE else "incomplete")
        if record.wal != NONE:
            entry["problem"] = f"{len(missing)} WAL files that it needs are missing, the first is {missing[0]}."
        return entry
    else:
        entry["wal"] = "present"
    entry["recoverable_until_lsn"] = _segments.format_lsn(stop)
    try:
        found = reach(archive, path, stop)
    except BackupError as exc:
        return {**entry, "problem": exc.msg}
    if found.last_lsn is not None:
        entry["recoverable_until_lsn"] = _segments.format_lsn(found.last_lsn)
    if found.last_time_us is not None:
        entry["recoverable_until"] = utc_microseconds(found.last_time_us)
    if found.damage:
        entry["problem"] = f"recovery ends before {found.first_missing}: {found.damage.msg}"
    elif found.gap:
        entry["problem"] = f"recovery ends before {found.first_missing}, which is missing."
    return entry


def _path(archive: DirectoryArchive, timeline: int, stop: int) -> Path:
    """Return the path to the newest timeline that continues after the backup's end."""
    try:
        return timeline_path(archive, timeline, stop, "latest")
    except BackupError as exc:
        if exc.code != "timeline_unreachable":
            raise
        return timeline_path(archive, timeline, stop, "current")
