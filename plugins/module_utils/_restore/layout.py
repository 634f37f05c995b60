# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The places of the restored files: where they go, what exists there already, and its removal.

Nothing is removed or written through a link: a link in the place of a directory is itself removed. Other tablespaces
and nested mounts are never entered. Paths are bytes, and "in backup terms" as in ``_datadir``.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import contextlib
import os
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import trees as _trees
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import unreadable, unwritable

WORK = b"pgfleet_restore"
RECORD = b"pgfleet_restore.json"
CONTROL = b"global/pg_control"

# The restore writes these itself, from the backup or the module's arguments.
WRITTEN = frozenset(
    (
        CONTROL,
        RECORD,
        b"postgresql.auto.conf",
        b"recovery.signal",
        b"standby.signal",
        b"tablespace_map",
    )
)

# A survey does not enter these.
_APART = frozenset((WORK, RECORD, CONTROL, b"pg_wal", b"lost+found"))


# What the server logged before may show why it must be restored.
_LOGS = (b"log", b"pg_log")


class Space(t.NamedTuple):
    """A tablespace: its location at the source, the one to restore to, and the latter with all links resolved."""

    oid: int
    original: bytes
    location: bytes
    real: bytes


class Existing(t.NamedTuple):
    """An existing regular file in the place of a file of the backup.

    ``alone`` means that it has no other name, which would belong to another tree, and belongs to this user.
    """

    size: int
    mode: int
    alone: bool


class Survey(t.NamedTuple):
    """The contents of the target: files in the right places, and ``surplus`` ones (path, is a directory) to remove."""

    existing: dict[bytes, Existing]
    surplus: list[tuple[bytes, bool]]


