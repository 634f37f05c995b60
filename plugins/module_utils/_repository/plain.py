# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the files of a backup lie in the repository: as PostgreSQL has them.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.tree import Tablespace
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trees import walk


def backup_files(destination: bytes) -> t.Iterator[tuple[bytes, bytes, int]]:
    """Yield the files of a backup: path in backup terms, where it lies, size."""
    for top, prefix in ((b"/data/", b""), (b"/tablespaces/", b"pg_tblspc/")):
        root = destination + top
        for _directory, files in walk(root[:-1]):
            for place, size in files:
                yield prefix + place[len(root) :], place, size


def destination(path: bytes, tablespaces: t.Sequence[Tablespace]) -> bytes:
    """Return where ``path``, in backup terms, lies in a backup of ours.

    That is ``data/<path>``, or ``tablespaces/<oid>/…`` for what belongs to a tablespace outside the data directory.
    """
    if path.startswith(b"pg_tblspc/"):
        oid, slash, rest = path[len(b"pg_tblspc/") :].partition(b"/")
        if any(not space.in_place and b"%d" % space.oid == oid for space in tablespaces):
            return b"tablespaces/" + oid + slash + rest
    return b"data/" + path


def tablespace_link(tablespace: Tablespace) -> bytes:
    """Return the text of the link ``data/pg_tblspc/<oid>`` in a backup of ours."""
    return b"../../tablespaces/%d" % tablespace.oid
