# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is a backup of ours, and its removal: the one place that decides, by descriptors and never by text.

Private to pgfleet.basebackup. Room ``_repository``: backups on disk, their records and their locks; it knows no server.

An entry of ``in_progress`` or ``backups`` is ours when it is a real directory on the same mount, belongs to a trusted
user, is not writable for others, and carries our mark: ``backup.json``, a regular file of a trusted user. Anything
else, such as a link to a live data directory, is somebody's data: it is named, and neither read, written nor removed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import is_temporary
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import mounts_below
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trees import empty, open_directory
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trust import Users, distrust, mount_of

MARK = "backup.json"
# What the steps of a backup write to or lock, and what each must be.
_WORK = {MARK: stat.S_ISREG, "lock": stat.S_ISREG, "owner.json": stat.S_ISREG, "start_files": stat.S_ISREG,
         "session": stat.S_ISDIR, "copy": stat.S_ISDIR}  # fmt: skip


class Foreign(t.NamedTuple):
    """An entry among the backups that is not one of ours; ``reason`` is a sentence."""

    name: str
    path: str
    reason: str

    def error(self) -> BackupError:
        """Return the refusal to touch it."""
        return BackupError(
            f"{self.path} is not a backup of ours and is left untouched: {self.reason}",
            code="not_ours",
            hint="Find out what it is and who put it there, then move it away yourself.",
        )


class _NotOurs(Exception):
    """The reason, a sentence."""


def why_foreign(directory: str, name: str, users: Users, marked: bool) -> t.Optional[Foreign]:
    """Return why the entry ``name`` of ``directory`` is not a backup of ours, None when it is one.

    With ``marked`` it needs the mark, too; a directory that is empty but for what a crash left is ours without it.
    Raises OSError, FileNotFoundError when there is no such entry.
    """
    parent = open_directory(directory)
    try:
        os.close(_open_ours(parent, name, users, marked))
    except _NotOurs as exc:
        return Foreign(name, os.path.join(directory, name), str(exc))
    finally:
        os.close(parent)
    return None


def remove_ours(directory: str, name: str, users: Users) -> None:
    """Remove the unfinished backup ``name`` in ``directory``, its mark at the end, and flush ``directory``.

    Everything is removed relative to descriptors. Raises BackupError, code ``not_ours``, and OSError; a backup that
    does not exist any more is no error.
    """
    path = os.path.join(directory, name)
    parent = open_directory(directory)
    try:
        with contextlib.suppress(FileNotFoundError):
            backup = _open_ours(parent, name, users, marked=True)
            try:
                mounts = mounts_below(os.fsencode(os.path.realpath(path)))
                if mounts:
                    raise _NotOurs(f"{os.fsdecode(min(mounts))} in it is a mount point.")
                empty(backup, path, last=MARK)
            finally:
                os.close(backup)
            # Another directory of this name would have to be empty.
            os.rmdir(name, dir_fd=parent)
        os.fsync(parent)
    except _NotOurs as exc:
        raise Foreign(name, path, str(exc)).error() from exc
    finally:
        os.close(parent)


def _open_ours(parent: int, name: str, users: Users, marked: bool) -> int:
    """Return a descriptor of the backup ``name``. Raises _NotOurs with the reason, and OSError."""
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        raise _NotOurs(f"It is a symbolic link to {os.readlink(name, dir_fd=parent)}.")
    if not stat.S_ISDIR(status.st_mode):
        raise _NotOurs("It is not a directory.")
    _require_trusted(status, users, "It", name)
    backup = open_directory(name, parent)
    try:
        # From here on the descriptor decides, whatever the name leads to.
        _require_trusted(os.fstat(backup), users, "It", name)
        if mount_of(backup) != mount_of(parent):
            raise _NotOurs("It is a mount point.")
        if marked:
            _require_mark(backup, users)
    except BaseException:
        os.close(backup)
        raise
    return backup


def _require_mark(backup: int, users: Users) -> None:
    names = os.listdir(backup)
    if MARK not in names and any(name != "lock" and not is_temporary(name) for name in names):
        raise _NotOurs(f"It has no {MARK}.")
    for name in sorted(set(names) & set(_WORK)):
        status = os.stat(name, dir_fd=backup, follow_symlinks=False)
        if not _WORK[name](status.st_mode):
            raise _NotOurs(f"Its {name} is not a {'file' if _WORK[name] is stat.S_ISREG else 'directory'} of ours.")
        _require_trusted(status, users, f"Its {name}", name)


def _require_trusted(status: os.stat_result, users: Users, what: str, name: str) -> None:
    found = distrust(status, users, what, name)
    if found:
        raise _NotOurs(found.reason)
