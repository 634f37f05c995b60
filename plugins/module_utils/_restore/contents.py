# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The contents of the chosen backup: the files and directories to restore.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.manifest import ManifestFile
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.checksums import new_hash
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable, unreadable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.candidate import Choice
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.findings import Findings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import (
    WORK,
    WRITTEN,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.pg_wal import check_header
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.quick import Found, QuickCheck
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import Archive, DirectoryArchive


class Contents(t.NamedTuple):
    """The files to copy, the ``small`` ones that are read instead, and the directories, by path in backup terms.

    ``links`` are symbolic links at the source, which are not in the backup; existing ones may stay.
    """

    files: t.Tuple[Found, ...] = ()
    small: t.Mapping[bytes, Found] = {}
    directories: t.Tuple[bytes, ...] = ()
    links: t.FrozenSet[bytes] = frozenset()

    @property
    def paths(self) -> frozenset[bytes]:
        """The paths of the files to copy."""
        return frozenset(file.entry.path for file in self.files)


def check_contents(findings: Findings, choice: Choice) -> Contents:
    """Return the contents of the chosen backup; refuse it when the quick check finds damage.

    Raises BackupError, code ``unreadable``.
    """
    backup = choice.backup
    quick = QuickCheck(backup, choice.record)
    if quick.bad_files:
        first = quick.bad_files[0]
        findings.refuse(
            "damaged_backup",
            f"The backup {backup.id} is damaged: {first['path']}: {first['msg']} ({len(quick.bad_files)} in all)",
            "Restore another backup.",
            bad_files=quick.bad_files,
        )
    files, small = [], {}
    for file in quick.files:
        if file.entry.path in WRITTEN:
            small[file.entry.path] = file
            findings.collect(b"", read_verified, file)
        elif not file.entry.path.startswith(WORK + b"/"):
            files.append(file)
    files += _included_wal(choice)
    if any(file.entry.algorithm is None for file in files):
        findings.warn(f"The backup {backup.id} has no checksums: its files cannot be verified.")
    directories = findings.collect((), backup.layout(choice.record.stop.tablespaces).directories)
    special = choice.record.copy.special_files
    links = frozenset(one.path.encode("utf-8", "surrogateescape") for one in special if one.kind == "symlink")
    return Contents(tuple(files), small, tuple(directories), links)


def _included_wal(choice: Choice) -> list[Found]:
    layout, files = choice.backup.layout(), []
    for name, checksum in choice.record.included_wal.items():
        path = b"pg_wal/" + os.fsencode(name)
        place = layout.place(path)
        # A missing one has already been refused as damage of the backup.
        if os.path.isfile(place):
            files.append(Found(ManifestFile(path, os.stat(place).st_size, 0, "SHA256", checksum), place))
    return files


def check_needed_wal(findings: Findings, choice: Choice, archive: t.Optional[Archive]) -> None:
    """Check the first page of the needed WAL files: those of another cluster have the same names."""
    if isinstance(archive, DirectoryArchive):
        server = choice.record.server
        size, identifier = server.wal_segment_size, int(server.system_identifier)
        for name in choice.wal_needed:
            findings.collect(None, check_header, os.fsencode(archive.directory), name, size, identifier)


def read_verified(file: Found) -> bytes:
    """Return the content of a small file of the backup. Raises BackupError: ``corrupt_file``, ``unreadable``."""
    try:
        with open(file.place, "rb") as stream:
            content = stream.read()
    except OSError as exc:
        raise unreadable(file.place, exc) from exc
    digest = new_hash(file.entry.algorithm or "NONE")
    if digest is not None:
        digest.update(content)
    if len(content) != file.entry.size or (digest is not None and digest.hexdigest() != file.entry.checksum):
        raise corrupt(file, f"its {file.entry.algorithm} is not {file.entry.checksum}")
    return content


def corrupt(file: Found, why: str) -> BackupError:
    """Return the error for a file of the backup whose content is not what was backed up."""
    return BackupError(
        f"The file {printable(file.entry.path)} of the backup is damaged: {why} ({printable(file.place)}).",
        code="corrupt_file",
        hint="Restore another backup; pgfleet.basebackup.backup_verify names all damaged files of this one.",
        file=printable(file.entry.path),
    )
