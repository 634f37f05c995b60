# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The WAL of the cluster that a restore replaces: segments that were not archived are saved, and used for recovery.

Source: PostgreSQL, section "Recovering Using a Continuous Archive Backup", steps 2 and 6.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import functools
import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.clock import utc_name
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.candidate import Choice
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import WORK, wal_directory
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.pg_wal import unarchived, usable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import (
    CLUSTER,
    EMPTY,
    INTERRUPTED,
    OTHER,
    WAL_SAVED,
    Destination,
    control_in,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import Archive, DirectoryArchive


class OldWal(t.NamedTuple):
    """The WAL that only the cluster to be replaced has.

    ``unarchived`` are the names of files in its ``pg_wal``, moved to ``save_to`` unless that is empty; ``sources`` are
    the directories with what earlier calls have moved; ``used`` (directory, name) are the segments that recovery uses.
    """

    unarchived: t.Tuple[str, ...] = ()
    save_to: bytes = b""
    sources: t.Tuple[bytes, ...] = ()
    used: t.Tuple[t.Tuple[bytes, str], ...] = ()


def find_old_wal(
    destination: Destination,
    archive: t.Optional[Archive],
    size: int,
    replace: bool,
    save_wal_to: t.Optional[str],
) -> OldWal:
    """Return the files that are not archived, and where to save them; ``size`` is the segment size in bytes.

    Raises BackupError, code ``unreadable``.
    """
    data, request = destination.data, destination.request
    # The WAL of a copy for tests is not part of the cluster's history.
    if destination.record is not None and destination.record.restore_as == "copy":
        return OldWal()
    sources = list(request.wal_from)
    if replace and destination.state == EMPTY and not request.digest:
        sources += _moved_before(data)
    names: list[str] = []
    own = _own_wal(destination)
    if own is not None:
        names = unarchived(own, size, functools.partial(_is_archived, archive, data))
    save_to = request.save_wal_to
    if not save_to and names and not (replace and destination.state in (CLUSTER, OTHER)):
        save_to = os.fsencode(save_wal_to or _default_place(data))
    return OldWal(tuple(names), save_to, tuple(sources))


def find_usable_wal(
    destination: Destination,
    archive: t.Optional[Archive],
    sources: t.Sequence[bytes],
    choice: Choice,
    included: t.Container[bytes],
) -> t.Tuple[t.Tuple[bytes, str], ...]:
    """Return the directory and name of each segment that recovery will use.

    ``sources`` are directories that are read before the ``pg_wal`` of the cluster to be replaced, ``included`` the
    paths of the backup's files. Raises BackupError, code ``unreadable``.
    """
    if destination.record is not None and destination.record.restore_as == "copy":
        return ()
    server = choice.record.server
    size, identifier = server.wal_segment_size, int(server.system_identifier)
    own = _own_wal(destination)
    found: dict[str, bytes] = {}
    for place in [*sources, *([own] if own else [])]:
        names = unarchived(place, size, functools.partial(_is_archived, archive, destination.data))
        for name in usable(place, names, archive, choice.path, choice.record.start.lsn, size, identifier):
            if b"pg_wal/" + os.fsencode(name) not in included:
                found.setdefault(name, place)
    return tuple((place, name) for name, place in found.items())


def _own_wal(destination: Destination) -> t.Optional[bytes]:
    """Return the ``pg_wal`` of the cluster to be replaced, None when there is none or its WAL has been saved."""
    # The marker of saved WAL does not count when a server may have run since.
    marker = destination.data + b"/" + WORK + b"/" + WAL_SAVED
    saved = destination.state == INTERRUPTED and os.path.exists(marker)
    return None if saved else wal_directory(destination.data)


def _default_place(data: bytes) -> str:
    place = f"{os.fsdecode(data)}.saved_wal-{utc_name()}"
    while os.path.lexists(place):
        place += "x"
    return place


def _is_archived(archive: t.Optional[Archive], data: bytes, name: str) -> bool:
    """Return whether a WAL file that the old cluster has marked as done is in the archive, as far as can be checked.

    A standby marks streamed files as done, whether or not its primary could archive them.
    """
    if isinstance(archive, DirectoryArchive):
        return archive.has(name)
    control = control_in(data)
    return control is not None and not control.in_recovery


def _moved_before(data: bytes) -> list[bytes]:
    """Return the WAL directories that a call moved aside before it died without recording that."""
    parent, name = os.path.split(data)
    names = os.listdir(parent) if os.path.isdir(parent) else []
    found = [one for one in names if one.startswith(name + b".replaced-")]
    place = wal_directory(parent + b"/" + max(found)) if found else None
    return [place] if place else []
