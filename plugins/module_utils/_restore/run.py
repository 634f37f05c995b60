# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One call of ``backup_restore``: predict, begin, join or report.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import os
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.detached import Recorder, progress_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.locks import is_locked
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import identity, identity_of, same
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Repository, check_name
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.aside import prepare
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.copy import equal_files
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.plan import Plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.planner import make
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import (
    digest_of,
    read_record,
    read_request,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.report import result_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.restore import Restore, RestoreJob, finished

_LEAVE_SECONDS = 5.0


class Run:
    """A call with the module's arguments. Raises BackupError: ``bad_path``, and what looking and working raise."""

    def __init__(self, params: dict[str, t.Any]) -> None:
        self._params = params
        for name in ("data_directory", "archive_directory", "tablespace_directory", "waldir", "save_wal_to"):
            if params[name] is not None and not os.path.isabs(params[name]):
                raise BackupError(f"{option(name)} must be an absolute path, not {params[name]!r}.", code="bad_path")
        check_name(params["cluster"], "The cluster name")
        self._cluster = Repository(params["repository"], read_only=True).cluster(params["cluster"])
        self._digest = digest_of(params)
        self._data = os.path.realpath(os.fsencode(params["data_directory"]))
        self._job = RestoreJob(self._data)
        # What was done before this call does not answer it.
        self._before: t.Any = None

    def predict(self) -> dict[str, t.Any]:
        """Return the plan with every refusal; nothing is touched."""
        plan = self._plan()
        if plan.is_done:
            return self._done(plan)
        equal = None
        if plan.layout is not None and self._params["delta"] and not plan.refusals:
            equal = equal_files(plan.contents.files, plan.layout, plan.survey.existing, self._params["jobs"])
        result = {**result_of(plan, equal), "finished": False, "warnings": list(plan.warnings)}
        if plan.refusals:
            return {**result, "changed": False, "restorable": False, "msg": _reasons(plan)}
        msg = f"The backup {result['backup_id']} would be restored to {self._params['data_directory']}."
        return {**result, "changed": True, "restorable": True, "msg": msg}

    def step(self) -> dict[str, t.Any]:
        """Begin, or join the restore that runs here, and wait as long as is asked for."""
        if not self._job.is_running():
            plan = self._plan()
            if plan.is_done:
                return self._done(plan)
            if plan.refusals:
                first = plan.refusals[0]
                # Ansible takes "path" in a result for a file of its own.
                details = {name: value for name, value in first.details.items() if name != "path"}
                details.update(result_of(plan))
                if len(plan.refusals) == 1:
                    raise BackupError(first.msg, code=first.code, hint=first.hint, **details)
                raise BackupError(_reasons(plan), code=first.code, **details)
            self._before = plan.destination.record
            self._begin(plan)
        elif read_request(self._data).digest != self._digest:
            raise BackupError(
                f"Another restore into {self._params['data_directory']} is under way.",
                code="busy",
                hint=f"Find out which process holds it: fuser -v {self._job.lock}",
            )
        return self._wait()

    def _plan(self) -> Plan:
        return make(self._cluster, self._params)

    def _begin(self, plan: Plan) -> None:
        aside = prepare(plan)
        files = plan.contents.files

        def work(recorder: Recorder) -> dict[str, t.Any]:
            recorder.content.update(total_bytes=sum(one.entry.size for one in files), total_files=len(files))
            return Restore(plan, aside, lambda: None, recorder.progress).run()

        with self._job.hold() as lock:
            # Another call may have finished it, and with it the folder, while this one waited.
            if self._finished() is None:
                if not same(identity(self._job.lock), identity_of(os.fstat(lock))):
                    raise BackupError(f"Another restore into {plan.params['data_directory']} just ended.", code="busy")
                Restore(plan, aside, lambda: None, lambda _bytes, _files: None).write_request()
                self._job.launch(lock, work)

    def _wait(self) -> dict[str, t.Any]:
        try:
            record = self._job.wait(self._params["wait_timeout"])
        except BackupError:
            # Its folder goes when it has succeeded.
            if self._finished() is None:
                raise
            record = {}
        result = self._finished()
        if result is not None:
            self._let_it_leave()
            msg = f"The backup {result['backup_id']} was restored to {self._params['data_directory']}."
            return {**result, "finished": True, "changed": True, "msg": msg}
        record = record or self._job.read()
        return {
            "changed": True,
            "finished": False,
            "backup_id": read_request(self._data).backup_id or None,
            "data_directory": os.fsdecode(self._data),
            "restore_as": self._params["restore_as"],
            "progress": progress_of(record),
            "msg": f"{record.get('percent')} % restored.",
        }

    def _let_it_leave(self) -> None:
        """Wait until the process, which has only its folder to remove, is gone: the next task must not meet it."""
        deadline = time.monotonic() + _LEAVE_SECONDS
        while is_locked(self._job.lock) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _finished(self) -> t.Optional[dict[str, t.Any]]:
        record = read_record(self._data)
        return None if record == self._before else finished(self._data, record, self._digest)

    def _done(self, plan: Plan) -> dict[str, t.Any]:
        result = finished(self._data, plan.destination.record, self._digest) or {}
        msg = f"The backup {result['backup_id']} has been restored to {self._params['data_directory']} already."
        return {**result, "finished": True, "changed": False, "restorable": True, "msg": msg}


def _reasons(plan: Plan) -> str:
    return " ".join(f"{one.msg} {one.hint}".strip() for one in plan.refusals)
