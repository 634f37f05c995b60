# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of a stopped backup: a restore must not refuse it, nor use tablespaces of the live server.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.

Each check raises BackupError when the backup is void.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.control import ControlFile
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.label import BackupLabel
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.tree import version_directory
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.plain import PlainLayout
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import Server
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session.state import State
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import format_lsn


def refuse_new_tablespaces(backup_id: str, state: State, data_directory: str) -> None:
    """Raise BackupError, code ``tablespace_created``, when the server has tablespaces that it lacked at the start.

    Such a tablespace is not in the map, so replay would use its original location. ``state`` is the session's record.
    """
    before, after = state["tablespaces"], state["tablespaces_after"]
    known = {one["oid"]: one["location"] for one in before}
    new = [one for one in after if known.get(one["oid"]) != one["location"]]
    # On a standby replay makes the link before the row in pg_tablespace is visible.
    links = os.listdir(os.path.join(data_directory, "pg_tblspc"))
    linked = sorted(int(name) for name in links if name.isdigit() and int(name) not in known)
    if new or linked:
        names = [f"{_text(one['name'])} at {_text(one['location'])}" for one in new]
        raise BackupError(
            f"A tablespace was created during the backup {backup_id}: {', '.join(names) or linked}. A restore would"
            " use its original location.",
            code="tablespace_created",
            hint="The backup is void; take a new one.",
        )


def _text(digits: str) -> str:
    return bytes.fromhex(digits).decode("utf-8", "replace")


def refuse_lost_tablespaces(oids: t.Iterable[int], server: Server, layout: PlainLayout) -> None:
    """Raise BackupError, code ``tablespace_not_copied``, when the copy lacks one of the tablespaces ``oids``."""
    version = version_directory(server.major, server.catalog_version)
    lost = [oid for oid in oids if not os.path.isdir(layout.tablespace(oid) + b"/" + version)]
    if lost:
        raise BackupError(f"The tablespaces with the oids {lost} are not in the copy.", code="tablespace_not_copied")


def check_control(control: ControlFile, label: BackupLabel, stop_lsn: int, server: Server) -> None:
    """Raise BackupError when the copied ``pg_control`` contradicts the label, or needs WAL beyond the stop."""
    if str(control.system_identifier) != server.system_identifier:
        raise BackupError("The copied pg_control belongs to another cluster.", code="other_cluster")
    if (label.backup_from == "standby") != control.in_recovery:
        raise BackupError(
            f"The backup is from a {label.backup_from}, but the copied pg_control has the state {control.state}: a"
            " restore would refuse it.",
            code="control_inconsistent",
            hint="The server changed its role; take a new backup.",
        )
    if label.backup_from == "standby" and control.min_recovery_point > stop_lsn:
        raise BackupError(
            f"The copied pg_control needs WAL up to {format_lsn(control.min_recovery_point)}, but the backup ends at"
            f" {format_lsn(stop_lsn)}: pg_control was copied after the stop.",
            code="control_too_new",
            hint="Take a new backup, and leave global/pg_control to backup_stop.",
        )
