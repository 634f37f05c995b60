# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where pgfleet_wal.py archives to: the directory of the archive and the script, planned and then made.

Private to pgfleet.basebackup. Room ``_wal``: names, records and archives of WAL; it knows no server and no backup.
"""

from __future__ import annotations

import inspect
import os
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import fsync_path, user_name, write_bytes
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import inside, nearest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trust import refuse_unsafe, trusted_users
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import pgfleet_wal as _pgfleet_wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.script import SCRIPT

MODE = 0o700


class Place:
    """An archive in ``directory``, by default in the cluster's directory ``home`` of the repository, and the script in
    ``scripts``.

    ``home``, ``scripts`` and the script have mode 0700. The archive is made with it; the mode of an existing one is its
    owner's. ``changes`` has for each path that is to be made or changed its content, or mode, before and after.
    """

    def __init__(self, home: str, directory: str, scripts: str) -> None:
        self.home = home
        self.directory = directory
        self.scripts = scripts
        self.script = os.path.join(scripts, SCRIPT)
        self.changes: dict[str, tuple[str, str]] = {}
        for place in (home, scripts):
            self._compare(place, _described(place), _described_as(MODE))
        if not os.path.isdir(directory):
            self._compare(directory, _described(directory), _described_as(MODE))
        self._source = inspect.getsource(_pgfleet_wal)
        self._compare(self.script, _described(self.script) + _content(self.script), _described_as(MODE) + self._source)

    def _compare(self, path: str, before: str, after: str) -> None:
        if before != after:
            self.changes[path] = (before, after)

    def diff(self) -> list[dict[str, str]]:
        """Return the changes in the shape of a module's diff."""
        return [
            {"before_header": path, "after_header": path, "before": before, "after": after}
            for path, (before, after) in self.changes.items()
        ]

    def make(self) -> None:
        """Make the changes, durably. Raises OSError."""
        for path in (self.home, self.directory, self.scripts):
            if path in self.changes:
                _make_directory(path)
        if self.script in self.changes:
            write_bytes(self.script, self._source.encode("utf-8"))
            os.chmod(self.script, MODE)


def refuse_scripts(scripts: str, apart: t.Iterable[str]) -> None:
    """Check the directory ``scripts`` for the script, which must not be in the directories ``apart``.

    Raises BackupError: ``bad_script_directory``, or ``unsafe_directory`` when another user can change it; and OSError.
    """
    user = user_name(os.geteuid())
    reason = ""
    if not os.path.isabs(scripts):
        reason = f"{scripts} is not an absolute path" if scripts else f"The user {user} has no home directory"
    else:
        refuse_unsafe(scripts, "The directory", trusted_users())
        real = os.path.realpath(scripts)
        around = [one for one in apart if inside(os.fsencode(real), os.fsencode(os.path.realpath(one)))]
        writable = os.fsdecode(nearest(os.fsencode(real)))
        if around:
            reason = f"{scripts} lies in {around[0]}"
        elif not os.path.isdir(writable) or not os.access(writable, os.W_OK | os.X_OK):
            reason = f"The user {user} cannot write to {writable}"
    if reason:
        raise BackupError(
            f"{SCRIPT} cannot be installed: {reason}.",
            code="bad_script_directory",
            hint=f"Set {option('script_directory')} to a directory of {user}, outside the repository and the data"
            " directory.",
        )


def unusable(directory: str) -> t.Optional[str]:
    """Return why the archive ``directory``, if it exists, cannot be written to by this user; None when it can."""
    try:
        found = os.stat(directory)
    except FileNotFoundError:
        return None
    except OSError as exc:
        return f"The archive {directory} cannot be entered: {exc.strerror}."
    if stat.S_ISDIR(found.st_mode) and os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return None
    return (
        f"The archive {directory} is not a directory that the user with id {os.geteuid()} can write to"
        f" (owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o})."
    )


def _make_directory(path: str) -> None:
    try:
        # Missing parents get this mode by the umask that all modules set.
        os.makedirs(path, MODE)
    except FileExistsError:
        # Not the mode of a file, or of what a dangling link may name later.
        if not os.path.isdir(path):
            raise
        os.chmod(path, MODE)
    fsync_path(path)
    fsync_path(os.path.dirname(os.path.abspath(path)))


def _described(path: str) -> str:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return "absent\n"
    # Its owner could change it: it is written anew.
    owner = "" if status.st_uid in trusted_users() else f"owner {user_name(status.st_uid)}\n"
    return owner + _described_as(stat.S_IMODE(status.st_mode))


def _described_as(mode: int) -> str:
    return f"mode {mode:04o}\n"


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""
