# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Aborting a backup: its session, its copy, its files.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.
"""

from __future__ import annotations

import time

from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import session_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup


def abort(backup: Backup, keep: bool, timeout: float) -> None:
    """End the processes that work on ``backup``, then remove it, or mark it as failed with ``keep``.

    Raises :class:`BackupError` when the session or a working process has not ended after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    session = session_of(backup)
    if session.alive():
        session.ask("abort", seconds=timeout)
    while session.alive():
        if time.monotonic() >= deadline:
            pid = session.recorded().get("pid")
            raise BackupError(
                f"The session process {pid} of the backup {backup.id} has not ended within {timeout:.0f} s.",
                code="session_stuck",
                hint=f"Run it again after: kill {pid}",
            )
        time.sleep(0.05)
    # The copy notices that its session has ended and releases the lock.
    with backup.hold(max(0.5, deadline - time.monotonic())):
        if not keep:
            backup.remove()
            return
        # Under the catalogue's lock, like publish: a backup is either published or marked.
        with backup.cluster.lock():
            record = backup.load()
            backup.save(record.failed(record.error or "It was aborted.", kept=True))
