# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A WAL archive: a directory, or a ``restore_command``.

The files of a directory have their own names, plain or compressed. A ``restore_command`` can fetch a file by name, but
cannot list them. Sources: PostgreSQL, sections "Continuous Archiving and Point-in-Time
Recovery" and "Timelines"; timelineOfPointInHistory and findNewestTimeLine of timeline.c; RestoreArchivedFile of
xlogarchive.c for what the exit codes of ``restore_command`` mean.

Private to pgfleet.basebackup. Room ``_wal``: names, records and archives of WAL; it knows no server and no backup.
"""

from __future__ import annotations

import abc
import os
import shutil
import tempfile
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import script as _script
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import timelines as _timelines
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.files import (
    SUFFIXES,
    UNREADABLE,
    Entry,
    list_files,
    load,
    runs,
    tool_missing,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import is_segment, segment_numbers
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.timelines import HistoryEntry

# The programs that a restore_command calls.
_DECOMPRESSORS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".lz4": "lz4"}

# Last complete record, and the ends of transactions (LSN, time).
Tail = t.Tuple[t.Optional[int], t.List[t.Tuple[int, int]]]


class Archive(abc.ABC):
    """A source of WAL files, by name.

    ``size`` is the segment size in bytes. Files of another cluster than ``system_identifier`` (None: any) are refused.
    """

    can_list = False

    def __init__(self, description: str, size: int, system_identifier: t.Optional[int]) -> None:
        self.description = description
        self.size = size
        self.system_identifier = system_identifier

    @abc.abstractmethod
    def _content(self, name: str) -> t.Optional[bytes]:
        """Return a file, decompressed, or None when the archive does not have it. Raises one of UNREADABLE."""

    def has(self, name: str) -> bool:
        """Return whether the file is in the archive. Only :meth:`read` checks it."""
        try:
            return self._content(name) is not None
        except UNREADABLE:
            return True

    def holds(self, name: str) -> bool:
        """Return whether the file is in the archive and whole. A file may still be on its way: False can become True.

        Raises :class:`BackupError`, code ``bad_segment`` or ``bad_history``, for another cluster's or position's.
        """
        try:
            content = self._content(name)
        except UNREADABLE:
            return False
        return content is not None and self._is_whole(name, content)

    def read(self, name: str) -> bytes:
        """Return a whole file, checked as :meth:`holds` does.

        Raises :class:`BackupError`: code ``wal_missing`` when the archive lacks it, ``bad_segment`` when it is bad.
        """
        try:
            content = self._content(name)
        except UNREADABLE as exc:
            raise BackupError(
                f"The WAL file {name} of {self.description} cannot be read: {exc or type(exc).__name__}",
                code="bad_segment",
            ) from exc
        if content is None:
            raise BackupError(f"The WAL file {name} is not in {self.description}.", code="wal_missing", missing=[name])
        if not self._is_whole(name, content):
            raise BackupError(
                f"The WAL file {name} of {self.description} has only {len(content)} bytes.", code="bad_segment"
            )
        return content

    def history(self, timeline: int) -> list[HistoryEntry]:
        """Return the ancestors of a timeline, oldest first.

        Raises :class:`BackupError`: code ``history_missing``, or ``bad_history`` for one that the server would refuse.
        """
        if timeline == 1:
            return []
        name = _segments.history_name(timeline)
        try:
            entries = _timelines.parse_history(self.read(name).decode("ascii", "replace"))
        except BackupError as exc:
            if exc.code != "wal_missing":
                raise
            raise BackupError(
                f"The history file {name} is not in {self.description}.", code="history_missing", missing=[name]
            ) from exc
        if entries and entries[-1].timeline >= timeline:
            raise BackupError(
                f"{name} of {self.description} names timeline {entries[-1].timeline} as an ancestor.",
                code="bad_history",
            )
        return entries

    def _is_whole(self, name: str, content: bytes) -> bool:
        if _segments.is_history_name(name):
            _timelines.parse_history(content.decode("ascii", "replace"))
            return len(content) > 0
        if len(content) < self.size:
            return False
        if len(content) > self.size:
            raise BackupError(
                f"{name} of {self.description} has {len(content)} bytes; a WAL segment has {self.size} here.",
                code="bad_segment",
            )
        identifier = self.system_identifier
        if identifier is None:
            identifier = _segments.parse_segment_header(content).system_identifier
        _segments.check_segment(content, name, self.size, identifier)
        return True


class DirectoryArchive(Archive):
    """A directory. It is listed once; :meth:`has` and :meth:`read` access the file system on each call."""

    can_list = True

    def __init__(self, directory: str, size: int, system_identifier: t.Optional[int]) -> None:
        super().__init__(f"the archive {directory}", size, system_identifier)
        self.directory = directory
        self._entries: t.Optional[list[Entry]] = None
        self._names: t.Optional[frozenset[str]] = None
        self._numbers: t.Optional[dict[int, set[int]]] = None
        self.tails: dict[tuple[str, int], Tail] = {}

    def entries(self) -> list[Entry]:
        """Return the regular files of the directory, by name. Raises :class:`BackupError` when it cannot be listed."""
        if self._entries is None:
            try:
                self._entries = sorted(list_files(self.directory))
            except OSError as exc:
                raise BackupError(
                    f"{self.description} cannot be listed: {exc.strerror}", code="archive_unreadable"
                ) from exc
        return self._entries

    def names(self) -> frozenset[str]:
        """Return the names of the segments and history files, without those that are too short.

        A compressed file counts as whole.
        """
        if self._names is None:
            self._names = frozenset(entry.name for entry in self.entries() if self.counts(entry))
        return self._names

    def numbers(self) -> dict[int, set[int]]:
        """Return the segments of :meth:`names` by their timelines."""
        if self._numbers is None:
            self._numbers = segment_numbers(self.names(), self.size)
        return self._numbers

    def counts(self, entry: Entry) -> bool:
        """Return whether a file of the listing is one of :meth:`names`."""
        if _segments.is_history_name(entry.name):
            return entry.size > 0
        return is_segment(entry.name, self.size) and (bool(entry.suffix) or entry.size >= self.size)

    def _place(self, name: str) -> t.Optional[tuple[str, str]]:
        """Return a file's path and ending."""
        for suffix in SUFFIXES:
            path = os.path.join(self.directory, name + suffix)
            if os.path.isfile(path):
                return path, suffix
        return None

    def has(self, name: str) -> bool:
        """Return whether the file is in the directory; a plain one must have its full length."""
        place = self._place(name)
        return place is not None and (
            bool(place[1]) or _segments.is_history_name(name) or os.path.getsize(place[0]) >= self.size
        )

    def _content(self, name: str) -> t.Optional[bytes]:
        place = self._place(name)
        return load(*place) if place else None


