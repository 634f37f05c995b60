# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The unfinished backup that a run goes on with.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import Activity, look
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import COMPLETE, FAILED, STOPPED
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup, Cluster


class Choice(t.NamedTuple):
    """What :func:`choose` decided: a backup to go on with, one that somebody else works on, or neither (a new one)."""

    backup: t.Optional[Backup] = None
    busy: t.Optional[tuple[Backup, Activity]] = None
    dead: t.Sequence[tuple[Backup, Activity]] = ()


class Wish(t.NamedTuple):
    """What a run wants of the unfinished backups of a cluster."""

    resume: bool = False
    owner: t.Optional[str] = None
    takeover_after: float = 30.0  # seconds
    patient: bool = True  # it will look again, so one that may turn out to be abandoned is reported as busy
    source: t.Optional[str] = None  # the data directory of the server
    max_age: t.Optional[float] = None  # seconds
    wal: t.Optional[str] = None  # archive, include or none


def _takeable(activity: Activity, wish: Wish) -> bool:
    if not activity.here or activity.state == FAILED or wish.source not in (None, activity.source):
        return False
    if activity.locked and not activity.copying:
        return False
    return (wish.owner is not None and activity.owner == wish.owner) or activity.silence >= wish.takeover_after


def _fits(activity: Activity, wish: Wish) -> bool:
    """Tell whether its WAL goes where the run wants it; of a complete one it is proven already."""
    return wish.wal in (None, activity.wal) or activity.state == COMPLETE


def _outdated(activity: Activity, wish: Wish) -> str:
    """Say why a backup could not fulfil the wish any more, "" when it could.

    A stopped backup whose WAL never came must not stand in the way of a new one for ever, nor one that waits for an
    archive where the WAL shall now be included.
    """
    if not _takeable(activity, wish) or activity.copying:
        return ""
    if not _fits(activity, wish):
        return f"It was started with {option('wal')}={activity.wal}, and now {wish.wal} is wanted."
    if wish.max_age is None or activity.state != STOPPED or activity.stopped_at is None:
        return ""
    if time.time() - activity.stopped_at <= wish.max_age:
        return ""
    return f"It was stopped, but its WAL was not archived within {wish.max_age:.0f} s."


def choose(cluster: Cluster, wish: Wish) -> Choice:
    """Look at the unfinished backups of ``cluster``; the caller holds its lock."""
    dead, live = [], []
    for backup in cluster.unfinished():
        activity = look(backup)
        reason = _outdated(activity, wish)
        if reason:
            dead.append((backup, activity._replace(reason=reason)))
        elif activity.state == FAILED and not activity.locked:
            if activity.here and not activity.kept:
                dead.append((backup, activity))
        else:
            live.append((backup, activity))
    if wish.resume:
        for backup, activity in live:
            if _takeable(activity, wish) and _fits(activity, wish):
                return Choice(backup=backup, dead=dead)
    return Choice(busy=live[0] if live and wish.patient else None, dead=dead)


def may_be_abandoned(activity: Activity, takeover_after: float) -> bool:
    """Tell whether waiting shows if the run behind ``activity`` has died."""
    idle = not activity.locked or activity.copying
    return activity.here and idle and activity.silence < takeover_after
