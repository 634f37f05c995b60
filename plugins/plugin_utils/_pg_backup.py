# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions and messages of the role pg_backup.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.plugin_utils import _primary
from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._role import (
    Facts,
    codes,
    explained,
    failure,
    first_cluster,
    joined,
    part,
    size,
)

# States in which a backup is void without its session, and those in which only its WAL is still missing.
BEGUN = ("running", "copied")
STOPPED = ("stopping", "stopped", "complete")


class BackupRun:
    """One run of the role on one host; ``facts`` are its variables and the results of its modules so far."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.server = part(facts, "server")
        self.start = part(facts, "start")
        self.stop = part(facts, "stop")
        self.entry = first_cluster(facts)
        self.backup_id = str(self.start.get("backup_id") or "")
        self.published = "directory" in part(facts, "publish")

    def answer(self) -> dict[str, t.Any]:
        """Return all decisions and messages, by the names that the filter documents."""
        return {
            "due": self.due,
            "in_hand": self.in_hand,
            "needs_primary": self.needs_primary,
            "needs_archive": self.needs_archive,
            "needs_switch": self.needs_archive and self.server.get("role") == "standby",
            "gives_up": self.in_hand and "stop_lsn" not in self.stop and self.start.get("state") in BEGUN,
            "asks_primary": _primary.asks_primary(self.facts),
            "archiver": self.archiver,
            "stoppers": self.stoppers,
            "refusal": self.refusal,
            "plan": self.plan,
            "handle": self.handle,
            "result": self.result,
            "failure": self.failure,
        }

    @property
    def due(self) -> bool:
        """Whether a backup is to be taken, or continued."""
        return bool(self.facts["force"] or not self.entry.get("fresh"))

    @property
    def unfinished(self) -> list[Facts]:
        """The backups in progress that can still be finished."""
        return [one for one in self.entry.get("unfinished") or [] if one["state"] != "failed"]

    @property
    def in_hand(self) -> bool:
        """Whether this run has its own backup to work on, started or taken over."""
        return "backup_id" in self.start and not self.start.get("skipped_busy")

    @property
    def needs_primary(self) -> bool:
        """Whether the primary must finish the last segment: for a standby's backup whose WAL is to be archived."""
        return self.facts["wal"] == "archive" and self.server.get("role") == "standby"

    @property
    def needs_archive(self) -> bool:
        """Whether to wait for the WAL; that of a complete backup is proven already."""
        return self.start.get("wal") == "archive" and self.start.get("state") != "complete"

    @property
    def archiver(self) -> dict[str, t.Any]:
        """Where to prove that the WAL is archived: the host to delegate to, and the login there."""
        primary = part(self.facts, "primary")
        if _primary.asks_primary(self.facts) and primary:
            return {name: primary[name] for name in ("delegate", *_primary.LOGIN)}
        return {"delegate": self.facts["host"], **{name: self.facts[name] for name in _primary.LOGIN}}

    @property
    def stoppers(self) -> list[Facts]:
        """The problems of the server, and of its primary if that is needed."""
        return list(self.server.get("problems") or []) + self._primary_problems

    @property
    def _primary_problems(self) -> list[Facts]:
        return list(part(self.facts, "primary").get("problems") or []) if self.needs_primary else []

    @property
    def refusal(self) -> str:
        """Why no backup is begun. One that was begun is not aborted for this: it is stopped, and waits."""
        return "" if self.unfinished else _primary.refusal(self.facts, self._primary_problems)

    @property
    def plan(self) -> list[str]:
        """The lines that report what would be done."""
        server = self.server
        verb = "cannot be" if self.stoppers else "would be"
        return [
            (
                f"{self.facts['host']}: a base backup of the {server.get('role')} at {server.get('address')}"
                f" (PostgreSQL {server.get('version')}) {verb} taken."
            ),
            (
                f"From: {server.get('data_directory')}; tablespaces:"
                f" {joined(one['name'] for one in server.get('tablespaces') or [])}"
            ),
            f"Size: {size(server.get('size'))}; free: {size(server.get('repository_free_bytes'))}",
            f"To: {self.facts['repository']}/{self.facts['cluster']}",
            f"WAL: {self._wal()}",
            f"Unfinished: {joined(one['backup_id'] for one in self.unfinished)}",
            codes(self.stoppers),
            *[self._other(one) for one in self.unfinished],
            *explained(self.stoppers),
        ]

    def _wal(self) -> str:
        if self.facts["wal"] == "include":
            return "included in the backup"
        if self.facts["wal"] == "none":
            return "left to you, nothing is proven"
        if self.server.get("role") == "primary":
            return "switched here"
        return f"switched on the primary {part(self.facts, 'primary').get('name') or '(not found)'}"

    def _other(self, one: Facts) -> str:
        return (
            f"{one.get('owner') or 'An unnamed run'} has been working on the backup {one['backup_id']} since"
            f" {one.get('since') or 'an unknown time'} (state {one['state']}, {one.get('percent') or 0} % copied,"
            f" last active {one.get('silent_seconds')} s ago). It would be continued after a silence of"
            f" pg_backup_takeover_after={self.facts['takeover_after']}; before that"
            f" pg_backup_concurrent={self.facts['concurrent']} decides."
        )

    def _directory(self, result: str, parent: str) -> str:
        own = f"{self.facts['repository']}/{self.facts['cluster']}/{parent}/{self.backup_id}"
        return str(part(self.facts, result).get("directory") or own)

    @property
    def handle(self) -> dict[str, str]:
        """The handle of the backup, for the user's own tasks."""
        directory = ""
        if self.published:
            directory = self._directory("publish", "backups")
        elif "directory" in self.start:
            directory = self._directory("start", "in_progress")
        return {
            "repository": str(self.start.get("repository") or self.facts["repository"]),
            "cluster": str(self.facts["cluster"]),
            "owner": str(self.facts["owner"]),
            "backup_id": self.backup_id,
            "directory": directory,
        }

    @property
    def result(self) -> dict[str, t.Any]:
        """``pg_backup_result`` of a run without a failure, as far as it has come."""
        if self.published:
            msg = part(self.facts, "publish")["msg"]
            return self._result(True, self.backup_id, msg)
        if self.backup_id:
            return self._result(False, self.backup_id, self.start["msg"])
        newest = self.entry.get("newest")
        if self.due:
            msg = f"A backup of the cluster {self.facts['cluster']} is due; the newest is {newest or '(none)'}."
        else:
            hours = (self.entry.get("newest_age_seconds") or 0) / 3600
            msg = f"The backup {newest} is {hours:.1f} hours old, younger than {self.facts['max_age']}."
        return self._result(False, newest or "", msg)

    @property
    def failure(self) -> dict[str, t.Any]:
        """``pg_backup_result`` after a failure: what failed, and what happens to the backup."""
        failed_task, why = failure(self.facts)
        # In ansible-core 2.18 a rescue has no facts of a handler that failed.
        switch = part(self.facts, "switch")
        if switch.get("failed"):
            failed_task, why = "Switch WAL on the primary", str(switch.get("msg") or dict(switch))
        backup = f"the backup {self.backup_id}".strip()
        msg = (
            f"{self.facts['host']}: {backup} of the cluster {self.facts['cluster']} failed at"
            f' "{failed_task}": {why} {self._outcome()}'
        )
        return self._result(self.published, self.backup_id, msg.strip())

    def _outcome(self) -> str:
        switch = part(self.facts, "switch")
        failed = switch if switch.get("failed") else part(self.facts, "failed_result")
        if self.published:
            return "The backup is published."
        if failed.get("code") in ("void", "wal_removed"):
            return ""
        if "stop_lsn" in self.stop or self.start.get("state") in STOPPED:
            return "It is stopped and kept; the next run continues it."
        return str(part(self.facts, "abort").get("msg") or "")

    def _result(self, changed: bool, backup_id: str, msg: str) -> dict[str, t.Any]:
        directory = self._directory("publish", "backups") if self.published else ""
        return {"changed": changed, "backup_id": backup_id, "directory": directory, "msg": msg}
