# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying a backup's files to their places: in parallel, verified by the read that copies; it can be continued.

An existing file with the right content is kept, which makes a restore over a damaged directory cheap. The journal lists
the files that an interrupted restore has finished, one JSON array per line. The listed files may not survive a crash of
the machine, so a journal of an earlier boot does not count.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.copier import FileCopier
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable, unreadable, unwritable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.journal import append, open_journal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.workers import Reporter, batches, run_workers
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.contents import corrupt
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import Existing, Layout
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.quick import Found

_BOOT = "/proc/sys/kernel/random/boot_id"


class Copies(t.NamedTuple):
    """The files ``copied``, ``kept`` because their content was right, and ``reused`` from an interrupted run."""

    copied_files: int
    copied_bytes: int
    kept_files: int
    kept_bytes: int
    reused_files: int
    reused_bytes: int
    seconds: float


def restore_files(
    files: t.Sequence[Found],
    layout: Layout,
    existing: t.Mapping[bytes, Existing],
    journal: bytes,
    *,
    jobs: int,
    sync: bool,
    check: t.Callable[[], None],
    progress: t.Callable[[int, int], None],
) -> Copies:
    """Copy ``files`` to their places, over ``existing`` ones, with ``jobs`` processes.

    ``check`` is called between batches and may raise; ``progress`` gets the bytes and files done. With ``sync`` the
    kernel starts writing to disk early; the caller flushes. Raises BackupError: ``corrupt_file`` naming the first file
    of the backup whose content is not what was backed up, ``unreadable``, ``unwritable``, ``disk_full``,
    ``copy_worker_died``.
    """
    begun = time.monotonic()
    todo, reused_bytes = _unfinished(files, existing, _finished(journal))
    reused_files = len(files) - len(todo)

    def work(batch: t.Sequence[Found], reporter: Reporter) -> None:
        copiers: dict[str, FileCopier] = {}
        for file in batch:
            algorithm = file.entry.algorithm or "NONE"
            if algorithm not in copiers:
                copiers[algorithm] = FileCopier(algorithm, sync, reporter.advance)
            kept = _restore(file, copiers[algorithm], layout, existing.get(file.entry.path))
            reporter.finish(_line(file, kept))

    copied = [0, 0]
    kept = [0, 0]
    done_bytes = 0
    with _opened(journal) as log:
        for report in run_workers(batches(todo, [one.entry.size for one in todo]), work, jobs, check):
            for line in report.lines.splitlines():
                _path, size, _checksum, was_kept = json.loads(line)
                counts = kept if was_kept else copied
                counts[0] += 1
                counts[1] += size
            done_bytes += report.done_bytes
            append(log, report.lines, journal)
            progress(reused_bytes + done_bytes, reused_files + copied[0] + kept[0])
    seconds = time.monotonic() - begun
    return Copies(copied[0], copied[1], kept[0], kept[1], reused_files, reused_bytes, seconds)


def _unfinished(
    files: t.Sequence[Found],
    existing: t.Mapping[bytes, Existing],
    done: t.Mapping[bytes, tuple[int, t.Optional[str]]],
) -> tuple[list[Found], int]:
    """Return the files that the journal does not list, and the bytes of the others."""
    todo, reused_bytes = [], 0
    for file in files:
        entry, found = file.entry, existing.get(file.entry.path)
        wanted = (entry.size, entry.checksum)
        if found and found.alone and found.size == entry.size and done.get(entry.path) == wanted:
            reused_bytes += entry.size
        else:
            todo.append(file)
    return todo, reused_bytes


def equal_files(
    files: t.Sequence[Found],
    layout: Layout,
    existing: t.Mapping[bytes, Existing],
    jobs: int,
) -> tuple[int, int]:
    """Return number and bytes of the files that a restore would keep, by reading them. Raises as restore_files."""
    likely = [file for file in files if _comparable(file, existing.get(file.entry.path))]

    def work(batch: t.Sequence[Found], reporter: Reporter) -> None:
        for file in batch:
            copier = FileCopier(str(file.entry.algorithm), False, reporter.advance)
            reporter.finish(_line(file, True) if _is_right(file, copier, layout) else None)

    number = size = 0
    for report in run_workers(batches(likely, [one.entry.size for one in likely]), work, jobs, lambda: None):
        for line in report.lines.splitlines():
            number += 1
            size += json.loads(line)[1]
    return number, size


def _comparable(file: Found, there: t.Optional[Existing]) -> bool:
    """Return whether the existing file may be the right one, so that comparing is worthwhile."""
    return there is not None and there.alone and there.size == file.entry.size and file.entry.algorithm is not None


def _is_right(file: Found, copier: FileCopier, layout: Layout) -> bool:
    try:
        return copier.hash(layout.place(file.entry.path)).checksum == file.entry.checksum
    except BackupError:
        # A file that cannot be read is one of the reasons for a restore.
        return False


def _restore(file: Found, copier: FileCopier, layout: Layout, there: t.Optional[Existing]) -> bool:
    """Copy one file to its place, unless it is already there with the right content; return whether it was."""
    entry = file.entry
    target = layout.place(entry.path)
    if _comparable(file, there) and _is_right(file, copier, layout):
        if there is not None and there.mode != layout.file_mode:
            _set_mode(target, layout.file_mode)
        return True
    copied = copier.copy(file.place, target)
    if copied is None:
        raise BackupError(f"The file {printable(file.place)} of the backup no longer exists.", code="corrupt_file")
    if copied.checksum != entry.checksum or copied.size != entry.size:
        with contextlib.suppress(OSError):
            os.unlink(target)
        raise corrupt(file, f"its {entry.algorithm} is {copied.checksum} instead of {entry.checksum}")
    if layout.file_mode != 0o600:
        _set_mode(target, layout.file_mode)
    return False


def _set_mode(target: bytes, mode: int) -> None:
    try:
        os.chmod(target, mode)
    except OSError as exc:
        raise unwritable(target, exc) from exc


def _line(file: Found, kept: bool) -> bytes:
    entry = file.entry
    line = [entry.path.decode("utf-8", "surrogateescape"), entry.size, entry.checksum, kept]
    return json.dumps(line).encode("ascii") + b"\n"


def _finished(journal: bytes) -> dict[bytes, tuple[int, t.Optional[str]]]:
    """Return the files that the journal lists, none when it is of another boot of the machine."""
    finished: dict[bytes, tuple[int, t.Optional[str]]] = {}
    try:
        with open(journal, "rb") as lines:
            if lines.readline() != _header():
                return {}
            for line in lines:
                # A killed process leaves a torn line, to which the next run appends.
                with contextlib.suppress(ValueError, TypeError):
                    path, size, checksum, _kept = json.loads(line)
                    finished[path.encode("utf-8", "surrogateescape")] = (size, checksum)
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise unreadable(journal, exc) from exc
    return finished


def _header() -> bytes:
    with open(_BOOT, "rb") as stream:
        return stream.read().strip() + b"\n"


def _opened(journal: bytes) -> t.BinaryIO:
    """Open the journal to append to, a new one when it is of another boot."""
    try:
        with contextlib.suppress(FileNotFoundError), open(journal, "rb") as lines:
            if lines.readline() != _header():
                os.unlink(journal)
    except OSError as exc:
        raise unwritable(journal, exc) from exc
    log = open_journal(journal)
    if os.fstat(log.fileno()).st_size == 0:
        append(log, _header(), journal)
    return log
