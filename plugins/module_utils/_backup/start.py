# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision of ``backup_start``: a backup is started, continued, or left to the run that works on it.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.
"""

from __future__ import annotations

import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import (
    Activity,
    activity_of,
    claim,
    claim_locked,
    session_of,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.launch import (
    NewBackup,
    create,
    default_id,
    launch,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.resume import (
    Rules,
    Unfinished,
    find_unfinished,
    may_be_abandoned,
    remove_dead,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import FAILED
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import Start as StartFacts
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup, Cluster
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session.session import READY_SECONDS
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments


class Start:
    """One call of ``backup_start``: ``params`` are the module's arguments, durations in seconds.

    ``info`` is the result of ``server_info``. ``problems`` prevent a new backup, but not the continuation of one that
    was started before.
    """

    def __init__(
        self,
        cluster: Cluster,
        params: t.Mapping[str, t.Any],
        info: t.Mapping[str, t.Any],
        problems: t.Sequence[t.Mapping[str, str]],
    ) -> None:
        self._cluster = cluster
        self._params = params
        self._info = info
        self._problems = problems
        self.warnings: list[str] = []

    def _refuse_problems(self) -> None:
        if self._problems:
            text = " ".join(f"{one['msg']} {one['hint']}" for one in self._problems)
            raise BackupError(text, code=self._problems[0]["code"], problems=list(self._problems))

    def _find_unfinished(self) -> Unfinished:
        params = self._params
        resume = params["resume"] and not params["backup_id"]
        rules = Rules(
            resume=resume,
            owner=params["owner"],
            takeover_after=params["takeover_after"],
            patient=params["concurrent"] != "allow",
            source=self._info["data_directory"],
            max_age=params["max_age"] if resume else None,
            wal=params["wal"] if resume else None,
        )
        return find_unfinished(self._cluster, rules)

    def predict(self) -> dict[str, t.Any]:
        """Return what :meth:`run` would do, for check mode."""
        params = self._params
        backup = self._cluster.find(params["backup_id"]) if params["backup_id"] else None
        if backup is not None:
            return self._same_id(backup, predict=True)
        found = self._find_unfinished()
        self.warnings = list(found.warnings)
        if found.backup is not None:
            return self.result(found.backup, False, f"The backup {found.backup.id} would be continued.", resumed=True)
        if found.busy is not None:
            return self._busy(*found.busy)
        self._refuse_problems()
        backup_id = params["backup_id"] or default_id(self._cluster, "full")
        answer = self._handle(backup_id)
        answer.update(changed=True, state="absent", resumed=False, from_standby=self._info["role"] == "standby")
        answer["wal"] = params["wal"]
        answer["msg"] = f"A backup of the {self._info['role']} at {self._info['address']} would be started."
        return answer

    def run(self) -> dict[str, t.Any]:
        """Start a backup or find the one to continue, and return the module's result."""
        params = self._params
        if params["backup_id"]:
            backup = self._cluster.find(params["backup_id"])
            if backup is not None:
                return self._same_id(backup)
        if not self._cluster.unfinished():
            self._refuse_problems()
        self._cluster.prepare(self._info["system_identifier"])
        seen: dict[str, float] = {}
        while True:
            twin, found, new = self._decide()
            if twin is not None:
                return self._same_id(twin)
            if found.backup is not None:
                self._remove_dead(found)
                msg = f"The unfinished backup {found.backup.id} is continued."
                return self.result(found.backup, False, msg, resumed=True)
            if new is not None:
                launch(new, params, self._info)
                # Only now: until the new backup has started, a dead one may be the only one.
                self._remove_dead(found)
                return self.result(new.backup, True, f"The backup {new.backup.id} was started.")
            if found.busy is not None and not self._may_be_abandoned(*found.busy, seen):
                return self._busy(*found.busy)
            time.sleep(0.5)

    def _decide(self) -> tuple[t.Optional[Backup], Unfinished, t.Optional[NewBackup]]:
        """Claim a backup, or make a new one, in one step for all other runs.

        Return the backup that has the id already, the unfinished ones, of which the first is claimed, and the new one.
        """
        params = self._params
        with self._cluster.lock():
            # Another call with this id may have come first.
            twin = self._cluster.find(params["backup_id"]) if params["backup_id"] else None
            if twin is not None:
                return twin, Unfinished(), None
            found = self._find_unfinished()
            self.warnings = list(found.warnings)
            if found.backup is not None:
                claim_locked(found.backup, params["owner"], take_over=True)
            elif found.busy is None:
                self._refuse_problems()
                return None, found, create(self._cluster, params, self._info)
            return None, found, None

    def _remove_dead(self, found: Unfinished) -> None:
        if self._params["resume"]:
            self.warnings += remove_dead(found.dead)

    def _may_be_abandoned(self, backup: Backup, activity: Activity, seen: dict[str, float]) -> bool:
        """Return whether to try again; ``seen`` has the time at which each run was last active at the first try."""
        first = seen.setdefault(backup.id, activity.seen)
        wait = self._params["resume"] and not self._params["backup_id"] and first == activity.seen
        return wait and may_be_abandoned(activity, self._params["takeover_after"])

    def _handle(self, backup_id: str) -> dict[str, t.Any]:
        return {"repository": self._cluster.repository.path, "cluster": self._cluster.name, "backup_id": backup_id}

    def _same_id(self, backup: Backup, predict: bool = False) -> dict[str, t.Any]:
        if backup.published:
            raise BackupError(
                f"The backup {backup.path} is already published.",
                code="backup_exists",
                hint=f"Choose another {option('backup_id')}.",
            )
        activity = self._activity_of_same_id(backup)
        if activity.state == FAILED:
            raise BackupError(
                f"The backup {backup.id} in {self._cluster.path} is void: {activity.reason}",
                code="session_lost",
                hint="Clean up with pgfleet.basebackup.backup_abort, then take a new backup.",
            )
        if not predict:
            claim(backup, self._params["owner"])
        return self.result(backup, False, f"The backup {backup.id} was started already; its state is {activity.state}.")

    def _activity_of_same_id(self, backup: Backup) -> Activity:
        """Return the state of a backup whose session another call may be launching: it holds the lock until then."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            with self._cluster.lock():
                activity = activity_of(backup)
            launching = activity.state == FAILED and activity.locked and not activity.copying
            if not launching or time.monotonic() >= deadline:
                return activity
            time.sleep(0.1)

    def _busy(self, backup: Backup, activity: Activity) -> dict[str, t.Any]:
        text = activity.describe(backup)
        if self._params["concurrent"] == "fail":
            raise BackupError(f"{text}.", code="busy", hint=f"Wait for it, or set {option('concurrent')} to allow.")
        answer = self._handle(backup.id)
        answer.update(
            changed=False, skipped_busy=True, resumed=False, state=activity.state, msg=f"{text}; no backup is started."
        )
        answer["busy"] = {"owner": activity.owner, "since": activity.since, "progress": activity.progress}
        return answer

    def result(self, backup: Backup, changed: bool, msg: str, resumed: bool = False) -> dict[str, t.Any]:
        """Return the module's result for an existing backup."""
        answer = self._handle(backup.id)
        activity = activity_of(backup)
        if activity.state in ("connecting", "starting"):
            session_of(backup).wait_started()
            activity = activity_of(backup)
        answer.update(
            changed=changed, msg=msg, resumed=resumed, skipped_busy=False, state=activity.state, directory=backup.path
        )
        answer["wal"] = activity.wal
        start = start_of(backup)
        if start is not None:
            answer.update(
                start_lsn=_segments.format_lsn(start.lsn),
                start_wal_file=start.wal_file,
                timeline=start.timeline,
                from_standby=start.from_standby,
                started_at=start.started_at,
            )
        return answer


def start_of(backup: Backup) -> t.Optional[StartFacts]:
    """Return the result of the start of ``backup``, None before it has started."""
    record = backup.load()
    if record.outcome is not None:
        return record.start
    state = session_of(backup).recorded()
    if "start_lsn" not in state:
        return None
    lsn, size = _segments.parse_lsn(state["start_lsn"]), record.server.wal_segment_size
    return StartFacts(
        lsn=lsn,
        wal_file=_segments.segment_name(state["start_timeline"], _segments.segment_of(lsn, size), size),
        timeline=state["start_timeline"],
        from_standby=state["from_standby"],
        started_at=state["started_at"],
    )
