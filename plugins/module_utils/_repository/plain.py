# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout of a plain backup, that of ``pg_basebackup -Fp``.

Private to pgfleet.basebackup. Room ``_repository``: backups on disk, their records and their locks; it knows no server.

No other file knows it::

    data/                           the data directory
    data/pg_tblspc/<oid>            a link to ../../tablespaces/<oid>, or the directory of an in-place tablespace
    tablespaces/<oid>/              a tablespace outside the data directory

A path "in backup terms" is relative to the data directory, as in ``_datadir.tree``.
"""

from __future__ import annotations

import errno
import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.tree import Tablespace
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable, unreadable

# If one of these is missing, a directory only looks like a backup.
ESSENTIAL = (b"PG_VERSION", b"backup_label", b"backup_manifest", b"global/pg_control")
_SPACES = b"pg_tblspc/"


def external(tablespaces: t.Iterable[Tablespace]) -> list[int]:
    """Return the oids of the tablespaces outside the data directory."""
    return [space.oid for space in tablespaces if not space.in_place]


class PlainLayout:
    """The places of a backup's files in ``directory``; ``oids`` are those of the tablespaces outside ``data``."""

    def __init__(self, directory: bytes, oids: t.Iterable[int] = ()) -> None:
        self.directory = directory
        self.data = directory + b"/data"
        self.tablespaces = directory + b"/tablespaces"
        self._oids = frozenset(b"%d" % oid for oid in oids)

    def place(self, path: bytes) -> bytes:
        """Return the place of ``path``, in backup terms."""
        if path.startswith(_SPACES) and path[len(_SPACES) :].partition(b"/")[0] in self._oids:
            return self.tablespaces + b"/" + path[len(_SPACES) :]
        return self.data + b"/" + path

    def tablespace(self, oid: int) -> bytes:
        """Return the directory of a tablespace outside the data directory."""
        return self.tablespaces + b"/%d" % oid

    def link(self, oid: int) -> bytes:
        """Return the place of the link to a tablespace."""
        return self.data + b"/" + _SPACES + b"%d" % oid

    @staticmethod
    def link_target(oid: int) -> bytes:
        """Return the target of the link to a tablespace."""
        return b"../../tablespaces/%d" % oid

    def refuse_links(self) -> None:
        """Raise BackupError, code ``not_ours``, when what is written to the backup would land elsewhere."""
        for place in (self.data, self.tablespaces):
            if os.path.islink(place):
                raise BackupError(
                    f"{printable(place)} is a symbolic link to {printable(os.readlink(place))}, which is not a part of"
                    " the backup.",
                    code="not_ours",
                    hint="Find out who made it. Nothing was changed there.",
                )

    def lost(self, paths: t.Iterable[bytes] = ()) -> list[bytes]:
        """Return which of the essential files, and of ``paths`` in backup terms, are missing."""
        if os.path.islink(self.data):
            return list(ESSENTIAL)
        return [path for path in (*ESSENTIAL, *paths) if not os.path.isfile(self.place(path))]

    def entries(
        self, on_error: t.Optional[t.Callable[[bytes, OSError], None]] = None
    ) -> t.Iterator[tuple[bytes, os.DirEntry[bytes]]]:
        """Yield all files and directories of the backup, with their paths in backup terms, parents first.

        Links are not followed. A directory that cannot be read is passed to ``on_error``, by its path in backup terms;
        without it BackupError is raised, code ``unreadable``.
        """
        pending = [(b"", self.data), (_SPACES, self.tablespaces)]
        while pending:
            prefix, directory = pending.pop()
            try:
                if directory in (self.data, self.tablespaces) and os.path.islink(directory):
                    raise OSError(errno.ELOOP, "Is a symbolic link, which leads out of the backup")
                with os.scandir(directory) as listing:
                    entries = list(listing)
            except FileNotFoundError:
                continue
            except OSError as exc:
                if on_error is None:
                    raise unreadable(directory, exc) from exc
                on_error(prefix[:-1], exc)
                continue
            for entry in entries:
                path = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append((path + b"/", entry.path))
                yield path, entry

    def files(self) -> t.Iterator[tuple[bytes, bytes, int]]:
        """Yield the regular files: path in backup terms, place, size. Raises BackupError, code ``unreadable``."""
        for path, entry in self.entries():
            if entry.is_file(follow_symlinks=False):
                yield path, entry.path, entry.stat(follow_symlinks=False).st_size

    def directories(self) -> list[bytes]:
        """Return the directories in backup terms, parents first. Raises BackupError, code ``unreadable``."""
        return sorted(path for path, entry in self.entries() if entry.is_dir(follow_symlinks=False))
