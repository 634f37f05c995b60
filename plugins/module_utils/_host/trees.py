# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directory trees: walked, flushed to disk, removed.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import AnyPath, sync_path, unreadable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trust import mount_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.workers import Reporter, batches, run_workers


def walk(directory: bytes) -> t.Iterator[tuple[bytes, list[tuple[bytes, int]]]]:
    """Yield the directories of a tree, parents first, each with its regular files and their sizes; links are not
    followed. A tree that does not exist is empty."""
    pending = [directory]
    while pending:
        directory = pending.pop()
        files = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        files.append((entry.path, entry.stat(follow_symlinks=False).st_size))
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise unreadable(directory, exc) from exc
        yield directory, files


def sync_tree(destination: bytes, *, jobs: int, check: t.Callable[[], None]) -> None:
    """Make everything in ``destination`` durable: files first, then directories, children before parents."""

    def sync(batch: t.Sequence[bytes], reporter: Reporter) -> None:
        for path in batch:
            _sync(path)
            reporter.finish(None)

    found = list(walk(destination))
    files = [place for _directory, files in found for place, _size in files]
    directories = [directory for directory, _files_in_it in reversed(found)]
    for paths in (files, directories):
        for _report in run_workers(batches(paths, [0] * len(paths)), sync, jobs, check):
            pass


def _sync(path: bytes) -> None:
    """Flush a file or directory, unless it belongs to another user, who alone can have written it."""
    try:
        sync_path(path)
    except BackupError as exc:
        if exc.details.get("errno") != "EACCES" or os.lstat(path).st_uid == os.geteuid():
            raise


def remove(path: AnyPath) -> None:
    """Remove a file, a link or a directory with its contents; a missing one is no error.

    Links are not followed, and mount points are neither entered nor removed. Raises OSError, with the path.
    """
    directory, name = os.path.split(os.path.abspath(path))
    try:
        # The caller vouches for the way to it; only the entry itself is never followed.
        parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_at(parent, os.fsdecode(name), path)
    finally:
        os.close(parent)


def discard(path: AnyPath) -> None:
    """Remove a directory that is no longer needed, as far as possible."""
    with contextlib.suppress(OSError):
        remove(path)


def open_directory(name: t.Union[str, bytes], parent: t.Optional[int] = None) -> int:
    """Return a descriptor of a directory, by its path or by its name in ``parent``; a link to one is an OSError."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def remove_at(parent: int, name: str, path: AnyPath) -> None:
    """Remove as :func:`remove` the entry ``name`` of the open directory ``parent``; ``path`` is for messages.

    Everything is removed relative to descriptors, so no name that is exchanged meanwhile leads elsewhere.
    """
    with contextlib.suppress(FileNotFoundError), _naming(path):
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)
            return
        directory = open_directory(name, parent)
        try:
            if mount_of(directory) != mount_of(parent):
                raise OSError(errno.EBUSY, "Is a mount point, which is not removed", path)
            empty(directory, path)
        finally:
            os.close(directory)
        os.rmdir(name, dir_fd=parent)


def empty(directory: int, path: AnyPath, last: str = "") -> None:
    """Remove the entries of an open directory, ``last`` at the end. Raises OSError, with the path."""
    for name in sorted(os.listdir(directory), key=lambda one: one == last):
        remove_at(directory, name, _join(path, name))


@contextlib.contextmanager
def _naming(path: AnyPath) -> t.Iterator[None]:
    try:
        yield
    except OSError as exc:
        # Relative to a descriptor the error has only the last name.
        if isinstance(exc.filename, type(path)) and os.path.isabs(exc.filename):
            raise
        raise OSError(exc.errno, exc.strerror, path) from exc


def _join(path: AnyPath, name: str) -> AnyPath:
    return os.path.join(path, name if isinstance(path, str) else os.fsencode(name))
