# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The results of restore drills, kept in the record of the backup that was restored.

Private to pgfleet.basebackup. Room ``_catalogue``: what a repository has, how far it can be recovered; it only reads.
"""

from __future__ import annotations

import math
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.clock import parse_utc
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import BackupRecord, Drill
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record_file import drill_result
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup

KEPT_DRILLS = 10


def age_of(at: t.Optional[str]) -> float:
    """Return the seconds since the time of a drill; infinity for what is not a time."""
    try:
        return time.time() - parse_utc(at or "")
    except ValueError:
        return math.inf


def record(backup: Backup, drill: Drill, check_mode: bool = False) -> bool:
    """Add ``drill`` to a published backup's record, and return whether that changed it.

    A drill of the same ``at``, ``by`` and ``host`` is recorded once. Raises :class:`BackupError` for a backup that is
    not published, or is damaged.
    """
    if not backup.published:
        raise BackupError(
            f"The backup {backup.id} is not published; only a published backup is restored.", code="not_published"
        )
    with backup.cluster.lock():
        content = backup.load()
        if any((one.at, one.by, one.host) == (drill.at, drill.by, drill.host) for one in content.drills):
            return False
        if not check_mode:
            drills = sorted([*content.drills, drill], key=lambda one: one.at)[-KEPT_DRILLS:]
            backup.save(content._replace(drills=tuple(drills)))
    return True


def proven(content: BackupRecord) -> dict[str, t.Any]:
    """Return a backup's fields in the catalogue: ``proven_at``, ``proven_by``, ``proven_until``, ``last_drill``."""
    newest = next((one for one in reversed(content.drills) if one.ok), None)
    return {
        "proven_at": newest.at if newest else None,
        "proven_by": f"{newest.by} on {newest.host}" if newest else None,
        "proven_until": newest.last_transaction_at if newest else None,
        "last_drill": drill_result(content.drills[-1]) if content.drills else None,
    }
