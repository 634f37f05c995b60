# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files in a ``pg_wal``: which are not archived, which recovery can use, and moving, copying and removing them.

Source: PostgreSQL, section "Recovering Using a Continuous Archive Backup", steps 2 and 6.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import os
import shutil
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import (
    replacing,
    sync_path,
    unreadable,
    unwritable,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trees import remove
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import Archive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.path import Path, path_segment

_HEADER_BYTES = 8192
_STATUS = b"archive_status"
_FOLDERS = (_STATUS, b"summaries")


def unarchived(directory: bytes, size: int, is_archived: t.Callable[[str], bool] = lambda name: True) -> list[str]:
    """Return the names of the files in a ``pg_wal`` that are not archived.

    Its archiver has not marked them as done, or ``is_archived`` returns False in spite of the mark. Recycled segments,
    whose first page is that of an older segment, do not count.
    Raises BackupError, code ``unreadable``.
    """
    found = []
    for name in _files(directory):
        if not (_segments.is_history_name(name) or _segments.is_segment_name(name.partition(".partial")[0])):
            continue
        done = directory + b"/" + _STATUS + b"/" + os.fsencode(name) + b".done"
        if os.path.exists(done) and is_archived(name):
            continue
        if _segments.is_history_name(name) or _header_fits(directory, name, size):
            found.append(name)
    return sorted(found)


def _files(directory: bytes) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [os.fsdecode(entry.name) for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise unreadable(directory, exc) from exc


def read_header(directory: bytes, name: str) -> bytes:
    """Return the first page of a WAL file. Raises BackupError, code ``unreadable``."""
    place = directory + b"/" + os.fsencode(name)
    try:
        with open(place, "rb") as stream:
            return stream.read(_HEADER_BYTES)
    except OSError as exc:
        raise unreadable(place, exc) from exc


def check_header(directory: bytes, name: str, size: int, system_identifier: int) -> None:
    """Check the first page of a segment, if it exists and is not compressed.

    Raises BackupError, code ``bad_segment`` or ``unreadable``.
    """
    if _segments.is_segment_name(name) and os.path.exists(directory + b"/" + os.fsencode(name)):
        try:
            _segments.check_segment(read_header(directory, name), name, size, system_identifier)
        except BackupError as exc:
            raise BackupError(
                f"In {os.fsdecode(directory)}: {exc.msg}",
                code=exc.code,
                hint="Replace it with a good copy, or restore another backup.",
            ) from exc


def _header_fits(directory: bytes, name: str, size: int) -> bool:
    try:
        _timeline, segment = _segments.parse_segment_name(name.partition(".")[0], size)
        return _segments.parse_segment_header(read_header(directory, name)).address == segment * size
    except (ValueError, BackupError) as exc:
        if isinstance(exc, BackupError) and exc.code == "unreadable":
            raise
        return False


def usable(
    directory: bytes,
    names: t.Sequence[str],
    archive: t.Optional[Archive],
    path: Path,
    start_lsn: int,
    size: int,
    system_identifier: int,
) -> list[str]:
    """Return those of ``names`` that recovery along ``path`` from ``start_lsn`` on can use and that ``archive`` lacks.

    They are segments of this cluster on the path. Raises BackupError, code ``unreadable``.
    """
    found = []
    for name in names:
        if not _segments.is_segment_name(name) or (archive is not None and archive.has(name)):
            continue
        _timeline, segment = _segments.parse_segment_name(name, size)
        if segment < _segments.segment_of(start_lsn, size) or path_segment(path, segment, size) != name:
            continue
        try:
            _segments.check_segment(read_header(directory, name), name, size, system_identifier)
        except BackupError as exc:
            if exc.code == "unreadable":
                raise
            continue
        found.append(name)
    return found


def save(names: t.Sequence[str], directory: bytes, target: bytes, mode: int) -> None:
    """Move files durably to ``target``, which is made if needed; files that were moved earlier are skipped.

    Raises BackupError as ``unwritable``.
    """
    try:
        os.makedirs(target, mode=mode, exist_ok=True)
        for name in map(os.fsencode, names):
            place, saved = directory + b"/" + name, target + b"/" + name
            if not os.path.exists(place):
                continue
            if os.stat(place).st_dev == os.stat(target).st_dev:
                sync_path(place)
                os.rename(place, saved)
            else:
                copy_segment(place, saved, 0o600, True)
                os.unlink(place)
        for path in (target, os.path.dirname(target), directory):
            sync_path(path)
    except OSError as exc:
        raise unwritable(exc.filename or target, exc) from exc


def copy_segment(source: bytes, target: bytes, mode: int, sync: bool) -> None:
    """Copy one WAL file under a temporary name and rename it. Raises BackupError as ``unwritable``."""
    try:
        with open(source, "rb") as reader, replacing(target, mode=mode, durable=sync) as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
    except OSError as exc:
        raise unwritable(target, exc) from exc


def empty(directory: bytes) -> None:
    """Remove the files in a ``pg_wal``, but not its folders.

    Raises BackupError as ``unwritable``.
    """
    for folder in (directory, *(directory + b"/" + name for name in _FOLDERS)):
        try:
            with os.scandir(folder) as listing:
                entries = list(listing)
            for entry in entries:
                path = entry.path[len(directory) + 1 :]
                if entry.name == b"lost+found" or path.startswith(b"replaced-"):
                    continue
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                elif path not in _FOLDERS:
                    remove(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            raise unwritable(exc.filename or folder, exc) from exc
