# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moving the old cluster aside before a restore.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.clock import utc_name
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import sync_path, unwritable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import WORK, wal_directory
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.plan import Plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import EMPTY, state_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.tablespaces import LeftOver, place_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _running


class Aside(t.NamedTuple):
    """What was moved aside: the data directory, and with it its WAL from ``old_wal`` to ``wal``; empty when nothing
    was.

    ``left_over`` are the tablespaces that are still to be moved.
    """

    directory: bytes = b""
    old_wal: bytes = b""
    wal: bytes = b""
    left_over: LeftOver = ()


def prepare(plan: Plan) -> Aside:
    """Move the old cluster aside if it is to be replaced, and make the data directory with the work folder.

    Raises BackupError, code ``unwritable`` or ``disk_full``.
    """
    _choice, layout = plan.approved()
    data, state = plan.data, plan.destination.state
    _running.refuse_running(data)
    aside = Aside()
    try:
        if plan.replaces:
            if state_of(data) == state:
                aside = _move_aside(data, plan.left_over, layout.version)
        elif plan.params["replace"] and state == EMPTY:
            # The old data directory does not exist any more, but its tablespaces do.
            set_aside(data, plan.left_over, layout.version)
        else:
            aside = Aside(left_over=plan.left_over)
        if not os.path.isdir(data):
            os.makedirs(data, mode=0o700)
            sync_path(os.path.dirname(data))
        os.chmod(data, layout.directory_mode)
        folder = data + b"/" + WORK
        if not os.path.isdir(folder) or os.path.islink(folder):
            unlink(folder)
            os.mkdir(folder, 0o700)
    except OSError as exc:
        raise unwritable(exc.filename or data, exc) from exc
    return aside


def _move_aside(data: bytes, left_over: LeftOver, version: bytes) -> Aside:
    """Rename the old data directory and its tablespaces, to which its links still lead."""
    now = _stamp()
    moved = data + b".replaced-" + now
    set_aside(data, left_over, version, now)
    wal = wal_directory(data) or b""
    os.rename(data, moved)
    sync_path(os.path.dirname(data))
    return Aside(moved, wal, moved + wal[len(data) :] if wal.startswith(data + b"/") else wal)


def set_aside(data: bytes, left_over: LeftOver, version: bytes, now: bytes = b"") -> None:
    """Rename the server's directory in each tablespace within its location, and make the link in ``data`` lead there.

    The link comes first: after a crash a link to an empty directory shows what is still to be done.
    """
    for oid, location in left_over:
        place = place_of(location, version)
        target = location if place != location else location + b"/replaced-" + (now or _stamp())
        os.makedirs(target, mode=0o700, exist_ok=True)
        link = data + b"/pg_tblspc/%d" % oid
        if os.path.islink(link):
            unlink(link + b".new")
            os.symlink(target, link + b".new")
            os.rename(link + b".new", link)
            sync_path(os.path.dirname(link))
        with contextlib.suppress(FileNotFoundError):
            os.rename(place + b"/" + version, target + b"/" + version)
        sync_path(place)


def _stamp() -> bytes:
    """Return the present time for a file name."""
    return os.fsencode(utc_name())


def unlink(path: bytes) -> None:
    """Remove a file that may not exist."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
