# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The unfinished backups of a cluster: which one a run continues, and the removal of dead ones.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.
"""

from __future__ import annotations

import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import Activity, activity_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import COMPLETE, FAILED, STOPPED
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup, Cluster


class Unfinished(t.NamedTuple):
    """What :func:`find_unfinished` found: a backup to continue, or one that another run works on, and the dead ones.

    Without the first two a new backup is started. ``warnings`` name what is neither continued nor removed.
    """

    backup: t.Optional[Backup] = None
    busy: t.Optional[tuple[Backup, Activity]] = None
    dead: t.Sequence[tuple[Backup, Activity]] = ()
    warnings: t.Sequence[str] = ()


class Rules(t.NamedTuple):
    """Which unfinished backups of a cluster a run may continue."""

    resume: bool = False
    owner: t.Optional[str] = None
    takeover_after: float = 30.0  # seconds
    patient: bool = True  # the caller tries again, so a backup that may prove to be abandoned is reported as busy
    source: t.Optional[str] = None  # the data directory of the server
    max_age: t.Optional[float] = None  # seconds
    wal: t.Optional[str] = None  # archive, include or none


def _takeable(activity: Activity, rules: Rules) -> bool:
    if not activity.here or activity.state == FAILED or rules.source not in (None, activity.source):
        return False
    if activity.locked and not activity.copying:
        return False
    return (rules.owner is not None and activity.owner == rules.owner) or activity.silence >= rules.takeover_after


def _fits(activity: Activity, rules: Rules) -> bool:
    """Return whether its WAL goes where the run wants it; the WAL of a complete backup is proven already."""
    return rules.wal in (None, activity.wal) or activity.state == COMPLETE


def _outdated(activity: Activity, rules: Rules) -> str:
    """Return why a backup can no longer follow the rules, "" when it can.

    A stopped backup whose WAL never arrives must not block new ones for ever, nor must one that waits for an archive
    when the WAL is to be included now.
    """
    if not _takeable(activity, rules) or activity.copying:
        return ""
    if not _fits(activity, rules):
        return f"It was started with {option('wal')}={activity.wal}, and now {rules.wal} is set."
    if rules.max_age is None or activity.state != STOPPED or activity.stopped_at is None:
        return ""
    if time.time() - activity.stopped_at <= rules.max_age:
        return ""
    return f"It was stopped, but its WAL was not archived within {rules.max_age:.0f} s."


def find_unfinished(cluster: Cluster, rules: Rules) -> Unfinished:
    """Return which unfinished backup of ``cluster`` to continue; the caller holds its lock."""
    dead, live = [], []
    warnings = [one.error().msg for one in cluster.foreign()]
    for backup in cluster.unfinished():
        activity = activity_of(backup)
        reason = _outdated(activity, rules)
        if activity.damaged:
            # It may be another version's, or whole but for a byte; only its owner can know.
            warnings.append(f"{activity.reason} It is neither continued nor removed: pgfleet.basebackup.backup_abort.")
        elif reason:
            dead.append((backup, activity._replace(reason=reason)))
        elif activity.state == FAILED and not activity.locked:
            if activity.here and not activity.kept:
                dead.append((backup, activity))
        else:
            live.append((backup, activity))
    if rules.resume:
        for backup, activity in live:
            if _takeable(activity, rules) and _fits(activity, rules):
                return Unfinished(backup=backup, dead=dead, warnings=warnings)
    return Unfinished(busy=live[0] if live and rules.patient else None, dead=dead, warnings=warnings)


def may_be_abandoned(activity: Activity, takeover_after: float) -> bool:
    """Return whether waiting can show that the run of ``activity`` has died."""
    idle = not activity.locked or activity.copying
    return activity.here and idle and activity.silence < takeover_after


def remove_dead(dead: t.Iterable[tuple[Backup, Activity]]) -> list[str]:
    """Remove backups that cannot be continued, except those in use again, and return a warning for each."""
    warnings = []
    for backup, activity in dead:
        try:
            with backup.hold(0.0):
                if activity_of(backup).seen != activity.seen:
                    # Another run has continued it since.
                    continue
                backup.remove()
        except BackupError:
            continue
        warnings.append(f"The unfinished backup {backup.id} could not be continued and was removed: {activity.reason}")
    return warnings
