# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is moved out of the way before a restore.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import contextlib
import os

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.clock import utc_name
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import sync_path, unwritable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import old_wal as _old_wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import WORK
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.places import place_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.plan import Plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import EMPTY, state_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _running


def prepare(plan: Plan) -> None:
    """Move aside what is to be replaced, and make the data directory with the folder of the work.

    Raises BackupError, code ``unwritable`` or ``disk_full``.
    """
    _running.refuse_running(plan.data)
    try:
        if plan.replaces and state_of(plan.data) == plan.state:
            _move_aside(plan)
        elif plan.params["replace"] and plan.state == EMPTY:
            # The data directory is lost, its tablespaces are not.
            for oid, location in plan.aside:
                _set_aside(plan.data, oid, location, plan.version(), os.fsencode(utc_name()))
            plan.aside = []
        if not os.path.isdir(plan.data):
            os.makedirs(plan.data, mode=0o700)
            sync_path(os.path.dirname(plan.data))
        os.chmod(plan.data, 0o750 if plan.params["allow_group_access"] else 0o700)
        if not os.path.isdir(plan.data + b"/" + WORK) or os.path.islink(plan.data + b"/" + WORK):
            _unlink(plan.data + b"/" + WORK)
            os.mkdir(plan.data + b"/" + WORK, 0o700)
    except OSError as exc:
        raise unwritable(exc.filename or plan.data, exc) from exc


def _move_aside(plan: Plan) -> None:
    """Rename the old data directory, with links that lead to its old tablespaces, which are renamed too."""
    now = os.fsencode(utc_name())
    moved = plan.data + b".replaced-" + now
    for oid, location in plan.aside:
        _set_aside(plan.data, oid, location, plan.version(), now)
    wal = _old_wal.directory_of(plan.data)
    os.rename(plan.data, moved)
    sync_path(os.path.dirname(plan.data))
    plan.moved = moved
    if wal is not None:
        place = moved + wal[len(plan.data) :] if wal.startswith(plan.data + b"/") else wal
        plan.wal_from.append(place)
        plan.used = [(place if source == wal else source, name) for source, name in plan.used]


def _set_aside(data: bytes, oid: int, location: bytes, version: bytes, now: bytes) -> None:
    """Rename the server's directory in a tablespace within its place, and have the link of ``data`` lead there.

    The link comes first: from a link to an empty directory one sees what a crash has left undone.
    """
    target, location = location, place_of(location, version)
    if target == location:
        target = location + b"/replaced-" + now
    os.makedirs(target, mode=0o700, exist_ok=True)
    link = data + b"/pg_tblspc/%d" % oid
    if os.path.islink(link):
        _unlink(link + b".new")
        os.symlink(target, link + b".new")
        os.rename(link + b".new", link)
        sync_path(os.path.dirname(link))
    with contextlib.suppress(FileNotFoundError):
        os.rename(location + b"/" + version, target + b"/" + version)
    sync_path(location)


def _unlink(path: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