class CommandArchive(Archive):
    """A ``restore_command`` with %f, %p and %%, run on this host in a temporary directory."""

    def __init__(self, command: str, size: int, system_identifier: t.Optional[int]) -> None:
        super().__init__(f"the archive of {command!r}", size, system_identifier)
        self.command = command

    def _content(self, name: str) -> t.Optional[bytes]:
        if not (_segments.is_segment_name(name) or _segments.is_history_name(name)):
            # The name comes from a record and goes to a shell.
            raise BackupError(f"{name!r} is not the name of a WAL file.", code="bad_wal_name")
        with tempfile.TemporaryDirectory(prefix="pgfleet-") as folder:
            # The server's %p never ends in the name that it asks for either.
            target = os.path.join(folder, "RECOVERYXLOG")
            line = self.command.replace("%%", "\0").replace("%f", name).replace("%p", target).replace("\0", "%")
            return load(target, "") if runs(line, folder) and os.path.isfile(target) else None


def open_archive(
    directory: t.Optional[str], command: t.Optional[str], size: int, system_identifier: t.Optional[int]
) -> t.Optional[Archive]:
    """Return the archive that a module's arguments name, None without both.

    Raises :class:`BackupError`: ``archive_missing`` for a directory that does not exist.
    """
    if directory:
        if not os.path.isdir(directory):
            raise BackupError(
                f"The archive {directory} is not a directory of this host.",
                code="archive_missing",
                hint=f"Mount it, or set another {option('archive_directory')} or {option('restore_command')}.",
            )
        return DirectoryArchive(directory, size, system_identifier)
    return CommandArchive(command, size, system_identifier) if command else None


def restore_command(archive: Archive) -> str:
    """Return a ``restore_command`` for this archive, one line for ``sh``.

    For a file that the archive does not have it exits with 1, and recovery ends there. For a file that cannot be
    fetched, or an archive that cannot be entered, it exits with 255: above 125 the server stops instead of promoting
    without the rest. Raises :class:`BackupError`, code ``tool_missing``, when this host lacks the program for a
    compression in use.
    """
    if isinstance(archive, CommandArchive):
        return archive.command
    if not isinstance(archive, DirectoryArchive):
        raise TypeError(f"{archive!r} is neither a directory nor a command")
    folder = _script.quoted(archive.directory)
    script = _script.installed()
    if script:
        return _script.restore_command(script, archive.directory)
    steps = [f'[ -e {folder}/%f ]; then cp {folder}/%f "%p" || exit 255']
    for suffix in sorted({entry.suffix for entry in archive.entries() if entry.name in archive.names()} - {""}):
        tool = shutil.which(_DECOMPRESSORS[suffix])
        if tool is None:
            raise tool_missing(archive.description, _DECOMPRESSORS[suffix])
        steps.append(
            f'[ -e {folder}/%f{suffix} ]; then {_script.quoted(tool)} -dc {folder}/%f{suffix} > "%p" || exit 255'
        )
    return f"[ -x {folder}/. ] || exit 255; if {'; elif '.join(steps)}; else exit 1; fi"
