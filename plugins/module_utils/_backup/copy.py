# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying a cluster: in parallel, with one read for copy and checksum; an interrupted copy can be continued.

Forked processes do the work (``_host/workers.py``).

The journal lists the files that are written completely, one JSON array per line, so that an interrupted copy can be
continued. It need not survive a crash of the machine: the server's session, and with it the backup, does not either.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.journal import (
    journal_line,
    parse_line,
    read_journal,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import control as _control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.manifest import ManifestFile
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.tree import Entry, Scan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.checksums import new_hash
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.copier import Copied, FileCopier
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import replacing, unwritable, write_file
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.journal import append, open_journal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trees import sync_tree
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.units import readable_bytes
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.workers import Reporter, batches, run_workers
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.plain import PlainLayout, external


class CopyResult(t.NamedTuple):
    """What a copy did: ``files`` and ``bytes`` copied in ``seconds`` of this run, ``vanished`` files that the server
    removed during the copy, and ``reused_files`` of ``reused_bytes``, which an earlier run had copied."""

    files: int
    bytes: int
    seconds: float
    vanished: int
    reused_files: int
    reused_bytes: int


def copy_cluster(
    scan: Scan,
    destination: bytes,
    journal: bytes,
    *,
    jobs: int,
    algorithm: str,
    sync: bool,
    check: t.Callable[[], None],
    progress: t.Callable[[int, int], None],
) -> CopyResult:
    """Copy the files of ``scan`` to ``destination``, in the layout of ``plain.py``.

    ``jobs`` processes copy; this one must have no other threads. Files that ``journal`` lists are kept, all others in
    the destination are removed and copied again. ``check`` is called ten times a second and stops everything by
    raising; ``progress`` gets the bytes and files done, those of an earlier run included. With ``sync`` all files and
    directories are durable at the return. ``global/pg_control`` is left to ``copy_control``.

    Raises BackupError: what ``check`` raised, ``unreadable`` and ``unwritable`` naming file and reason, ``disk_full``
    with ``free`` and ``needed`` bytes, ``copy_worker_died``. The journal then lists the finished files.
    """
    begun = time.monotonic()
    new_hash(algorithm)
    wanted = None if algorithm == "NONE" else algorithm
    layout = PlainLayout(destination, external(scan.tablespaces))
    layout.refuse_links()
    kept = _keep_finished(layout, journal, wanted)
    _make_directories(scan, layout)
    entries = [entry for entry in scan.files if entry.path not in kept]
    reused_files, reused_bytes = len(kept), sum(file.size for file in kept.values())
    tasks = batches(entries, [entry.size for entry in entries])

    def copy(batch: t.Sequence[Entry], reporter: Reporter) -> None:
        copier = FileCopier(algorithm, sync, reporter.advance)
        for entry in batch:
            copied = copier.copy(entry.source, layout.place(entry.path), entry.followed)
            reporter.finish(None if copied is None else _finished(entry.path, copied, wanted))

    files = done = vanished = 0
    with open_journal(journal) as log:
        try:
            for report in run_workers(tasks, copy, jobs, check):
                files += report.files
                done += report.done_bytes
                vanished += report.vanished
                append(log, report.lines, journal)
                progress(reused_bytes + done, reused_files + files)
        except BackupError as exc:
            if exc.code == "disk_full":
                # An incomplete file is useless, and other programs, maybe the server itself, need its space.
                with contextlib.suppress(BackupError):
                    _keep_finished(layout, journal, wanted)
                raise _disk_full(exc, sum(entry.size for entry in entries) - done) from exc
            raise
    if sync:
        sync_tree(destination, jobs=jobs, check=check)
    return CopyResult(files, done, time.monotonic() - begun, vanished, reused_files, reused_bytes)


def copy_control(data_directory: bytes, destination: bytes, *, algorithm: str, sync: bool) -> ManifestFile:
    """Copy ``global/pg_control``, which must be read after all other files and before the backup is stopped.

    A standby writes the WAL location that a page needs into this file before it writes the page. Raises
    BackupError as ``read_control`` does, and ``unwritable``.
    """
    source = data_directory + b"/global/pg_control"
    raw = _control.read_control(source).raw
    write_file(PlainLayout(destination).place(b"global/pg_control"), raw, sync)
    digest = new_hash(algorithm)
    if digest is None:
        return ManifestFile(b"global/pg_control", len(raw), int(time.time()), None, None)
    digest.update(raw)
    return ManifestFile(b"global/pg_control", len(raw), int(time.time()), algorithm, digest.hexdigest())


def hash_missing(
    destination: bytes, known: t.AbstractSet[bytes], *, jobs: int, algorithm: str, check: t.Callable[[], None]
) -> t.Iterator[ManifestFile]:
    """Hash the files of a copy that the user made, except ``known`` ones, paths in backup terms.

    ``pg_wal`` and the manifest itself, which a manifest never lists, are left out. Raises BackupError as copy_cluster.
    """
    new_hash(algorithm)
    wanted = None if algorithm == "NONE" else algorithm
    missing = [
        (path, place, size)
        for path, place, size in PlainLayout(destination).files()
        if path not in known and path != b"backup_manifest" and not path.startswith(b"pg_wal/")
    ]

    def hash_files(batch: t.Sequence[tuple[bytes, bytes, int]], reporter: Reporter) -> None:
        copier = FileCopier(algorithm, False, reporter.advance)
        for path, place, _size in batch:
            reporter.finish(_finished(path, copier.hash(place), wanted))

    for report in run_workers(batches(missing, [size for _p, _s, size in missing]), hash_files, jobs, check):
        for line in report.lines.splitlines():
            yield parse_line(line)


def _keep_finished(layout: PlainLayout, journal: bytes, algorithm: t.Optional[str]) -> dict[bytes, ManifestFile]:
    """Reduce the copy and its journal to the files on which both agree, and return these by path."""
    finished = {file.path: file for file in read_journal(journal)}
    kept: dict[bytes, ManifestFile] = {}
    for path, place, size in layout.files():
        file = finished.get(path)
        if file is not None and file.size == size and file.algorithm == algorithm:
            kept[path] = file
        else:
            # It may be a file that was being written when the copy was killed, and has vanished at the source since.
            try:
                os.unlink(place)
            except OSError as exc:
                raise unwritable(place, exc) from exc
    try:
        with replacing(journal, durable=False) as stream:
            stream.writelines(map(journal_line, kept.values()))
    except OSError as exc:
        raise unwritable(journal, exc) from exc
    return kept


def _finished(path: bytes, copied: Copied, algorithm: t.Optional[str]) -> bytes:
    return journal_line(ManifestFile(path, copied.size, copied.mtime, algorithm, copied.checksum))


def _make_directories(scan: Scan, layout: PlainLayout) -> None:
    for place in [layout.data, layout.tablespaces, *map(layout.place, scan.directories)]:
        try:
            try:
                os.mkdir(place, 0o700)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(place).st_mode):
                    raise
            os.chmod(place, 0o700)
        except OSError as exc:
            raise unwritable(place, exc) from exc
    for oid in external(scan.tablespaces):
        place = layout.link(oid)
        try:
            if os.path.islink(place):
                os.unlink(place)
            os.symlink(layout.link_target(oid), place)
        except OSError as exc:
            raise unwritable(place, exc) from exc


def _disk_full(error: BackupError, needed: int) -> BackupError:
    free = error.details["free"]
    hint = f"{readable_bytes(free)} are free, and {readable_bytes(needed)} were still to be copied."
    return BackupError(error.msg, code=error.code, hint=hint, **{**error.details, "needed": needed})
