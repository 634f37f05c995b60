# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A new backup: its directory with the record, and the session that holds it open.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.
"""

from __future__ import annotations

import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import adopt as _adopt
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import copy_process as _copy_process
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import (
    claim_locked,
    host_name,
    session_of,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.clock import utc_name
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import (
    INCLUDE,
    STARTED,
    BackupRecord,
    Server,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record_file import run_by_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import (
    Backup,
    Cluster,
    check_name,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import connection_kwargs


class NewBackup(t.NamedTuple):
    """A backup whose directory has been made, and its lock, which is held until the session is running."""

    backup: Backup
    lock: t.ContextManager[int]


def default_id(cluster: Cluster, kind: str) -> str:
    """Return a free id: UTC time plus kind, for example ``20261122T081500Z-full``."""
    base = f"{utc_name()}-{kind}"
    names = {backup.id for backup in cluster.unfinished() + cluster.published()}
    names |= {one.name for one in cluster.foreign()}
    return next(name for name in [base] + [f"{base}-{number}" for number in range(2, 10000)] if name not in names)


def create(cluster: Cluster, params: t.Mapping[str, t.Any], info: t.Mapping[str, t.Any]) -> NewBackup:
    """Make the directory of a new backup; the caller holds the catalogue's lock.

    ``params`` are the arguments of ``backup_start``, ``info`` is that of :func:`_server.server_info`.
    Raises BackupError, code ``bad_name``.
    """
    backup_id = params["backup_id"] or default_id(cluster, "full")
    check_name(backup_id, "The backup_id")
    backup = cluster.new_backup(
        BackupRecord(
            backup_id=backup_id,
            cluster=cluster.name,
            state=STARTED,
            kind="full",
            wal=params["wal"],
            host=host_name(),
            label=params["label"] or f"pgfleet.basebackup {cluster.name} {backup_id}",
            created_at=time.time(),
            session_idle_timeout=params["session_idle_timeout"],
            server=_server_of(info),
        )
    )
    # Locked before the catalogue's lock is released: no run may mistake it for one whose session has died.
    lock = backup.hold()
    lock.__enter__()
    claim_locked(backup, params["owner"])
    return NewBackup(backup, lock)


def _server_of(info: t.Mapping[str, t.Any]) -> Server:
    """Return the facts of ``server_info`` that a backup records: those that do not change from minute to minute."""
    facts = {name: info[name] for name in Server._fields if name != "run_by"}
    facts["run_by"] = run_by_of(info.get("run_by"))
    return Server(**{**facts, "config_files_outside": tuple(info["config_files_outside"])})


def launch(new: NewBackup, params: t.Mapping[str, t.Any], info: t.Mapping[str, t.Any]) -> None:
    """Start the session of a new backup, which is removed when that fails, and release its lock.

    Raises BackupError as the session does.
    """
    backup = new.backup
    try:
        record = backup.load()
        # A copy that the user's own step makes must contain every file that the server has now.
        live = _copy_process.scan_source(record.server, follow_symlinks=False)
        _adopt.write_listing(backup.file(_adopt.LISTING), live)
        session = session_of(backup)
        name = f"pgfleet.basebackup {backup.cluster.name}/{backup.id}"
        session.launch(
            {
                "connection": connection_kwargs(params, name[:63], info["version_num"]),
                "label": record.label,
                "fast": params["fast"],
                "from_standby": info["role"] == "standby",
                "system_identifier": info["system_identifier"],
                "reserve_wal": params["wal"] == INCLUDE,
                "session_timeout": params["session_timeout"],
                "session_idle_timeout": params["session_idle_timeout"],
            }
        )
        session.wait_started()
    except BaseException:
        if session_of(backup).alive():
            session_of(backup).ask("abort")
        backup.remove()
        raise
    finally:
        new.lock.__exit__(None, None, None)
