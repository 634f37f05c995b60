# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks of files (flock), which end with the process that holds them.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def is_locked(path: str) -> bool:
    """Return whether a process holds the flock on ``path``. Raises as :func:`take_lock`."""
    try:
        handle = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError as exc:
        if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return True
        raise
    finally:
        os.close(handle)


def take_lock(path: str, seconds: float) -> t.Optional[int]:
    """Return a descriptor that holds the flock on ``path``, or None when it was still held after ``seconds``.

    Raises OSError, and BackupError, code ``not_ours``, for a symbolic link, which could make a file elsewhere.
    """
    handle = _open(path, os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except OSError as exc:
            if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                raise
        if time.monotonic() >= deadline:
            os.close(handle)
            return None
        time.sleep(0.05)


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | _FLAGS, 0o600)
    except OSError as exc:
        if exc.errno != errno.ELOOP:
            raise
        raise BackupError(
            f"{path} is a symbolic link, not a lock.",
            code="not_ours",
            hint="Find out who made it, then remove the link.",
        ) from exc
