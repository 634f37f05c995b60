# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directory trees: walked, flushed to disk, removed.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import AnyPath, sync_path, unreadable
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


class _NotRemoved(Exception):
    """Carries an error of rmtree past its own handlers, which replace the name of the file by its directory's."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


def remove(path: AnyPath) -> None:
    """Remove a file, a link or a directory with its contents; links are not followed, and a missing one is no error.

    Raises OSError, whose ``filename`` is the whole path of what could not be removed.
    """

    def failed(place: t.Any, error: BaseException) -> None:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            # rmtree names it by text even when it got bytes, and partly by its last part alone.
            error.filename = os.fsencode(place) if isinstance(path, bytes) else os.fsdecode(place)
            raise _NotRemoved(error)

    with contextlib.suppress(FileNotFoundError):
        try:
            if not os.path.isdir(path) or os.path.islink(path):
                os.unlink(path)
            elif sys.version_info >= (3, 12):
                shutil.rmtree(path, onexc=lambda _function, place, error: failed(place, error))
            else:
                shutil.rmtree(path, onerror=lambda _function, place, error: failed(place, error[1]))
        except _NotRemoved as exc:
            raise exc.error from exc


def discard(path: AnyPath) -> None:
    """Remove a directory that is no longer needed, as far as possible."""
    shutil.rmtree(path, ignore_errors=True)
