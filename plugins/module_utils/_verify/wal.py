# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the WAL that a backup needs exists and can be read from its start to its end.

Private to pgfleet.basebackup. Room ``_verify``: whether a published backup is still what was published; it only reads.
"""

from __future__ import annotations

import hashlib
import json
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.workers import Reporter, batches, run_workers
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import BackupRecord
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.quick import BadFile, bad_file
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import timelines as _timelines
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import Archive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.records import scan_segments

# Problems of a file in the archive; any other error is one of reaching it.
FINDINGS = ("wal_missing", "history_missing", "bad_segment", "bad_history", "unreadable")


def required_bytes(record: BackupRecord) -> int:
    """Return the size of the WAL that the backup needs."""
    return sum(_sizes(record))


def _sizes(record: BackupRecord) -> list[int]:
    size = record.server.wal_segment_size
    return [size if _segments.is_segment_name(name) else 0 for name in record.required_wal]


def bad_wal(
    backup: Backup,
    record: BackupRecord,
    archive: t.Optional[Archive],
    jobs: int,
    check: t.Callable[[], None],
    progress: t.Callable[[int, int], None],
) -> t.Iterator[BadFile]:
    """Yield the WAL files of a backup that are missing or damaged: ``wal_missing``, ``bad_segment``, ``checksum``...

    The files are those in the backup itself when it includes its WAL, else those in ``archive``. A segment is good when
    it belongs to the cluster and its records follow each other without a gap as far as the backup needs them. The
    checksums of single records are not computed, those of included files are. ``jobs``, ``check`` and ``progress`` are
    as in :func:`.checksums.wrong_checksums`. Raises :class:`BackupError` when the archive cannot be reached.
    """
    done_bytes = done_files = 0

    def check_files(batch: t.Sequence[str], reporter: Reporter) -> None:
        for name in batch:
            finding = _finding(backup, record, archive, name)
            if _segments.is_segment_name(name):
                reporter.advance(record.server.wal_segment_size)
            reporter.finish(json.dumps(finding).encode("ascii") + b"\n" if finding else b"")

    for report in run_workers(batches(record.required_wal, _sizes(record)), check_files, jobs, check):
        done_bytes += report.done_bytes
        done_files += report.files
        progress(done_bytes, done_files)
        for line in report.lines.splitlines():
            yield json.loads(line)


def _finding(backup: Backup, record: BackupRecord, archive: t.Optional[Archive], name: str) -> t.Optional[BadFile]:
    included = record.includes_wal
    place = f"pg_wal/{name}" if included else name
    try:
        if included:
            _check_included(backup, record, name)
        elif archive is None:
            raise BackupError("There is no archive that could have it.", code="wal_missing")
        elif _segments.is_history_name(name):
            archive.history(int(name[:8], 16))
        else:
            _check_segment(record, name, archive.read(name))
    except BackupError as exc:
        if exc.code not in FINDINGS and exc.code != "checksum":
            raise
        return bad_file(place, exc.code, exc.msg)
    return None


def _check_included(backup: Backup, record: BackupRecord, name: str) -> None:
    try:
        with open(backup.layout().place(b"pg_wal/" + name.encode("ascii")), "rb") as stream:
            data = stream.read()
    except FileNotFoundError as exc:
        raise BackupError("The WAL file is missing.", code="wal_missing") from exc
    except OSError as exc:
        raise BackupError(f"It cannot be read: {exc.strerror}.", code="unreadable") from exc
    if _segments.is_segment_name(name):
        _check_segment(record, name, data)
    else:
        _timelines.parse_history(data.decode("ascii", "replace"))
    written = record.included_wal[name]
    found = hashlib.sha256(data).hexdigest()
    if found != written:
        raise BackupError(f"Its SHA256 is {found} instead of {written}.", code="checksum")


def _check_segment(record: BackupRecord, name: str, data: bytes) -> None:
    size = record.server.wal_segment_size
    _timeline, segment = _segments.parse_segment_name(name, size)
    # After the end of the backup the segment may be unfinished, by the server or by us.
    end = record.stop.lsn
    for scan in scan_segments([(segment, data)], size):
        if scan.stops_at is not None and scan.stops_at < end:
            raise BackupError(
                f"The WAL segment {name} cannot be read from {_segments.format_lsn(scan.stops_at)} on; the backup"
                f" needs the WAL up to {_segments.format_lsn(end)}.",
                code="bad_segment",
            )
