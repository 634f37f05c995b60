# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backup to restore for a recovery target.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import BackupRecord
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import (
    Backup,
    Cluster,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.candidate import (
    Candidate,
    Choice,
    stopped_us,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.search import Searched
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.target import (
    LSN,
    NAME,
    TIME,
    XID,
    Target,
    format_time,
    in_words,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import Archive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import format_lsn


def choose_backup(cluster: Cluster, backup_id: t.Optional[str], target: Target, archive: t.Optional[Archive]) -> Choice:
    """Return the backup to recover to ``target`` from: ``backup_id``, or (None, ``latest``) the newest that can.

    A backup qualifies when it is published and undamaged, ended before the target, lies in the past of the target
    timeline, and ``archive`` and its own WAL have all the WAL that is needed. PostgreSQL then reaches the target, if
    the archive could be read. A target within the duration of a backup is refused, even when no record lies between the
    target and the backup's end. Times are assumed to rise along the WAL.

    Raises :class:`BackupError` that names the nearest possible point: ``no_backup``, ``target_not_found``,
    ``target_before_backup``, ``target_beyond_archive``, ``timeline_unreachable``, ``wal_incomplete`` (``missing``:
    every name), and the errors of reading backups and the archive.
    """
    asked = backup_id not in (None, "", "latest")
    backups = [_asked_for(cluster, str(backup_id))] if asked else _newest_first(cluster)
    searched: Searched = {}
    refusals = []
    for backup, record in backups:
        try:
            choice = Candidate(backup, record, target, archive, searched).judge()
        except BackupError as exc:
            if asked or exc.code not in _TRY_OLDER:
                raise
            refusals.append((backup.id, exc))
        else:
            return choice._replace(why=_why(choice, asked, refusals))
    raise min((exc for _id, exc in reversed(refusals)), key=lambda exc: _TRY_OLDER.index(exc.code))


# After these an older backup is tried. Of several refusals the first kind in this list says most, and of one kind that
# of the oldest backup.
_TRY_OLDER = ("target_before_backup", "target_not_found", "timeline_unreachable")


def _why(choice: Choice, asked: bool, refusals: t.Sequence[tuple[str, BackupError]]) -> str:
    backup, target = choice.backup.id, choice.target
    if asked:
        return f"The backup {backup} was requested."
    newest = "newest backup" if choice.target_checked else "newest backup, and the target could not be searched for"
    why = f"{backup} is the {newest}"
    if target.kind in (TIME, LSN):
        record = choice.record
        ended = format_time(stopped_us(record)) if target.kind == TIME else format_lsn(record.stop.lsn)
        why += f" that ended (at {ended}) before the target {target.text}"
    elif target.kind in (XID, NAME) and choice.target_checked:
        why += f" that ended before {in_words(target)} ({format_lsn(t.cast(int, choice.target_lsn))})"
    skipped = [name for name, exc in refusals if exc.code == "timeline_unreachable"]
    if skipped:
        why += f" and lies in the past of timeline {choice.path.timeline}, as {', '.join(skipped)} does not"
    return why + "."


def _asked_for(cluster: Cluster, backup_id: str) -> tuple[Backup, BackupRecord]:
    backup = cluster.get(backup_id)
    if not backup.published:
        raise BackupError(
            f"The backup {backup_id} in {cluster.path} is not published; it cannot be restored.",
            code="no_backup",
            hint="pgfleet.basebackup.backup_info shows what it waits for.",
        )
    record = backup.load()
    _require_files(backup)
    return backup, record


def _newest_first(cluster: Cluster) -> list[tuple[Backup, BackupRecord]]:
    """Return the undamaged published backups. Raises :class:`BackupError` when there is none."""
    found, damaged = [], []
    for backup, record, error in reversed(cluster.published_in_order()):
        if record is None:
            damaged.append(error.msg if error else "")
            continue
        try:
            _require_files(backup)
            backup.refuse_foreign_control(record)
        except BackupError as exc:
            damaged.append(exc.msg)
        else:
            found.append((backup, record))
    if not found:
        raise BackupError(
            " ".join([f"There is no backup in {cluster.path} that could be restored.", *damaged]),
            code="no_backup",
            hint="pgfleet.basebackup.backup_info lists the backups.",
        )
    return found


def _require_files(backup: Backup) -> None:
    lost = [os.fsdecode(path) for path in backup.layout().lost()]
    if lost:
        raise BackupError(f"The backup {backup.path} is damaged: {', '.join(lost)} is missing.", code="damaged_backup")
