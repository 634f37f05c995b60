# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verification as a detached process.

Private to pgfleet.basebackup. Room ``_verify``: whether a published backup is still what was published; it only reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import time
import types
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import fields as _fields
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.detached import Job, Recorder
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trees import discard
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup, Cluster
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.verification import Options, chosen, verify

# After this many seconds without a call no task waits for the result any more.
ABANDONED_SECONDS = 900.0
LEFTOVER_SECONDS = 86400.0


class VerificationJob(Job):
    """The verification of one task, which ``run_id`` distinguishes from those of other tasks.

    A failure is a result as well: the task's next call does not begin it again.
    """

    noun = "verification"
    verb = "verifying"
    again = "Verify it again; nothing was changed."
    fields = types.MappingProxyType({"backup_id": _fields.text(100), "result": _fields.json_value})

    def __init__(self, cluster: Cluster, backup_id: str, run_id: str, options: Options) -> None:
        self._cluster = cluster
        self._backup_id = backup_id
        self._options = options
        self._backup: Backup
        name = "\0".join((run_id, cluster.path, backup_id))
        self._top = os.path.join(tempfile.gettempdir(), f"pgfleet-verify-{os.geteuid()}")
        folder = os.path.join(self._top, hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32])
        super().__init__(folder, f"the backup {backup_id}")

    def is_running(self) -> bool:
        """Return whether this task has begun it, whether or not it has ended."""
        return bool(self.read())

    def join(self) -> None:
        """Record that a task still waits for the result."""
        os.utime(self.lock)

    def prepare(self) -> None:
        """Find the backup, and make the folder."""
        self._backup = chosen(self._cluster, self._backup_id)
        _make_private(self._top)
        _sweep(self._top)
        self.make_folder()

    def work(self, recorder: Recorder) -> dict[str, t.Any]:
        """Verify the backup until no task asks for the result any more."""

        recorder.content.update(backup_id=self._backup.id)
        return {"result": verify(self._backup, self._options, self._check, recorder)}

    def _check(self) -> None:
        try:
            silent = time.time() - os.stat(self.lock).st_mtime
        except FileNotFoundError:
            silent = ABANDONED_SECONDS
        if silent >= ABANDONED_SECONDS:
            raise BackupError("No task has asked for its result.", code="abandoned")

    def result(self) -> t.Optional[t.Mapping[str, t.Any]]:
        """Return the result of the verification."""
        record = super().result()
        return None if record is None else t.cast("t.Mapping[str, t.Any]", record["result"])

    def close(self) -> None:
        """Remove the folder: the result is known."""
        discard(self.folder)


def _make_private(path: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise BackupError(
            f"{path} is not a private directory of the user with id {os.geteuid()}.",
            code="temporary_folder",
            hint="Another user may have made it: remove it, or set TMPDIR in the task's environment.",
        )


def _sweep(top: str) -> None:
    """Remove the folders of verifications whose task has died."""
    for name in os.listdir(top):
        folder = os.path.join(top, name)
        if time.time() - os.lstat(folder).st_mtime > LEFTOVER_SECONDS:
            discard(folder)
