# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A verification in a process of its own.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.detached import Job, Recorder
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import make_directory
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trees import discard
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Cluster
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.verification import Wish, chosen, verify

# After that many seconds without a question nobody waits for the answer.
ABANDONED_SECONDS = 900.0


LEFTOVER_SECONDS = 86400.0


class Slices:
    """A detached verification that is asked several times how far it is; ``run_id`` tells it from others."""

    def __init__(self, cluster: Cluster, backup_id: str, run_id: str) -> None:
        self._cluster = cluster
        self._backup_id = backup_id
        name = "\0".join((run_id, cluster.path, backup_id))
        self._top = os.path.join(tempfile.gettempdir(), f"pgfleet-verify-{os.geteuid()}")
        folder = os.path.join(self._top, hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32])
        self.job = Job(folder, "verification", f"the backup {backup_id}", "Verify it again; nothing was changed.")

    def step(self, wish: Wish, seconds: float) -> t.Optional[dict[str, t.Any]]:
        """Return the result when it is there within ``seconds``, else None; the first call begins.

        Raises :class:`BackupError` as :func:`verify`, and when the process was killed.
        """
        if self.job.read():
            os.utime(self.job.lock)
        else:
            self._launch(wish)
        try:
            record = self.job.wait(seconds)
        except BackupError:
            discard(self.job.folder)
            raise
        if record is None:
            return None
        discard(self.job.folder)
        result: dict[str, t.Any] = record["result"]
        return result

    def _launch(self, wish: Wish) -> None:
        backup = chosen(self._cluster, self._backup_id)
        _make_private(self._top)
        _sweep(self._top)
        self.job.make_folder()
        asked = self.job.lock

        def check() -> None:
            try:
                silent = time.time() - os.stat(asked).st_mtime
            except FileNotFoundError:
                silent = ABANDONED_SECONDS
            if silent >= ABANDONED_SECONDS:
                raise BackupError("Nobody has asked for it.", code="abandoned")

        def work(recorder: Recorder) -> dict[str, t.Any]:
            recorder.content.update(backup_id=backup.id)
            return {"result": verify(backup, wish, check, recorder)}

        with self.job.hold() as lock:
            self.job.launch(lock, work)


def _make_private(path: str) -> None:
    make_directory(path)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise BackupError(
            f"{path} is not a private directory of the user with id {os.geteuid()}.",
            code="temporary_folder",
            hint="Somebody else made it: remove it, or set TMPDIR in the task's environment.",
        )


def _sweep(top: str) -> None:
    """Remove what verifications whose task died have left."""
    for name in os.listdir(top):
        folder = os.path.join(top, name)
        if time.time() - os.lstat(folder).st_mtime > LEFTOVER_SECONDS:
            discard(folder)
