# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting until files are in an archive.

Private to pgfleet.basebackup. Room ``_wal``: names, records and archives of WAL; it knows no server and no backup.
"""

from __future__ import annotations

import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import CommandArchive, DirectoryArchive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import is_segment


def require_segment_size(size: int) -> None:
    """Raise :class:`BackupError` unless ``size`` is one that ``initdb --wal-segsize`` can give."""
    if size < 1 << 20 or size > 1 << 30 or size & (size - 1):
        raise BackupError(f"A WAL segment has a power of two from 1 MB to 1 GB, not {size} bytes.", code="bad_number")


def require_wal_names(names: t.Sequence[str], size: int) -> None:
    """Raise :class:`BackupError` unless ``names`` are history files and segments of ``size`` bytes."""
    require_segment_size(size)
    bad = [name for name in names if not _segments.is_history_name(name) and not is_segment(name, size)]
    if bad or not names:
        raise BackupError(
            f"required_wal must list names of WAL files of {size} bytes, not {bad or 'nothing'}.", code="bad_wal_name"
        )


def missing_in_directory(directory: str, names: t.Sequence[str], size: int, system_identifier: int) -> list[str]:
    """Return those of ``names`` that ``directory`` does not hold, whole and of this cluster, plain or compressed."""
    archive = DirectoryArchive(directory, size, system_identifier)
    return [name for name in names if not archive.holds(name)]


def missing_by_command(command: str, names: t.Sequence[str], size: int, system_identifier: int) -> list[str]:
    """Return those of ``names`` that ``command`` (a ``restore_command``: %f, %p, %%) does not fetch whole."""
    archive = CommandArchive(command, size, system_identifier)
    return [name for name in names if not archive.holds(name)]


def wait_archived(
    missing: t.Callable[[t.Sequence[str]], list[str]], names: t.Sequence[str], timeout: float, interval: float
) -> list[str]:
    """Return which of ``names`` are not archived, at once when there are none, else after ``timeout`` seconds.

    ``missing`` is called every ``interval`` seconds with the names that it returned the last time.
    """
    deadline = time.monotonic() + timeout
    while True:
        names = missing(names)
        if not names or time.monotonic() >= deadline:
            return list(names)
        time.sleep(min(interval, max(0.0, deadline - time.monotonic())))
