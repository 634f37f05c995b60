# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What restore drills have shown of a backup, kept in its own record.

Private to pgfleet.basebackup: no stability is promised.

``backup.json`` has ``drills``, the newest last: dictionaries with ``at`` (ISO 8601, UTC), ``ok``, ``by``, ``host``,
``recovered_to_lsn``, ``last_transaction_at``, ``timeline``, ``target``, ``seconds``, ``msg`` and ``checks``.
"""

from __future__ import annotations

import math
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.clock import parse_utc
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup

KEPT_DRILLS = 10


Drill = t.Dict[str, t.Any]


def age_of(at: t.Any) -> float:
    """Return the seconds since the time of a drill; infinity for what is no time."""
    try:
        return time.time() - parse_utc(at)
    except (TypeError, ValueError):
        return math.inf


def record(backup: Backup, drill: Drill, check_mode: bool = False) -> bool:
    """Add ``drill`` to a published backup's record and tell whether that changed it.

    A drill of the same ``at``, ``by`` and ``host`` is there once. Raises :class:`BackupError` for a backup that is not
    published, or is damaged.
    """
    if age_of(drill["at"]) == math.inf:
        raise BackupError(f"The time of the drill, {drill['at']!r}, is not like 2026-11-22T11:32:00Z.", code="bad_time")
    if not backup.published:
        raise BackupError(
            f"The backup {backup.id} is not published; only a published backup is restored.", code="not_published"
        )
    with backup.cluster.lock():
        content = backup.load()
        drills = known_drills(content)
        if any(all(one.get(name) == drill[name] for name in ("at", "by", "host")) for one in drills):
            return False
        if not check_mode:
            drills = sorted([*drills, drill], key=lambda one: str(one.get("at")))[-KEPT_DRILLS:]
            backup.save({**content, "drills": drills})
    return True


def known_drills(content: t.Mapping[str, t.Any]) -> list[Drill]:
    """Return the drills in a backup's record; none where it says nonsense."""
    drills = content.get("drills")
    return [one for one in drills if isinstance(one, dict)] if isinstance(drills, list) else []


def proven(content: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what the catalogue tells: ``proven_at``, ``proven_by``, ``proven_until`` and ``last_drill``."""
    drills = known_drills(content)
    good = [one for one in drills if one.get("ok") is True]
    newest = good[-1] if good else {}
    return {
        "proven_at": newest.get("at"),
        "proven_by": f"{newest.get('by')} on {newest.get('host')}" if newest else None,
        "proven_until": newest.get("last_transaction_at"),
        "last_drill": drills[-1] if drills else None,
    }
