# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of an unfinished backup: which run works on it, and whether it can be continued.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.

A module ends with its task, so between two tasks of a run no process holds the backup's lock. Therefore each run has a
name (``owner``), which its modules write into ``owner.json`` together with the time. A run that has been silent for
``takeover_after`` seconds counts as dead, and another run may take over its backup. If the old run wakes up, it is
refused.
"""

from __future__ import annotations

import os
import socket
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.copy_record import (
    Owner,
    read_copy,
    read_owner,
    write_owner,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.clock import utc_sentence
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import (
    COMPLETE,
    FAILED,
    STOPPED,
    BackupRecord,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session.session import Session

# The copy has ended when this record says so; see copy_process.py.
COPY_RECORD = ("copy", "progress.json")


def host_name() -> str:
    """Return this host's name: locks and sockets of a backup belong to processes of the host that it names."""
    return socket.gethostname()


class Activity(t.NamedTuple):
    """The state of an unfinished backup."""

    state: str  # connecting, starting, running, copied, stopping, stopped, complete: can be continued; failed: cannot
    reason: str  # for failed: why
    locked: bool  # a process holds its lock
    owner: t.Optional[str]
    since: t.Optional[float]  # seconds since the epoch
    seen: float  # when its run was last active, seconds since the epoch
    progress: dict[str, t.Any]
    here: bool  # its session runs on this host
    source: t.Optional[str]  # the data directory that is backed up
    stopped_at: t.Optional[float]  # seconds since the epoch
    kept: bool  # it failed, and the administrator keeps it for inspection
    damaged: bool  # its record cannot be read, so nothing is known about it
    wal: t.Optional[str]  # one of WAL_CHOICES, None when its record is damaged

    @property
    def silence(self) -> float:
        """Seconds since its run was last active."""
        return max(0.0, time.time() - self.seen)

    @property
    def copying(self) -> bool:
        """Whether the process that holds the lock is the copy, which continues without a run."""
        return self.locked and self.progress.get("state") == "running"

    def describe(self, backup: Backup) -> str:
        """Return which run works on the backup, since when and how far it is, as a sentence without its full stop."""
        since = utc_sentence(self.since) if self.since else "an unknown time"
        percent = self.progress.get("percent")
        far = "" if percent is None else f", {percent:.0f} % copied"
        return (
            f"{self.owner or 'Another run'} has been working on the backup {backup.id} since {since}"
            f" (state {self.state}{far}; last active {self.silence:.0f} s ago)"
        )


def progress_of(backup: Backup) -> dict[str, t.Any]:
    """Return the record of the copy, ``{}`` when no copy was begun or its record cannot be read: it is made again."""
    try:
        return read_copy(backup)
    except BackupError:
        return {}


def session_of(backup: Backup) -> Session:
    """Return the session of an unfinished backup."""
    return Session(backup.file("session"))


def claim(backup: Backup, owner: t.Optional[str]) -> None:
    """Record that the run ``owner`` works on ``backup``; under the catalogue's lock, like a takeover.

    Raises :class:`BackupError` when another run works on it, or it does not exist. Without ``owner`` (modules used by
    hand) nothing is checked and only the time is renewed.
    """
    with backup.cluster.lock():
        if not os.path.isdir(backup.path):
            raise BackupError(f"The backup {backup.path} does not exist any more.", code="unknown_backup")
        claim_locked(backup, owner)


def claim_locked(backup: Backup, owner: t.Optional[str], take_over: bool = False) -> None:
    """Do what :func:`claim` does; the caller holds the catalogue's lock. ``take_over`` ignores another owner."""
    known = read_owner(backup)
    now = time.time()
    if owner and known.owner not in (None, owner) and not take_over:
        raise BackupError(
            f"The backup {backup.id} was taken over by {known.owner}; this run does not work on it any more.",
            code="taken_over",
            hint="Nothing is lost: the other run finishes it.",
        )
    if owner and known.owner != owner:
        known = Owner(owner, now)
    write_owner(backup, known._replace(seen=now))


def activity_of(backup: Backup) -> Activity:
    """Return the state of an unfinished backup; nothing is changed."""
    # First: the process that starts a backup releases its lock only when the session is running.
    locked = backup.is_worked_on()
    record: t.Optional[BackupRecord] = None
    try:
        record = backup.load()
        state, reason = record.state, record.error
    except BackupError as exc:
        state, reason = FAILED, exc.msg
    owner = read_owner(backup)
    progress = progress_of(backup)
    # Without any record it is what a crash left before there was one, or after everything else was removed.
    damaged = record is None and os.path.lexists(backup.file("backup.json"))
    here = record is None or record.host == host_name()
    seen = owner.seen or modified(backup.file("backup.json"))
    if record and state not in (STOPPED, COMPLETE, FAILED):
        alive_at = max(seen, modified(backup.file(*COPY_RECORD)))
        state, reason = _session_state(backup, here, alive_at, record)
        if state == "running" and progress.get("state") == "done":
            state = "copied"
        damaged = state == FAILED and session_of(backup).recorded().get("code") == "damaged_session"
    return Activity(
        state=state,
        reason=reason,
        locked=locked,
        owner=owner.owner,
        since=owner.since,
        seen=seen,
        progress=progress,
        here=here,
        source=record.server.data_directory if record else None,
        stopped_at=record.stop.stopped_at if record and record.outcome else None,
        kept=record.kept if record else False,
        damaged=damaged,
        wal=record.wal if record else None,
    )


def _session_state(backup: Backup, here: bool, alive_at: float, record: BackupRecord) -> tuple[str, str]:
    if not here:
        # Another host's socket and process cannot be asked; its session ends by itself when it is not renewed.
        idle = record.session_idle_timeout
        if time.time() > alive_at + idle:
            return FAILED, f"Its host {record.host} has given no sign of life for more than {idle:.0f} s."
        return "running", ""
    try:
        state = session_of(backup).ask("status", renew=False)
    except BackupError as exc:
        # It lives but does not answer: the backup can be neither continued now nor removed.
        return "running", exc.msg
    if state["state"] == "failed":
        return FAILED, state["error"]
    if state["state"] == "stopped":
        return "stopping", ""
    return state["state"], ""


def modified(path: str) -> float:
    """Return when ``path`` was changed, in seconds since the epoch, 0 when it does not exist."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
