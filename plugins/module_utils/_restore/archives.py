# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An archive combined with the WAL in a backup, or with that of the cluster to be replaced.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.pg_wal import read_header, unarchived
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import Archive, DirectoryArchive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.records import scan_segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import (
    is_segment_name,
    parse_segment_header,
    parse_segment_name,
)


class ArchiveAndBackup(DirectoryArchive):
    """The archive first and then the WAL in a backup, in the server's order.

    The last segment in a standby's backup may end where the backup ends; then it must not bridge a gap in the archive.
    """

    def __init__(self, directory: str, outer: t.Optional[Archive], size: int, identifier: int) -> None:
        super().__init__(directory, size, identifier)
        self.description = f"{outer.description} and the WAL in the backup" if outer else "the WAL in the backup"
        self.can_list = outer is None or outer.can_list
        self._outer = outer

    def names(self) -> frozenset[str]:
        """Return the names of both."""
        own = super().names()
        if not isinstance(self._outer, DirectoryArchive):
            return own
        others = self._outer.names()
        last = max(filter(is_segment_name, own), default="")
        if last and last not in others and any(is_segment_name(name) and name[8:] > last[8:] for name in others):
            scans = scan_segments([(parse_segment_name(last, self.size)[1], self.read(last))], self.size)
            if next(iter(scans)).stops_at is not None:
                own -= {last}
        return own | others

    def has(self, name: str) -> bool:
        """Return whether one of them has the file."""
        return (self._outer is not None and self._outer.has(name)) or super().has(name)

    def _content(self, name: str) -> t.Optional[bytes]:
        content = self._outer._content(name) if self._outer else None
        return super()._content(name) if content is None else content


class ArchiveAndServer(DirectoryArchive):
    """An archive first and then the segments in ``directories`` that only the cluster to be replaced has.

    The target of a recovery is often later than the last archived segment.
    """

    def __init__(self, archive: DirectoryArchive, directories: t.Sequence[bytes]) -> None:
        super().__init__(archive.directory, archive.size, archive.system_identifier)
        self.description = f"{archive.description} and the server's own WAL"
        self._own: dict[str, str] = {}
        for directory in directories:
            for name in unarchived(directory, self.size, archive.has):
                if is_segment_name(name) and self._is_ours(directory, name):
                    self._own.setdefault(name, os.path.join(os.fsdecode(directory), name))

    def _is_ours(self, directory: bytes, name: str) -> bool:
        found = parse_segment_header(read_header(directory, name)).system_identifier
        return self.system_identifier in (None, found)

    def names(self) -> frozenset[str]:
        """Return the names of all files, as DirectoryArchive does."""
        return super().names() | frozenset(self._own)

    def _place(self, name: str) -> t.Optional[tuple[str, str]]:
        own = self._own.get(name)
        return super()._place(name) or ((own, "") if own else None)
