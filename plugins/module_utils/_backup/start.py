# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting a backup, or finding the one that this run shall go on with.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import adopt as _adopt
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import copy_process as _copy_process
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import (
    Activity,
    claim,
    claim_locked,
    host_name,
    look,
    session_of,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.resume import (
    Choice,
    Wish,
    choose,
    may_be_abandoned,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.clock import utc_name
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import (
    FAILED,
    STARTED,
    BackupRecord,
    Server,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import Start as StartFacts
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import (
    Backup,
    Cluster,
    check_name,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import connection_kwargs
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session.session import READY_SECONDS
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments


def default_id(cluster: Cluster, kind: str) -> str:
    """Return a free id: UTC time plus kind, for example ``20261122T081500Z-full``."""
    base = f"{utc_name()}-{kind}"
    names = {backup.id for backup in cluster.unfinished() + cluster.published()}
    return next(name for name in [base] + [f"{base}-{number}" for number in range(2, 10000)] if name not in names)


class Start:
    """One call of ``backup_start``: ``params`` are the module's arguments, durations in seconds.

    ``info`` is that of :func:`_server.server_info`; ``problems`` (the same module's) stop a new backup, but not going
    on with one that was started before.
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

    def _choose(self) -> Choice:
        params = self._params
        resume = params["resume"] and not params["backup_id"]
        wish = Wish(
            resume=resume,
            owner=params["owner"],
            takeover_after=params["takeover_after"],
            patient=params["concurrent"] != "allow",
            source=self._info["data_directory"],
            max_age=params["max_age"] if resume else None,
            wal=params["wal"] if resume else None,
        )
        return choose(self._cluster, wish)

    def predict(self) -> dict[str, t.Any]:
        """Return what :meth:`run` would do, for check mode."""
        params = self._params
        backup = self._cluster.find(params["backup_id"]) if params["backup_id"] else None
        if backup is not None:
            return self._same_id(backup, predict=True)
        choice = self._choose()
        if choice.backup is not None:
            return self.result(choice.backup, False, f"The backup {choice.backup.id} would be continued.", resumed=True)
        if choice.busy is not None:
            return self._busy(*choice.busy)
        self._refuse_problems()
        backup_id = params["backup_id"] or default_id(self._cluster, "full")
        answer = self._handle(backup_id)
        answer.update(changed=True, state="absent", resumed=False, from_standby=self._info["role"] == "standby")
        answer["wal"] = params["wal"]
        answer["msg"] = f"A backup of the {self._info['role']} at {self._info['address']} would be started."
        return answer

    def run(self) -> dict[str, t.Any]:
        """Start a backup or find the one to continue; return the module's result."""
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
            new = None
            with self._cluster.lock():
                # Another call with this id may have come first.
                twin = self._cluster.find(params["backup_id"]) if params["backup_id"] else None
                choice = self._choose() if twin is None else Choice()
                if choice.backup is not None:
                    claim_locked(choice.backup, params["owner"], take_over=True)
                elif twin is None and choice.busy is None:
                    new = self._create()
            if twin is not None:
                return self._same_id(twin)
            if choice.backup is not None:
                self._clean(choice.dead)
                return self.result(
                    choice.backup, False, f"The unfinished backup {choice.backup.id} is continued.", resumed=True
                )
            if new is not None:
                answer = self._launch(new)
                # Only now: what has been given up may be all that there is.
                self._clean(choice.dead)
                return answer
            if choice.busy is not None and not self._may_be_abandoned(*choice.busy, seen):
                return self._busy(*choice.busy)
            time.sleep(0.5)

    def _may_be_abandoned(self, backup: Backup, activity: Activity, seen: dict[str, float]) -> bool:
        """Tell whether to look again; ``seen`` remembers when each run was heard of at the first look."""
        first = seen.setdefault(backup.id, activity.seen)
        wait = self._params["resume"] and not self._params["backup_id"] and first == activity.seen
        return wait and may_be_abandoned(activity, self._params["takeover_after"])

    def _handle(self, backup_id: str) -> dict[str, t.Any]:
        return {"repository": self._cluster.repository.path, "cluster": self._cluster.name, "backup_id": backup_id}

    def _same_id(self, backup: Backup, predict: bool = False) -> dict[str, t.Any]:
        if backup.published:
            raise BackupError(
                f"There is a published backup {backup.path} already.",
                code="backup_exists",
                hint=f"Choose another {option('backup_id')}.",
            )
        activity = self._look_at_twin(backup)
        if activity.state == FAILED:
            raise BackupError(
                f"The backup {backup.id} in {self._cluster.path} is void: {activity.reason}",
                code="session_lost",
                hint="Clean up with pgfleet.basebackup.backup_abort, then take a new backup.",
            )
        if not predict:
            claim(backup, self._params["owner"])
        return self.result(backup, False, f"The backup {backup.id} was started already; its state is {activity.state}.")

    def _look_at_twin(self, backup: Backup) -> Activity:
        """Look at a backup whose session another call may be about to launch: it holds the backup's lock until then."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            with self._cluster.lock():
                activity = look(backup)
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
            changed=False, skipped_busy=True, resumed=False, state=activity.state, msg=f"{text}; no other is taken."
        )
        answer["busy"] = {"owner": activity.owner, "since": activity.since, "progress": activity.progress}
        return answer

    def _clean(self, dead: t.Iterable[tuple[Backup, Activity]]) -> None:
        for backup, activity in dead:
            if self._params["resume"]:
                try:
                    with backup.hold(0.0):
                        if look(backup).seen != activity.seen:
                            # Somebody has gone on with it since.
                            continue
                        backup.remove()
                except BackupError:
                    continue
                self.warnings.append(
                    f"The unfinished backup {backup.id} could not be continued and was removed: {activity.reason}"
                )

    def _create(self) -> tuple[Backup, t.ContextManager[int]]:
        self._refuse_problems()
        backup_id = self._params["backup_id"] or default_id(self._cluster, "full")
        check_name(backup_id, "The backup_id")
        backup = self._cluster.new_backup(
            BackupRecord(
                backup_id=backup_id,
                cluster=self._cluster.name,
                state=STARTED,
                kind="full",
                wal=self._params["wal"],
                host=host_name(),
                label=self._params["label"] or f"pgfleet.basebackup {self._cluster.name} {backup_id}",
                created_at=time.time(),
                session_idle_timeout=self._params["session_idle_timeout"],
                server=_server_of(self._info),
            )
        )
        # Locked before the catalogue's lock is released: nobody may see it as one whose session has died.
        lock = backup.hold()
        lock.__enter__()
        claim_locked(backup, self._params["owner"])
        return backup, lock

    def _launch(self, new: tuple[Backup, t.ContextManager[int]]) -> dict[str, t.Any]:
        backup, lock = new
        params = self._params
        try:
            record = backup.load()
            # Of a copy that the user's own step makes, all that there is now must be in it.
            live = _copy_process.scan_source(record.server, follow_symlinks=False)
            _adopt.write_listing(backup.file(_adopt.LISTING), live)
            session = session_of(backup)
            session.launch(
                {
                    "connection": connection_kwargs(
                        params, f"pgfleet.basebackup {self._cluster.name}/{backup.id}"[:63]
                    ),
                    "label": record.label,
                    "fast": params["fast"],
                    "from_standby": self._info["role"] == "standby",
                    "system_identifier": self._info["system_identifier"],
                    "reserve_wal": params["wal"] == "include",
                    "session_timeout": params["session_timeout"],
                    "session_idle_timeout": params["session_idle_timeout"],
                }
            )
            session.wait_started()
        except BaseException:
            if session_of(backup).alive():
                session_of(backup).ask("abort")
            backup.remove()
            raise
        finally:
            lock.__exit__(None, None, None)
        return self.result(backup, True, f"The backup {backup.id} was started.")

    def result(self, backup: Backup, changed: bool, msg: str, resumed: bool = False) -> dict[str, t.Any]:
        """Return the module's result for a backup that is there."""
        answer = self._handle(backup.id)
        activity = look(backup)
        if activity.state in ("connecting", "starting"):
            session_of(backup).wait_started()
            activity = look(backup)
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


def _server_of(info: t.Mapping[str, t.Any]) -> Server:
    """Return what of ``server_info`` a backup carries with it; nothing that changes from minute to minute."""
    facts = {name: info[name] for name in Server._fields}
    return Server(**{**facts, "config_files_outside": tuple(info["config_files_outside"])})


def start_of(backup: Backup) -> t.Optional[StartFacts]:
    """Return what the start of ``backup`` returned, None before it has."""
    record = backup.load()
    if record.outcome is not None:
        return record.start
    said = session_of(backup).recorded()
    if "start_lsn" not in said:
        return None
    lsn, size = _segments.parse_lsn(said["start_lsn"]), record.server.wal_segment_size
    return StartFacts(
        lsn=lsn,
        wal_file=_segments.segment_name(said["start_timeline"], _segments.segment_of(lsn, size), size),
        timeline=said["start_timeline"],
        from_standby=said["from_standby"],
        started_at=said["started_at"],
    )
