# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the file systems have room for a restore.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import inside, nearest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.units import readable_bytes
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.contents import Contents
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.findings import Findings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import Layout, Survey
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.old_wal import OldWal


class FileSystem(t.NamedTuple):
    """A file system: a directory on it, the bytes needed and those that are free."""

    directory: bytes
    needed: int
    free: int


def check_room(
    findings: Findings, layout: Layout, contents: Contents, survey: Survey, wal: OldWal, segment_size: int
) -> t.Tuple[FileSystem, ...]:
    """Compare the bytes needed with the bytes free, for each file system."""
    systems = []
    needs = _needs_of_roots(layout, contents, survey)
    needs[layout.wal_root] += len(wal.used) * segment_size
    if wal.save_to and _device(wal.save_to) != _device(layout.wal_root):
        needs[wal.save_to] = needs.get(wal.save_to, 0) + len(wal.unarchived) * segment_size
    for directory, needed in _by_device(needs):
        status = os.statvfs(directory)
        free = status.f_bavail * status.f_frsize
        systems.append(FileSystem(directory, needed, free))
        if needed > free:
            findings.refuse(
                "disk_full",
                f"{readable_bytes(needed)} are needed at {printable(directory)}, {readable_bytes(free)} are free.",
                "Free some space there, or restore to another file system.",
                needed=needed,
                free=free,
            )
    return tuple(systems)


def _needs_of_roots(layout: Layout, contents: Contents, survey: Survey) -> dict[bytes, int]:
    """Return the bytes that the files of the backup add to each root of the layout."""
    needs = dict.fromkeys(layout.roots, 0)
    for file in contents.files:
        path = file.entry.path
        root = layout.wal_root if path.startswith(b"pg_wal/") else layout.data
        if path.startswith(b"pg_tblspc/"):
            place = layout.place(path)
            root = next((one for one in layout.roots[1:] if inside(place, one)), layout.data)
        existing = survey.existing.get(path)
        needs[root] += max(0, file.entry.size - (existing.size if existing else 0))
    return needs


def _device(place: bytes) -> int:
    return os.stat(nearest(place)).st_dev


def _by_device(needs: t.Mapping[bytes, int]) -> list[tuple[bytes, int]]:
    """Return the sum of each file system, with the first directory that exists on it."""
    sums: dict[int, tuple[bytes, int]] = {}
    for place, size in needs.items():
        directory, before = sums.get(_device(place), (nearest(place), 0))
        sums[_device(place)] = (directory, before + size)
    return list(sums.values())
