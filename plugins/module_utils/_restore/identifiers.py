# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the backup, its record, its cluster in the repository and the data directory are of one database cluster.

An unknown identifier equals none: whoever restores over existing files must know whose they are.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.control import parse_control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Cluster
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.candidate import Choice
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.contents import Contents, read_verified
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.findings import Findings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import CONTROL, wal_directory
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.pg_wal import read_header
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import (
    CLUSTER,
    INTERRUPTED,
    Destination,
    control_in,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.quick import Found
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import (
    is_segment_name,
    parse_segment_header,
)

# The newest segments say whose they are.
_SEGMENTS = 4


def check_identifiers(
    findings: Findings,
    cluster: Cluster,
    destination: Destination,
    delta: bool,
    choice: t.Optional[Choice] = None,
    contents: t.Optional[Contents] = None,
) -> None:
    """Refuse a backup of another cluster, and with ``delta`` a data directory that is not provably of the same one.

    Raises BackupError for a damaged record of the cluster.
    """
    known = {f"{cluster.path}/cluster.json": cluster.system_identifier()}
    if choice is not None:
        known[f"{choice.backup.path}/backup.json"] = choice.record.server.system_identifier
    if contents is not None and CONTROL in contents.small:
        known[printable(contents.small[CONTROL].place)] = _of_backup(contents.small[CONTROL])
    found = {one for one in known.values() if one}
    if len(found) > 1:
        said = ", ".join(f"{place} has {identifier or 'none'}" for place, identifier in known.items())
        findings.refuse(
            "other_cluster",
            f"The backup is not of this database cluster; the system identifiers differ: {said}.",
            "Somebody has copied or edited files in the repository. Find the backup's own cluster, and restore it under"
            " that name.",
        )
    elif delta and destination.state in (CLUSTER, INTERRUPTED):
        _check_target(findings, destination, found.pop() if None not in known.values() else None)


def _of_backup(file: Found) -> t.Optional[str]:
    try:
        return str(parse_control(read_verified(file)).system_identifier)
    except BackupError:
        # It has been refused as damage of the backup.
        return None


def _check_target(findings: Findings, destination: Destination, wanted: t.Optional[str]) -> None:
    """Refuse to restore over a data directory that is not known to be of the cluster ``wanted``."""
    data, existing = destination.data, _identifier_of(destination)
    aside = f"Set {option('replace')} to move it aside."
    if destination.state == INTERRUPTED:
        aside = "Move it away, or restore elsewhere."
    if existing is not None and wanted is not None and existing != wanted:
        findings.refuse(
            "other_cluster",
            f"{printable(data)} holds the cluster with system identifier {existing}, the backups are of {wanted}.",
            aside,
        )
    elif existing is None or wanted is None:
        what = f"which cluster's {printable(data)} is" if existing is None else "which cluster's the backups are"
        why = "it has no readable pg_control and no WAL" if existing is None else "the repository has no cluster.json"
        findings.refuse(
            "unknown_cluster", f"It is unknown {what}: {why}. {option('delta')} would overwrite its files.", aside
        )


def _identifier_of(destination: Destination) -> t.Optional[str]:
    """Return the system identifier of an existing data directory, None when it is unknown."""
    if destination.state == INTERRUPTED and destination.request.system_identifier:
        return destination.request.system_identifier
    control = control_in(destination.data)
    if control is not None:
        return str(control.system_identifier)
    found = _of_wal(destination.data)
    return found.pop() if len(found) == 1 else None


def _of_wal(data: bytes) -> set[str]:
    directory = wal_directory(data)
    found: set[str] = set()
    if directory is None:
        return found
    for name in sorted(filter(is_segment_name, map(os.fsdecode, os.listdir(directory))), reverse=True)[:_SEGMENTS]:
        try:
            found.add(str(parse_segment_header(read_header(directory, name)).system_identifier))
        except BackupError:
            continue
    return found
