# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue: the clusters and backups in a repository, listed without a server.

Private to pgfleet.basebackup. Room ``_catalogue``: what a repository has, how far it can be recovered; it only reads.
"""

from __future__ import annotations

import os
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import (
    activity_of,
    modified,
    session_of,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._catalogue.drills import age_of, proven
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.clock import utc
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import BackupRecord, WalProof
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import (
    Backup,
    Cluster,
    Published,
    Repository,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import format_lsn


def catalogue(
    repository: Repository,
    name: t.Optional[str],
    max_age: t.Optional[float],
    system_identifier: t.Optional[str],
    proven_max_age: t.Optional[float] = None,
) -> list[dict[str, t.Any]]:
    """Return the entries documented as ``clusters`` of ``backup_info``; the ages are in seconds."""
    if name:
        return [_cluster(repository.cluster(name), max_age, system_identifier, proven_max_age)]
    found = []
    for one in repository.cluster_names():
        try:
            cluster = repository.cluster(one)
        except BackupError as exc:
            found.append(_unusable(one, f"{exc.msg} {exc.hint}", max_age, proven_max_age))
            continue
        found.append(_cluster(cluster, max_age, system_identifier, proven_max_age))
    return found


def _unusable(
    name: str, problem: str, max_age: t.Optional[float], proven_max_age: t.Optional[float]
) -> dict[str, t.Any]:
    """Return the entry of a cluster of which nothing is read."""
    lists: dict[str, t.Any] = {"backups": [], "unfinished": [], "not_ours": []}
    return {
        "name": name,
        "problem": problem,
        **dict.fromkeys(("system_identifier", "newest", "newest_age_seconds")),
        "fresh": None if max_age is None else False,
        "proven_recently": None if proven_max_age is None else False,
        **lists,
    }


def _cluster(
    cluster: Cluster,
    max_age: t.Optional[float],
    system_identifier: t.Optional[str],
    proven_max_age: t.Optional[float],
) -> dict[str, t.Any]:
    problem = identifier = None
    try:
        identifier = cluster.system_identifier()
    except BackupError as exc:
        problem = exc.msg
    # Before the published ones, so that a backup that is published in between is listed in any case.
    unfinished = [_unfinished(backup) for backup in cluster.unfinished()]
    backups = [_published(one) for one in cluster.published_in_order()]
    if proven_max_age is not None:
        for one in backups:
            one["proven_recently"] = age_of(one["proven_at"]) < proven_max_age
    good = [
        one
        for one in backups
        if one["state"] == "published" and (system_identifier is None or one["system_identifier"] == system_identifier)
    ]
    newest = good[-1] if good else None
    return {
        "name": cluster.name,
        "system_identifier": identifier,
        "problem": problem,
        "backups": backups,
        "unfinished": [one for one in unfinished if os.path.isdir(one["directory"])],
        "not_ours": [{"directory": one.path, "reason": one.reason} for one in cluster.foreign()],
        "newest": newest["backup_id"] if newest else None,
        "newest_age_seconds": newest["age_seconds"] if newest else None,
        "fresh": None if max_age is None else newest is not None and 0 <= newest["age_seconds"] < max_age,
        "proven_recently": None if proven_max_age is None else any(one["proven_recently"] for one in backups),
    }


# The fields of a backup in the catalogue; of a damaged backup each may be null.
_DETAILS = (
    *("system_identifier", "kind", "label", "version", "from_standby", "start_lsn", "stop_lsn", "timeline"),
    *("started_at", "stopped_at", "age_seconds", "bytes", "files", "copy_seconds", "required_wal", "wal"),
    *("wal_proven_by", "data_directory", "proven_at", "proven_by", "proven_until", "last_drill", "proven_recently"),
)


def _published(one: Published) -> dict[str, t.Any]:
    backup, record = one.backup, one.record
    problem = one.error.msg if one.error else None
    if record:
        lost = backup.layout().lost()
        problem = f"{', '.join(map(printable, lost))} is missing." if lost else _foreign_control(backup, record)
    return {
        "backup_id": backup.id,
        "directory": backup.path,
        "state": "damaged" if problem else "published",
        "problem": problem,
        **dict.fromkeys(_DETAILS),
        **(_details(record) if record else {}),
    }


def _foreign_control(backup: Backup, record: BackupRecord) -> t.Optional[str]:
    try:
        backup.refuse_foreign_control(record)
    except BackupError as exc:
        return exc.msg
    return None


def _details(record: BackupRecord) -> dict[str, t.Any]:
    start, stop, copy, server = record.start, record.stop, record.copy, record.server
    proof = t.cast(WalProof, record.wal_proof)
    return {
        "system_identifier": server.system_identifier,
        "kind": record.kind,
        "label": record.label,
        "version": server.version,
        "data_directory": server.data_directory,
        "from_standby": start.from_standby,
        "start_lsn": format_lsn(start.lsn),
        "stop_lsn": format_lsn(stop.lsn),
        "timeline": stop.timeline,
        "started_at": utc(start.started_at),
        "stopped_at": utc(stop.stopped_at),
        "age_seconds": time.time() - stop.stopped_at,
        "bytes": copy.bytes,
        "files": copy.files,
        "copy_seconds": copy.seconds,
        "required_wal": list(record.required_wal),
        "wal": record.wal,
        "wal_proven_by": f"{proof.method} {proof.source}".strip(),
        **proven(record),
    }


def _unfinished(backup: Backup) -> dict[str, t.Any]:
    activity = activity_of(backup)
    try:
        created = backup.load().created_at
    except BackupError:
        created = modified(backup.path)
    return {
        "backup_id": backup.id,
        "directory": backup.path,
        "state": activity.state,
        "problem": activity.reason or None,
        "working": activity.locked,
        "session_alive": session_of(backup).alive(),
        "owner": activity.owner,
        "since": utc(activity.since) if activity.since else None,
        "silent_seconds": round(activity.silence, 1),
        "percent": activity.progress.get("percent"),
        "age_seconds": round(time.time() - created, 1),
    }
