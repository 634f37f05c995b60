# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The restore as a detached process, and one call of ``backup_restore``: predict, begin, join or report.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.detached import Job, Recorder
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.locks import is_locked
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import identity, identity_of, same
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trees import discard
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Repository, check_name
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.aside import Aside, prepare
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.copy import equal_files
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import WORK
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.plan import Plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.planner import make
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import (
    Record,
    digest_of,
    read_record,
    read_request,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.report import result_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.restore import Restore

_LEAVE_SECONDS = 5.0


class RestoreJob(Job):
    """The restore into one data directory; its folder is removed when it has succeeded.

    ``digest`` distinguishes it from restores with other arguments.
    """

    noun = "restore"
    verb = "restoring"
    again = "Run backup_restore again: what is restored so far is kept."
    removes_folder = True

    def __init__(self, data: bytes, digest: str, make_plan: t.Callable[[], Plan]) -> None:
        super().__init__(os.path.join(os.fsdecode(data), os.fsdecode(WORK)), os.fsdecode(data))
        self._data = data
        self._digest = digest
        self._make_plan = make_plan
        self._plan: Plan
        self._aside: Aside
        # A restore that ended before this call is not its result.
        self._before: t.Optional[Record] = None

    def join(self) -> None:
        """Join a restore with the same arguments only."""
        if read_request(self._data).digest != self._digest:
            raise BackupError(
                f"Another restore into {os.fsdecode(self._data)} is running.",
                code="busy",
                hint=f"Find out which process holds it: fuser -v {shlex.quote(self.lock)}",
            )

    def done_before(self) -> t.Optional[t.Mapping[str, t.Any]]:
        """Make the plan; raise its refusals, or return the recorded result when this restore is already done."""
        plan = self._plan = self._make_plan()
        if plan.is_done:
            return self.recorded(plan.destination.record) or {}
        if plan.refusals:
            first = plan.refusals[0]
            # Ansible takes "path" in a result for a file that the module manages.
            details = {name: value for name, value in first.details.items() if name != "path"}
            details.update(result_of(plan))
            if len(plan.refusals) == 1:
                raise BackupError(first.msg, code=first.code, hint=first.hint, **details)
            raise BackupError(reasons(plan), code=first.code, **details)
        self._before = plan.destination.record
        return None

    def prepare(self) -> None:
        """Move the old cluster aside if it is to be replaced, and make the folder that contains the lock."""
        self._aside = prepare(self._plan)

    def enter(self, lock: int) -> None:
        """Write the request. Raises BackupError (``busy``) when another restore just ended and removed the folder."""
        if not same(identity(self.lock), identity_of(os.fstat(lock))):
            raise BackupError(f"Another restore into {os.fsdecode(self._data)} just ended.", code="busy")
        self._restore(lambda _bytes, _files: None).write_request()

    def work(self, recorder: Recorder) -> dict[str, t.Any]:
        """Carry out the plan."""
        files = self._plan.contents.files
        recorder.content.update(total_bytes=sum(one.entry.size for one in files), total_files=len(files))
        return self._restore(recorder.progress).run()

    def _restore(self, progress: t.Callable[[int, int], None]) -> Restore:
        return Restore(self._plan, self._aside, lambda: None, progress)

    def result(self) -> t.Optional[t.Mapping[str, t.Any]]:
        """Return the recorded result of the restore with this digest, None when it ended before this call."""
        record = read_record(self._data)
        return None if record == self._before else self.recorded(record)

    def recorded(self, record: t.Optional[Record]) -> t.Optional[t.Mapping[str, t.Any]]:
        """Return the result in ``record`` when it is that of the restore with this digest, else None."""
        if record is None or record.digest != self._digest:
            return None
        # A crash right after the end leaves the folder, which is no longer needed.
        with contextlib.suppress(BackupError, OSError):
            if os.path.isdir(self.folder):
                with self.hold(0):
                    discard(self.folder)
        return dict(record.result)

    def close(self) -> None:
        """Wait until the process, which now only removes its folder, has ended: the next task must not meet it."""
        deadline = time.monotonic() + _LEAVE_SECONDS
        while is_locked(self.lock) and time.monotonic() < deadline:
            time.sleep(0.01)


class Run:
    """A call with the module's arguments. Raises BackupError: ``bad_path``, and those of the plan and the restore."""

    def __init__(self, params: dict[str, t.Any]) -> None:
        self._params = params
        for name in ("data_directory", "archive_directory", "tablespace_directory", "waldir", "save_wal_to"):
            if params[name] is not None and not os.path.isabs(params[name]):
                raise BackupError(f"{option(name)} must be an absolute path, not {params[name]!r}.", code="bad_path")
        check_name(params["cluster"], "The cluster name")
        self._cluster = Repository(params["repository"], read_only=True).cluster(params["cluster"])
        self._data = os.path.realpath(os.fsencode(params["data_directory"]))
        self._job = RestoreJob(self._data, digest_of(params), self._plan)

    def predict(self) -> dict[str, t.Any]:
        """Return the plan with every refusal; nothing is changed."""
        plan = self._plan()
        if plan.is_done:
            return self._done(self._job.recorded(plan.destination.record))
        equal = None
        if plan.layout is not None and self._params["delta"] and not plan.refusals:
            equal = equal_files(plan.contents.files, plan.layout, plan.survey.existing, self._params["jobs"])
        result = {**result_of(plan, equal), "finished": False, "warnings": list(plan.warnings)}
        if plan.refusals:
            return {**result, "changed": False, "restorable": False, "msg": reasons(plan)}
        msg = f"The backup {result['backup_id']} would be restored to {self._params['data_directory']}."
        return {**result, "changed": True, "restorable": True, "msg": msg}

    def step(self) -> dict[str, t.Any]:
        """Begin the restore or join the running one, and wait for ``wait_timeout``."""
        step = self._job.step(self._params["wait_timeout"])
        if step.result is None:
            return {
                "changed": True,
                "backup_id": read_request(self._data).backup_id or None,
                "data_directory": os.fsdecode(self._data),
                "restore_as": self._params["restore_as"],
                **step.progress("restored"),
            }
        if not step.began:
            return self._done(step.result)
        msg = f"The backup {step.result['backup_id']} was restored to {self._params['data_directory']}."
        return {**step.result, "finished": True, "changed": True, "msg": msg}

    def _plan(self) -> Plan:
        return make(self._cluster, self._params)

    def _done(self, result: t.Optional[t.Mapping[str, t.Any]]) -> dict[str, t.Any]:
        result = result or {}
        msg = f"The backup {result.get('backup_id')} has been restored to {self._params['data_directory']} already."
        return {**result, "finished": True, "changed": False, "restorable": True, "msg": msg}


def reasons(plan: Plan) -> str:
    """Return all refusals of a plan as one text."""
    return " ".join(f"{one.msg} {one.hint}".strip() for one in plan.refusals)
