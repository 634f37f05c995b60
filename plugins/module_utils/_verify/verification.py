# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A verification as a whole: which backup, which checks, and its result.

The record of a detached verification is in a private folder of the user below the temporary directory, under a name
that the caller chooses. A verification whose result no task waits for ends by itself.

Private to pgfleet.basebackup. Room ``_verify``: whether a published backup is still what was published; it only reads.
"""

from __future__ import annotations

import os
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.detached import Recorder
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import Server
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import (
    Backup,
    Cluster,
    Published,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.programs import find
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.checksums import wrong_checksums
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.pg_verifybackup import run_tool
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.quick import QuickCheck, bad_file
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.wal import bad_wal, required_bytes
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import Archive, open_archive

FULL, WAL = "full", "wal"
_NAMED_IN_MESSAGE = 5


def chosen(cluster: Cluster, backup_id: str) -> Backup:
    """Return the published backup ``backup_id``; ``latest`` is the one that ended last, of this database cluster.

    Raises :class:`BackupError`: ``unknown_backup``, ``no_backup``, ``not_published``, ``other_cluster`` when there is
    none of this database cluster.
    """
    if backup_id != "latest":
        backup = cluster.get(backup_id)
        if not backup.published:
            raise BackupError(
                f"The backup {backup.id} in {cluster.path} is not published; it cannot be verified.",
                code="not_published",
                hint="pgfleet.basebackup.backup_info reports what it waits for.",
            )
        return backup
    published = cluster.published_in_order()
    if not published:
        raise BackupError(
            f"There is no published backup in {cluster.path}.",
            code="no_backup",
            hint="pgfleet.basebackup.backup_info lists the backups.",
        )
    own = [one.backup for one in published if _foreign(one) is None]
    if not own:
        raise t.cast(BackupError, _foreign(published[-1]))
    return own[-1]


def _foreign(one: Published) -> t.Optional[BackupError]:
    """Return why a published backup is not of this database cluster, None when it is, or when that is unknown."""
    error = one.error
    if one.record is not None:
        try:
            one.backup.refuse_foreign_control(one.record)
        except BackupError as exc:
            error = exc
    return error if error is not None and error.code == "other_cluster" else None


def _passed_over(backup: Backup) -> list[str]:
    """Return a warning for each other backup beside this one that is of another database cluster."""
    found = [_foreign(one) for one in backup.cluster.published_in_order() if one.backup.id != backup.id]
    return [f"{exc.msg} It is passed over." for exc in found if exc is not None]


class Options(t.NamedTuple):
    """What to verify, and how: arguments of ``backup_verify``."""

    levels: t.Sequence[str]
    jobs: int
    archive_directory: t.Optional[str]
    restore_command: t.Optional[str]
    pg_verifybackup: bool
    bin_directory: t.Optional[str]


def verify(
    backup: Backup, options: Options, check: t.Callable[[], None], recorder: t.Optional[Recorder] = None
) -> dict[str, t.Any]:
    """Return the part of the module's result that describes the backup: ``bad_files``, ``files``, ``bytes`` ...

    ``check`` is called ten times a second and stops everything by raising; ``recorder`` records the progress.
    Raises :class:`BackupError` when it cannot be verified at all.
    """
    begun = time.monotonic()
    try:
        record = backup.load()
    except BackupError as exc:
        if exc.code not in ("damaged_backup", "other_cluster"):
            raise
        return _result(backup, [bad_file("backup.json", "damaged", exc.msg)], begun)
    quick = QuickCheck(backup, record)
    bad = quick.bad_files
    if any(one["path"] == "backup.json" for one in bad):
        # With a wrong record all further checks would be wrong, too.
        return _result(backup, bad, begun)
    included = record.includes_wal
    reads_wal = WAL in options.levels or (FULL in options.levels and included)
    archive = None if included or not reads_wal else _archive(backup, record.server, options)
    # It reads only manifests of its own version.
    tool = find("pg_verifybackup", record.server.major, options.bin_directory) if options.pg_verifybackup else None
    files = quick.files
    hashed = [one for one in files if one.entry.algorithm] if FULL in options.levels else []
    hashed_bytes = sum(one.entry.size for one in hashed)
    result: dict[str, t.Any] = {"files": len(files), "bytes": sum(one.entry.size for one in files)}
    result["warnings"] = _passed_over(backup)
    if recorder:
        recorder.content.update(total_bytes=hashed_bytes + (required_bytes(record) if reads_wal else 0))

    def progress_from(start: int) -> t.Callable[[int, int], None]:
        def progress(done_bytes: int, done_files: int) -> None:
            if recorder:
                recorder.progress(start + done_bytes, done_files)

        return progress

    if FULL in options.levels:
        bad += wrong_checksums(hashed, options.jobs, check, progress_from(0))
        result["unchecked_files"] = len(files) - len(hashed)
        if result["unchecked_files"]:
            result["warnings"].append(
                f"The backup {backup.id} was made without checksums: only the sizes of its files could be checked."
            )
    if reads_wal:
        known = {one["path"] for one in bad}
        found = bad_wal(backup, record, archive, options.jobs, check, progress_from(hashed_bytes))
        bad += [one for one in found if one["path"] not in known]
        result["wal_files"] = len(record.required_wal)
    if tool:
        answer = run_tool(tool, backup, FULL in options.levels, included, check)
        result["pg_verifybackup"] = answer
        if not answer["ok"] and not bad:
            bad.append(bad_file("", "pg_verifybackup", f"Only pg_verifybackup found damage: {answer['output']}"))
    return {**_result(backup, bad, begun), **result}


def _result(backup: Backup, bad: t.Sequence[dict[str, str]], begun: float) -> dict[str, t.Any]:
    if not os.path.isdir(backup.path):
        raise BackupError(f"The backup {backup.path} was removed during its verification.", code="unknown_backup")
    return {
        "backup_id": backup.id,
        "directory": backup.path,
        "bad_files": list(bad),
        "seconds": round(time.monotonic() - begun, 3),
    }


def _archive(backup: Backup, server: Server, options: Options) -> Archive:
    directory = backup.cluster.archive_directory(options.archive_directory, options.restore_command)
    identifier = int(server.system_identifier)
    archive = open_archive(directory, options.restore_command, server.wal_segment_size, identifier)
    if archive is None:
        raise BackupError(
            f"The backup {backup.id} does not contain its WAL, and there is no archive to check.",
            code="no_archive",
            hint=f"Set {option('archive_directory')} or {option('restore_command')}.",
        )
    return archive


def damage(result: t.Mapping[str, t.Any]) -> t.Optional[BackupError]:
    """Return the error for a result with bad files, else None."""
    bad = result["bad_files"]
    if not bad:
        return None
    named = "; ".join(f"{one['path']}: {one['msg']}" if one["path"] else one["msg"] for one in bad[:_NAMED_IN_MESSAGE])
    more = f"; and {len(bad) - _NAMED_IN_MESSAGE} more" if len(bad) > _NAMED_IN_MESSAGE else ""
    details = {name: value for name, value in result.items() if name != "warnings"}
    return BackupError(
        f"The backup {result['backup_id']} is damaged. Bad files: {len(bad)}: {named}{more}",
        code="damaged_backup",
        **details,
    )
