# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions and messages of the role pg_recover.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import json
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._live_nodes import LiveNodes
from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._role import (
    Facts,
    codes,
    explained,
    failure,
    first_cluster,
    options_for_a_copy,
    part,
    sentence,
)
from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._service import Service

# Steps that may fail after the server is restored, the result that shows their success, and what to do after a failure.
AFTERWARDS: t.Final = (
    (
        "forget",
        "pending_restart",
        "forgetting the recovery target",
        (
            "As a superuser remove recovery_target* from postgresql.auto.conf (ALTER SYSTEM RESET), or a standby made"
            " from this server stops at the same target."
        ),
    ),
    (
        "switch",
        "segment",
        "finishing the first WAL segment of the new timeline",
        (
            "Run SELECT pg_switch_wal() and take a backup; until that segment is archived the archive does not show"
            " where the new timeline begins."
        ),
    ),
)


class RecoverRun:
    """One run of the role on one host; ``facts`` are its variables and the results of its modules so far."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.planned = part(facts, "plan")
        self.restored = part(facts, "restore")
        self.recovery = part(facts, "recovery")
        self.entry = first_cluster(facts)
        # The plan before the restore, the result after it.
        self.known = {**self.planned, **self.restored}
        self.backup_id = str(self.known.get("backup_id") or "")
        self.live = LiveNodes(facts, str(self.entry.get("system_identifier") or ""))
        self.service = Service(facts, self.known, self.data_directory)

    def answer(self) -> dict[str, t.Any]:
        """Return all decisions and messages, by the names that the filter documents."""
        return {
            "data_directory": self.data_directory,
            "connect_params": self.connect_params,
            "log_file": self.facts["log_file"] or self.service.log_file or f"{self.data_directory}/startup.log",
            "no_place": self.no_place,
            "running": self.running,
            "done": self.done,
            "changed": self.changed,
            "asks_nodes": self.asks_nodes,
            "states": self.service.states,
            "run_by": self.service.run_by,
            "config_file": self.service.config_file,
            "to_start": self.to_start,
            "refusal": " ".join(sentence(one) for one in self.refusals),
            "plan": self.plan,
            "left": self.left,
            "result": self.result,
            "failure": self.failure,
        }

    @property
    def wanted(self) -> str:
        """The backup whose data directory is the default: the one that is set, else the newest."""
        named = str(self.facts["backup_id"])
        return named if named not in ("", "latest") else str(self.entry.get("newest") or "")

    @property
    def data_directory(self) -> str:
        """The directory to restore to: the one that is set, else that of the server that was backed up."""
        if self.facts["data_directory"]:
            return str(self.facts["data_directory"])
        found = [one for one in self.entry.get("backups") or [] if one["backup_id"] == self.wanted]
        return str(found[0].get("data_directory") or "") if found else ""

    @property
    def connect_params(self) -> dict[str, t.Any]:
        """The connection parameters; on a copy, with options against what the source sets for its roles."""
        # Item by item: Ansible passes a dictionary whose values are templated on access.
        given = dict(self.facts["connect_params"].items())
        if self.facts["restore_as"] != "copy":
            return given
        return {**given, "options": f"{options_for_a_copy()} {given.get('options') or ''}".strip()}

    @property
    def no_place(self) -> str:
        """Why the directory to restore to is unknown, '' when it is known."""
        if self.data_directory:
            return ""
        backup = f"backup {self.wanted}".strip()
        return (
            f"There is no {backup} of the cluster {self.facts['cluster']} in {self.facts['repository']} that records"
            " the data directory. Set pg_recover_data_directory; pgfleet.basebackup.backup_info lists the backups."
        )

    @property
    def running(self) -> bool:
        """Whether a server runs in the data directory."""
        return bool(part(self.facts, "process").get("running"))

    @property
    def done(self) -> bool:
        """Whether an earlier run has already done this restore."""
        return bool(self.planned.get("finished"))

    @property
    def refusals(self) -> list[Facts]:
        """The refusals of the restore, except a running server, which the role stops."""
        found = part(self.planned, "plan").get("refusals") or []
        refused = [one for one in found if one["code"] != "server_running"]
        return [*refused, *(self.live.refusals if self.asks_nodes else []), *self.service.refusals]

    @property
    def asks_nodes(self) -> bool:
        """Whether other live nodes of the cluster matter: it is to get a primary, or one that runs is replaced."""
        as_primary = self.facts["restore_as"] == "primary"
        return not self.done and (as_primary or (self.facts["restore_as"] == "copy" and self.running))

    @property
    def changed(self) -> bool:
        """Whether the restore has changed something, or would do so."""
        if "changed" in self.restored:
            return bool(self.restored["changed"])
        return bool(self.facts["check_mode"]) and not self.done and not self.refusals

    @property
    def to_start(self) -> bool:
        """Whether the server is to be started. One that shut down at its target is not started by the next run."""
        if not self.facts["start"]:
            return False
        ended_at_target = self.facts["target_action"] == "shutdown"
        return self.changed or not (self.running or self.refusals or ended_at_target)

    @property
    def plan(self) -> list[str]:
        """The lines that report what would be done."""
        what = "nothing can be restored with these variables"
        if self.done:
            what = "this restore has been done already"
        elif self.changed:
            what = "a backup would be restored"
        content = part(self.planned, "plan")
        until = content.get("recoverable_until")
        shown = {name: content[name] for name in content if name != "refusals"}
        return [
            f"{self.facts['host']}: {what}.",
            (
                f"Backup: {self.planned.get('backup_id') or 'none'} of {self.facts['cluster']};"
                f" {self.planned.get('why') or ''}"
            ),
            f"To: {self.data_directory}",
            f"Server there: {self._server()}",
            *([self.live.line] if self.asks_nodes else []),
            f"Target: {self.planned.get('target') or ''}{f'; the archive goes up to {until}' if until else ''}",
            f"Plan: {json.dumps(shown)}",
            codes(self.refusals),
            *explained(self.refusals),
        ]

    def _server(self) -> str:
        text = "runs" if self.running else "does not run"
        if self.running and self.changed:
            text += f", would be stopped by {self.service.stopped_by}"
        if self.to_start:
            text += f", would be started by {self.service.started_by}"
        return text

    @property
    def left(self) -> list[str]:
        """The steps after the restore that failed and are left to the administrator."""
        lines = []
        for name, success, what, cure in AFTERWARDS:
            result = part(self.facts, name)
            if result and not result.get("skipped") and success not in result:
                lines.append(
                    f"{self.facts['host']}: the server is restored, but {what} failed: {result.get('msg')} {cure}"
                )
        return lines

    @property
    def result(self) -> dict[str, t.Any]:
        """``pg_recover_result`` after a run without a failure."""
        recovery = self.recovery
        is_restored = "would be" if self.facts["check_mode"] and not self.done else "is"
        reached = ""
        if "reached" in recovery:
            reached = (
                f", {recovery['reached']} at {recovery['replay_lsn']} on timeline {recovery['timeline']}, last"
                f" transaction at {recovery['last_transaction_at'] or 'an unknown time'}"
            )
        msg = (
            f"{self.facts['host']}: the backup {self.backup_id} of the cluster {self.facts['cluster']} {is_restored}"
            f" restored in {self.data_directory}{reached}."
        )
        return {
            "changed": self.changed,
            "backup_id": self.backup_id,
            "why": self.known.get("why") or "",
            "data_directory": self.data_directory,
            "reached": recovery.get("reached") or "",
            "replay_lsn": recovery.get("replay_lsn") or "",
            "last_transaction_at": recovery.get("last_transaction_at") or "",
            "timeline": int(recovery.get("timeline") or 0),
            "checks": part(self.facts, "sql").get("results") or [],
            "plan": self.known.get("plan") or {},
            "msg": msg,
        }

    @property
    def failure(self) -> dict[str, t.Any]:
        """``pg_recover_result`` after a failure: what failed, and in which state the data directory is."""
        failed_task, why = failure(self.facts)
        backup = f"the backup {self.backup_id}".strip()
        msg = (
            f"{self.facts['host']}: restoring {backup} of the cluster {self.facts['cluster']} to"
            f' {self.data_directory or "its place"} failed at "{failed_task}": {why} {self._outcome()}'
        )
        return {
            "changed": bool(self.facts["stopped"] or (self.facts["begun"] and not self._refused)),
            "backup_id": self.backup_id,
            "data_directory": self.data_directory,
            "plan": self.known.get("plan") or {},
            "msg": msg,
        }

    @property
    def _refused(self) -> bool:
        result = part(self.facts, "failed_result")
        # The failure of a restore that has begun includes its progress.
        return bool(self.refusals) or ("code" in result and "progress" not in result)

    def _outcome(self) -> str:
        if self.restored.get("finished", self.done):
            return "The files are restored. Repair the cause and run the same command again; it continues from there."
        if self._refused or not self.facts["begun"]:
            return f"Nothing was changed{self._stop()}."
        return (
            "Without global/pg_control the data directory cannot be started by accident. Repair the cause and run the"
            " same command again; it continues from there."
        )

    def _stop(self) -> str:
        if not self.facts["stopped"]:
            return ""
        # The restore begins only after a stop without an error; tasks of the user may not have stopped the server.
        if self.facts["begun"] and part(self.facts, "failed_result").get("code") != "server_running":
            return ", but the server was stopped"
        return ", but the stop of the server was begun; check whether it runs"