class Layout:
    """The places of a restored cluster.

    ``data`` is the data directory with all links resolved, ``version`` the name of the server's directory in each
    tablespace, ``waldir`` the target of ``pg_wal`` when that is a link. ``mounts`` are the mount points inside.
    """

    def __init__(
        self,
        data: bytes,
        version: bytes,
        spaces: t.Sequence[Space],
        waldir: t.Optional[bytes],
        mounts: t.AbstractSet[bytes],
        group_access: bool,
    ) -> None:
        self.data = data
        self.version = version
        self.spaces = spaces
        self.waldir = waldir
        self.mounts = mounts
        self.directory_mode = 0o750 if group_access else 0o700
        self.file_mode = 0o640 if group_access else 0o600
        self._spaces = {b"%d" % space.oid: space for space in spaces}
        self._user = os.geteuid()

    def place(self, path: bytes) -> bytes:
        """Return the place of ``path``, in backup terms."""
        if path.startswith(b"pg_tblspc/"):
            oid, slash, rest = path[len(b"pg_tblspc/") :].partition(b"/")
            space = self._spaces.get(oid)
            if space is not None:
                return space.real + slash + rest
        elif self.waldir is not None and path.startswith(b"pg_wal/"):
            return self.waldir + path[len(b"pg_wal") :]
        return self.data + b"/" + path

    @property
    def roots(self) -> list[bytes]:
        """The directories that together hold everything."""
        roots = [self.data, *(space.real + b"/" + self.version for space in self.spaces)]
        return roots if self.waldir is None else [*roots, self.waldir]

    @property
    def wal_root(self) -> bytes:
        """The root that holds the WAL."""
        return self.waldir or self.data

    def survey(self, files: t.Container[bytes], directories: t.Container[bytes], links: t.Container[bytes]) -> Survey:
        """Return what exists in the target; ``files``, ``directories`` and symbolic ``links``, in backup terms, may
        stay.

        ``pg_wal`` is left to ``old_wal.py``. Raises BackupError, code ``unreadable``.
        """
        survey = Survey({}, [])
        pending = self._tops(survey)
        untouched = self.mounts | {space.real for space in self.spaces}
        while pending:
            prefix, directory = pending.pop()
            for entry in _entries(directory):
                path = prefix + entry.name
                if path in _APART or entry.path in untouched:
                    continue
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    if self._is_entered(path, entry, directories, untouched):
                        pending.append((path + b"/", entry.path))
                    else:
                        survey.surplus.append((entry.path, True))
                elif stat.S_ISREG(status.st_mode) and path in files:
                    alone = status.st_nlink == 1 and status.st_uid == self._user
                    survey.existing[path] = Existing(status.st_size, stat.S_IMODE(status.st_mode), alone)
                elif not self._may_stay(path, entry, stat.S_ISLNK(status.st_mode) and path in links):
                    survey.surplus.append((entry.path, False))
        return survey

    def _tops(self, survey: Survey) -> list[tuple[bytes, bytes]]:
        """Return where the survey begins: prefix in backup terms, and directory; links there are surplus."""
        tops = [(b"", self.data)]
        for space in self.spaces:
            place = space.real + b"/" + self.version
            if os.path.islink(place):
                survey.surplus.append((place, False))
            else:
                tops.append((b"pg_tblspc/%d/%s/" % (space.oid, self.version), place))
        return tops

    def _is_entered(
        self,
        path: bytes,
        entry: os.DirEntry[bytes],
        directories: t.Container[bytes],
        untouched: t.AbstractSet[bytes],
    ) -> bool:
        """Return whether a directory stays, so that its contents are surveyed."""
        if path.startswith(b"pg_tblspc/") and path.count(b"/") == 1 and entry.name in self._spaces:
            return False
        return path in directories or path in _LOGS or any(one.startswith(entry.path + b"/") for one in untouched)

    def _may_stay(self, path: bytes, entry: os.DirEntry[bytes], known_link: bool) -> bool:
        if path.partition(b"/")[0] in _LOGS or known_link:
            return True
        space = self._spaces.get(entry.name) if path.startswith(b"pg_tblspc/") else None
        return space is not None and entry.is_symlink() and os.readlink(entry.path) == space.location

    def make_directory(self, place: bytes) -> None:
        """Make a directory with the server's mode; anything else of its name is removed, but never the target of a
        link.

        Raises BackupError as ``unwritable``.
        """
        try:
            try:
                os.mkdir(place, 0o700)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(place).st_mode):
                    os.unlink(place)
                    os.mkdir(place, 0o700)
            os.chmod(place, self.directory_mode)
        except OSError as exc:
            raise unwritable(place, exc) from exc

    def make_link(self, place: bytes, target: bytes) -> None:
        """Make a symbolic link, or keep the one that already leads there. Raises BackupError as ``unwritable``."""
        try:
            if os.path.islink(place):
                if os.readlink(place) == target:
                    return
                os.unlink(place)
            elif os.path.isdir(place):
                _trees.remove(place)
            os.symlink(target, place)
        except OSError as exc:
            raise unwritable(place, exc) from exc


def _entries(directory: bytes) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(directory) as listing:
            return list(listing)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise unreadable(directory, exc) from exc


def remove(place: bytes, is_directory: bool) -> None:
    """Remove a surplus file, link or tree of a survey. Raises BackupError as ``unwritable``.

    A file or link that has become a directory since the survey is not removed: that tree was never judged.
    """
    try:
        if is_directory:
            _trees.remove(place)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place)
    except OSError as exc:
        raise unwritable(exc.filename or place, exc) from exc


def is_empty(directory: bytes, *known: bytes) -> bool:
    """Return whether ``directory`` is absent or empty, apart from ``known`` names and what a file system or a replaced
    cluster leaves.

    Raises BackupError, code ``unreadable``.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False
    except OSError as exc:
        raise unreadable(directory, exc) from exc
    return all(name in (b"lost+found", *known) or name.startswith(b"replaced-") for name in names)


def wal_directory(data: bytes) -> t.Optional[bytes]:
    """Return the real path of the ``pg_wal`` of a data directory, None when there is none."""
    place = data + b"/pg_wal"
    try:
        return os.path.realpath(place) if stat.S_ISDIR(os.stat(place).st_mode) else None
    except OSError:
        return None
