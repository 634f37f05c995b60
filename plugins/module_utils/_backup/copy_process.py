# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy as a detached process.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.

The process holds the backup's lock and a connection to the session; its record is ``copy/progress.json``.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import copy as _backup_copy
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import journal as _backup_journal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import session_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.copy_record import COPY_FIELDS
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import manifest as _manifest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import tree as _tree
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.detached import Job, Recorder
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import Server
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup


def journal_path(backup: Backup) -> bytes:
    """Return the path of the journal."""
    return os.fsencode(backup.file("copy", "files.jsonl"))


def scan_source(server: Server, follow_symlinks: bool) -> _tree.Scan:
    """Return the files that a backup of ``server`` has to copy."""
    statistics = server.stats_temp_directory
    return _tree.scan(
        os.fsencode(server.data_directory),
        server.major,
        server.catalog_version,
        follow_symlinks=follow_symlinks,
        stats_temp_directory=os.fsencode(statistics) if statistics else None,
    )


class CopyJob(Job):
    """The copy of an unfinished backup of ``server``; ``options`` are the arguments of ``backup_copy``."""

    noun = "copy"
    verb = "copying"
    again = "Run backup_copy again: the files copied so far are kept."
    fields = COPY_FIELDS

    def __init__(self, backup: Backup, server: Server, options: t.Mapping[str, t.Any]) -> None:
        super().__init__(backup.file("copy"), f"the backup {backup.id}", lock=backup.file("lock"))
        self._backup = backup
        self._server = server
        self._options = options

    @contextlib.contextmanager
    def hold(self, seconds: float = 5.0) -> t.Iterator[int]:
        """Hold the backup's own lock."""
        with self._backup.hold(seconds) as lock:
            yield lock

    def work(self, recorder: Recorder) -> dict[str, t.Any]:
        """Copy everything; the session must live until the end."""
        return _copy_all(self._backup, self._server, self._options, recorder)


def _copy_all(backup: Backup, server: Server, options: t.Mapping[str, t.Any], recorder: Recorder) -> dict[str, t.Any]:
    watch = session_of(backup).watch()
    try:
        scan = scan_source(server, options["follow_symlinks"])
        recorder.content.update(total_bytes=scan.total_bytes, total_files=scan.total_files)
        destination = os.fsencode(backup.path)
        result = _backup_copy.copy_cluster(
            scan,
            destination,
            journal_path(backup),
            jobs=options["jobs"],
            algorithm=options["checksum_algorithm"],
            sync=options["sync"],
            check=watch.check,
            progress=recorder.progress,
        )
        watch.check()
        control = _backup_copy.copy_control(
            scan.data_directory, destination, algorithm=options["checksum_algorithm"], sync=options["sync"]
        )
        # If the session had ended by now, pg_control could be newer than the backup's end.
        watch.check()
    finally:
        watch.close()
    seconds = max(result.seconds, 0.000001)
    return {
        "done_bytes": result.bytes + result.reused_bytes,
        "done_files": result.files + result.reused_files,
        "bytes_per_second": round(result.bytes / seconds),
        "control": {
            "size": control.size,
            "mtime": control.mtime,
            "algorithm": control.algorithm,
            "checksum": control.checksum,
        },
        "checksum_algorithm": options["checksum_algorithm"],
        "files": result.files + result.reused_files + 1,
        "bytes": result.bytes + result.reused_bytes + control.size,
        "seconds": round(result.seconds, 3),
        "reused_files": result.reused_files,
        "reused_bytes": result.reused_bytes,
        "vanished_files": result.vanished,
        "special_files": [
            {
                "path": one.path.decode("utf-8", "surrogateescape"),
                "kind": one.kind,
                "target": one.target.decode("utf-8", "surrogateescape"),
            }
            for one in scan.specials
        ],
        "tablespace_oids": [one.oid for one in scan.tablespaces],
    }


def copied_files(backup: Backup) -> dict[bytes, _manifest.ManifestFile]:
    """Return the files that the copy has written, by path, without ``pg_control``."""
    return {one.path: one for one in _backup_journal.read_journal(journal_path(backup))}
