# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this user can remove, replace and move aside all that a restore has to, found out before it begins.

After a restore has begun there is no way back: the server is stopped, and ``pg_control`` no longer exists.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import os
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.changes import (
    Obstacle,
    closed,
    fixed,
    foreign,
    obstacles,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import inside, mounts_below
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.findings import Findings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import (
    CONTROL,
    WORK,
    WRITTEN,
    Layout,
    Survey,
    wal_directory,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.tablespaces import LeftOver, place_of

# So many are named; the message says how many there are in all.
_NAMED = 5


class Changes(t.NamedTuple):
    """What a restore will change: ``directories`` of the backup, in backup terms, the ``survey`` of what exists, and
    the tablespaces that are moved aside, ``left_over``. With ``replaces`` the whole data directory is moved aside.
    """

    directories: t.Sequence[bytes]
    survey: Survey
    left_over: LeftOver
    replaces: bool


def check_changeable(findings: Findings, layout: Layout, changes: Changes) -> None:
    """Refuse a restore that would meet what this user cannot change, naming the first of those files."""
    found: dict[bytes, Obstacle] = {}
    for obstacle in _obstacles(layout, changes):
        found.setdefault(obstacle.path, obstacle)
    if not found:
        return
    first = sorted(found.values())[:_NAMED]
    text = "; ".join(f"{printable(one.path)} {one.why}" for one in first)
    more = f"; and {len(found) - len(first)} more" if len(found) > len(first) else ""
    cures = list(dict.fromkeys(one.cure for one in first if one.cure))
    findings.refuse(
        "cannot_change",
        f"The user {os.geteuid()} cannot remove or replace everything that the restore has to: {text}{more}.",
        f"As root: {' && '.join(cures)}" if cures else "",
        obstacles=[printable(one.path) for one in first],
    )


def _obstacles(layout: Layout, changes: Changes) -> t.Iterator[Obstacle]:
    yield from _of_moves(layout, changes)
    if changes.replaces:
        return
    checked: set[bytes] = set()
    for place in _directories(layout, changes):
        if place not in checked:
            checked.add(place)
            yield from _of_directory(place)
    # The other directories in which something is removed or replaced: only names change there.
    for parent in {os.path.dirname(place) for place, _is_directory in changes.survey.surplus} - checked:
        yield from _some(closed(parent))
    for place, is_directory in changes.survey.surplus:
        yield from _of_entry(place)
        if is_directory:
            yield from obstacles(place)
    for path in [*changes.survey.existing, *WRITTEN]:
        yield from _of_entry(layout.place(path))
    yield from _of_wal(layout)


def _directories(layout: Layout, changes: Changes) -> t.Iterator[bytes]:
    """Yield the directories that the restore makes, or gives the server's mode when they exist."""
    yield from (layout.place(os.path.dirname(CONTROL)), layout.data + b"/" + WORK)
    for path in changes.directories:
        if path.partition(b"/")[0] != b"pg_wal":
            yield layout.place(path)


def _of_directory(place: bytes) -> t.Iterator[Obstacle]:
    try:
        status = os.lstat(place)
    except OSError:
        return
    if not stat.S_ISDIR(status.st_mode):
        return
    if status.st_uid != os.geteuid():
        yield foreign(place, status)
    else:
        yield from _some(closed(place))


def _of_entry(place: bytes) -> t.Iterator[Obstacle]:
    """Yield why a file, link or directory cannot be removed, apart from what holds for its whole directory."""
    try:
        status, parent = os.lstat(place), os.stat(os.path.dirname(place))
    except OSError:
        return
    yield from _some(fixed(place, status, parent))


def _of_wal(layout: Layout) -> t.Iterator[Obstacle]:
    """Yield what prevents emptying ``pg_wal``, with the folders in it."""
    directory = wal_directory(layout.data)
    own = [layout.data + b"/pg_wal"] + ([os.path.realpath(layout.waldir)] if layout.waldir else [])
    if directory is None or directory not in own:
        return
    if not os.path.ismount(directory):
        yield from _of_directory(directory)
    for name in (b"/archive_status", b"/summaries"):
        yield from _of_directory(directory + name)
    yield from obstacles(directory)
    for mount in sorted(mounts_below(directory)):
        yield Obstacle(mount, "is a mount point", f"umount {printable(mount)}")


def _of_moves(layout: Layout, changes: Changes) -> t.Iterator[Obstacle]:
    """Yield what prevents moving tablespaces aside."""
    if changes.left_over and os.path.isdir(layout.data + b"/pg_tblspc"):
        yield from _some(closed(layout.data + b"/pg_tblspc"))
    for _oid, location in changes.left_over:
        place = place_of(location, layout.version)
        moved = place + b"/" + layout.version
        if not os.path.lexists(moved):
            continue
        # A directory that gets another parent must itself be writable.
        yield from _some(closed(place) or closed(moved))
        for mount in sorted(mounts_below(os.path.realpath(place))):
            if inside(mount, os.path.realpath(moved)):
                yield Obstacle(mount, "is a mount point", f"umount {printable(mount)}")


def _some(obstacle: t.Optional[Obstacle]) -> t.Iterator[Obstacle]:
    if obstacle is not None:
        yield obstacle
