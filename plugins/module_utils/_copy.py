# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying a cluster: parallel, with one read for copy and checksum, able to go on after an interruption.

The work is done by forked processes. For many small files threads are no faster than one, because they wait for each
other's interpreter lock; and a process can be stopped inside any file.

The journal is the memory of an interrupted copy: a JSON object a line, for a file whose data is written completely. It
need not survive the machine's crash, because the server's session, and with it the backup, does not either.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import stat
import struct
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils import _control, _datadir
from ansible_collections.pgfleet.basebackup.plugins.module_utils._copyfile import (
    Copied,
    FileCopier,
    append,
    backup_files,
    journal_line,
    parse_line,
    read_journal,
    sync_path,
    unwritable,
    walk,
    write_file,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import Entry, Scan, tablespace_link
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._manifest import ManifestFile, new_hash

__all__ = ("CopyResult", "copy_cluster", "copy_control", "hash_missing", "read_journal", "sync_tree")

# Never in a manifest (documentation, "Backup Manifest Format").
_UNLISTED = (b"pg_wal/", b"backup_manifest")
_CHECK_SECONDS = 0.1
_LARGE = 4 << 20
_BATCH_FILES = 32
# Work is handed out as the numbers of batches in a pipe that all workers read: four bytes, which are never torn as
# long as all writes are multiples of four and no larger than PIPE_BUF.
_TOKEN = struct.Struct("=I")
_TOKENS_AT_ONCE = select.PIPE_BUF // _TOKEN.size
_HEADER = struct.Struct("=IQIIII")

_T = t.TypeVar("_T")


class CopyResult(t.NamedTuple):
    """What a copy did: ``files`` and ``bytes`` copied in ``seconds`` of this run, ``vanished`` files that the server
    removed meanwhile, and what an earlier run had copied: ``reused_files`` of ``reused_bytes``."""

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
    """Copy what ``scan`` found to ``destination``/data and ``destination``/tablespaces.

    ``jobs`` processes copy; this one must have no other threads. Files that ``journal`` vouches for are kept, all else
    in the destination is removed and copied again. ``check`` is called ten times a second and stops everything by
    raising; ``progress`` gets the bytes and files done, those of an earlier run included. With ``sync`` all files and
    directories are durable at the return. ``global/pg_control`` is left to ``copy_control``.

    Raises BackupError: what ``check`` raised, ``unreadable`` and ``unwritable`` naming file and reason, ``disk_full``
    with ``free`` and ``needed`` bytes, ``copy_worker_died``. The journal then holds what is done.
    """
    begun = time.monotonic()
    new_hash(algorithm)
    wanted = None if algorithm == "NONE" else algorithm
    kept = _keep_finished(destination, journal, wanted)
    _make_directories(scan, destination)
    entries = [entry for entry in scan.files if entry.path not in kept]
    reused_files, reused_bytes = len(kept), sum(file.size for file in kept.values())
    tasks = _batches(entries, [entry.size for entry in entries])

    def copy(batch: t.Sequence[Entry], reporter: _Reporter) -> None:
        copier = FileCopier(algorithm, sync, reporter.advance)
        for entry in batch:
            target = destination + b"/" + _datadir.destination(entry.path, scan.tablespaces)
            copied = copier.copy(entry.source, target, entry.followed)
            reporter.finish(None if copied is None else _finished(entry.path, copied, wanted))

    files = done = vanished = 0
    with _opened(journal) as log:
        try:
            for report in _run_workers(tasks, copy, jobs, check):
                files += report.files
                done += report.done_bytes
                vanished += report.vanished
                append(log, report.lines, journal)
                progress(reused_bytes + done, reused_files + files)
        except BackupError as exc:
            if exc.code == "disk_full":
                raise _disk_full(exc, sum(entry.size for entry in entries) - done) from exc
            raise
    if sync:
        sync_tree(destination, jobs=jobs, check=check)
    return CopyResult(files, done, time.monotonic() - begun, vanished, reused_files, reused_bytes)


def copy_control(data_directory: bytes, destination: bytes, *, algorithm: str, sync: bool) -> ManifestFile:
    """Copy ``global/pg_control``, which must be read after all other files and before the backup is stopped.

    A standby has written the WAL location that a page needs into this file before it writes the page. Raises
    BackupError as ``read_control`` does, and ``unwritable``.
    """
    source = data_directory + b"/global/pg_control"
    raw = _control.read_control(source).raw
    target = destination + b"/data/global/pg_control"
    write_file(target, raw, sync)
    digest = new_hash(algorithm)
    if digest is None:
        return ManifestFile(b"global/pg_control", len(raw), int(time.time()), None, None)
    digest.update(raw)
    return ManifestFile(b"global/pg_control", len(raw), int(time.time()), algorithm, digest.hexdigest())


def hash_missing(
    destination: bytes, known: t.AbstractSet[bytes], *, jobs: int, algorithm: str, check: t.Callable[[], None]
) -> t.Iterator[ManifestFile]:
    """Hash the files of a copy that somebody else made, except ``known`` ones, paths in backup terms.

    What a manifest never lists, ``pg_wal`` and the manifest itself, is left out. Raises BackupError as copy_cluster.
    """
    new_hash(algorithm)
    wanted = None if algorithm == "NONE" else algorithm
    missing = [
        (path, place, size)
        for path, place, size in backup_files(destination)
        if path not in known and not path.startswith(_UNLISTED)
    ]

    def hash_files(batch: t.Sequence[tuple[bytes, bytes, int]], reporter: _Reporter) -> None:
        copier = FileCopier(algorithm, False, reporter.advance)
        for path, place, _size in batch:
            reporter.finish(_finished(path, copier.hash(place), wanted))

    for report in _run_workers(_batches(missing, [size for _p, _s, size in missing]), hash_files, jobs, check):
        for line in report.lines.splitlines():
            yield parse_line(line)


def sync_tree(destination: bytes, *, jobs: int, check: t.Callable[[], None]) -> None:
    """Make all that lies in ``destination`` durable: files first, then directories, children before parents."""

    def sync(batch: t.Sequence[bytes], reporter: _Reporter) -> None:
        for path in batch:
            sync_path(path)
            reporter.finish(None)

    found = list(walk(destination))
    files = [place for _directory, files in found for place, _size in files]
    directories = [directory for directory, _files_in_it in reversed(found)]
    for paths in (files, directories):
        for _report in _run_workers(_batches(paths, [0] * len(paths)), sync, jobs, check):
            pass


def _keep_finished(destination: bytes, journal: bytes, algorithm: t.Optional[str]) -> dict[bytes, ManifestFile]:
    """Reduce destination and journal to what both agree on, and return it by path."""
    finished = {file.path: file for file in read_journal(journal)}
    kept: dict[bytes, ManifestFile] = {}
    for path, place, size in backup_files(destination):
        file = finished.get(path)
        if file is not None and file.size == size and file.algorithm == algorithm:
            kept[path] = file
        else:
            # Also what was being written when the copy was killed and has vanished at its source since.
            try:
                os.unlink(place)
            except OSError as exc:
                raise unwritable(place, exc) from exc
    temporary = journal + b".new"
    write_file(temporary, b"".join(map(journal_line, kept.values())), False)
    try:
        os.rename(temporary, journal)
    except OSError as exc:
        raise unwritable(journal, exc) from exc
    return kept


def _finished(path: bytes, copied: Copied, algorithm: t.Optional[str]) -> bytes:
    return journal_line(ManifestFile(path, copied.size, copied.mtime, algorithm, copied.checksum))


def _opened(journal: bytes) -> t.BinaryIO:
    try:
        return t.cast(t.BinaryIO, open(journal, "ab", buffering=0))
    except OSError as exc:
        raise unwritable(journal, exc) from exc


def _make_directories(scan: Scan, destination: bytes) -> None:
    for path in [b"data", b"tablespaces", *(_datadir.destination(path, scan.tablespaces) for path in scan.directories)]:
        place = destination + b"/" + path
        try:
            try:
                os.mkdir(place, 0o700)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(place).st_mode):
                    raise
            os.chmod(place, 0o700)
        except OSError as exc:
            raise unwritable(place, exc) from exc
    for space in scan.tablespaces:
        if not space.in_place:
            place = destination + b"/data/pg_tblspc/%d" % space.oid
            try:
                if os.path.islink(place):
                    os.unlink(place)
                os.symlink(tablespace_link(space), place)
            except OSError as exc:
                raise unwritable(place, exc) from exc


def _disk_full(error: BackupError, needed: int) -> BackupError:
    free = error.details["free"]
    hint = f"{free / 1e6:.0f} MB are free and {needed / 1e6:.0f} MB were still to be copied."
    return BackupError(error.msg, code=error.code, hint=hint, **{**error.details, "needed": needed})


class _Report(t.NamedTuple):
    """What a worker has done since its last report: ``lines`` has one for each of ``files``."""

    done_bytes: int
    files: int
    vanished: int
    batches: int
    lines: bytes


class _Reporter:
    """A worker's line to the process that forked it."""

    def __init__(self, pipe: int, parent: int) -> None:
        self._pipe = pipe
        self._parent = parent
        self._bytes = self._files = self._vanished = 0
        self._lines: list[bytes] = []

    def advance(self, count: int) -> None:
        """Tell of bytes done."""
        self._bytes += count
        if self._bytes >= _LARGE:
            self.send()

    def finish(self, line: t.Optional[bytes]) -> None:
        """Tell of a file done with its line for the caller, or of one that has vanished or needs no line."""
        if line is None:
            self._vanished += 1
        else:
            self._files += 1
            self._lines.append(line)

    def send(self, batches_done: int = 0) -> None:
        """Send what was told since the last time, or end this process when there is nobody to hear it."""
        if os.getppid() != self._parent:
            os._exit(1)
        lines = b"".join(self._lines)
        header = _HEADER.pack(len(lines), self._bytes, self._files, self._vanished, batches_done, 0)
        self._bytes = self._files = self._vanished = 0
        self._lines.clear()
        _write_all(self._pipe, header + lines)

    def fail(self, error: BackupError) -> None:
        """Send what was done and then the reason why no more can be."""
        self.send()
        text = json.dumps([error.msg, error.code, error.hint, error.details]).encode("ascii")
        _write_all(self._pipe, _HEADER.pack(len(text), 0, 0, 0, 0, 1) + text)


def _batches(items: t.Sequence[_T], sizes: t.Sequence[int]) -> list[list[_T]]:
    """Divide work: large items alone and the largest first, so that no worker begins one when the others are done;
    then small ones together, in their order, because neighbours share a directory."""
    order = sorted((number for number, size in enumerate(sizes) if size >= _LARGE), key=lambda number: -sizes[number])
    result = [[items[number]] for number in order]
    small: list[_T] = []
    weight = 0
    for item, size in zip(items, sizes):
        if size >= _LARGE:
            continue
        small.append(item)
        weight += size
        if len(small) == _BATCH_FILES or weight >= _LARGE:
            result.append(small)
            small, weight = [], 0
    if small:
        result.append(small)
    return result


def _run_workers(
    work: t.Sequence[t.Sequence[_T]],
    function: t.Callable[[t.Sequence[_T], _Reporter], None],
    jobs: int,
    check: t.Callable[[], None],
) -> t.Iterator[_Report]:
    """Have ``jobs`` forked processes call ``function`` for each batch of ``work`` and yield what they report.

    ``check`` is called ten times a second. When it raises, a worker fails or dies, or the iterator is closed, all
    workers are killed and waited for. Raises BackupError: what ``check`` or ``function`` raised, or
    ``copy_worker_died``. This process must have no other threads.
    """
    pool = _Pool(work, function)
    try:
        pool.start(min(jobs, len(work)))
        yield from pool.reports(check)
        if pool.done != len(work):
            raise BackupError(f"{len(work) - pool.done} parts of the work were lost", code="copy_worker_died")
    finally:
        pool.stop()


class _Pool(t.Generic[_T]):
    def __init__(
        self, work: t.Sequence[t.Sequence[_T]], function: t.Callable[[t.Sequence[_T], _Reporter], None]
    ) -> None:
        self._work = work
        self._function = function
        self._handed_out = 0
        self._workers: dict[int, int] = {}  # the pipe that reports come from → process
        self._received: dict[int, bytearray] = {}
        self._take, self._give = os.pipe()
        os.set_blocking(self._give, False)
        self.done = 0

    def start(self, jobs: int) -> None:
        for _number in range(jobs):
            reader, writer = os.pipe()
            parent = os.getpid()
            process = os.fork()
            if process == 0:
                self._work_and_exit(writer, parent)
            os.close(writer)
            self._workers[reader] = process
            self._received[reader] = bytearray()

    def _work_and_exit(self, writer: int, parent: int) -> t.NoReturn:
        status = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            # The collector would copy the pages that this process shares with its parent.
            gc.disable()
            os.umask(0o077)
            os.close(self._give)
            for reader in self._workers:
                os.close(reader)
            reporter = _Reporter(writer, parent)
            try:
                while True:
                    token = os.read(self._take, _TOKEN.size)
                    if not token:
                        break
                    self._function(self._work[_TOKEN.unpack(token)[0]], reporter)
                    reporter.send(batches_done=1)
                status = 0
            except BackupError as exc:
                reporter.fail(exc)
            except Exception as exc:  # nobody sees this process die, so it says why
                reporter.fail(BackupError(f"the copy failed: {exc!r}", code="copy_worker_died"))
        finally:
            os._exit(status)

    def reports(self, check: t.Callable[[], None]) -> t.Iterator[_Report]:
        poll = select.poll()
        for reader in self._workers:
            poll.register(reader, select.POLLIN)
        poll.register(self._give, select.POLLOUT)
        due = 0.0
        while self._workers:
            if time.monotonic() >= due:
                check()
                due = time.monotonic() + _CHECK_SECONDS
            for descriptor, _events in poll.poll(_CHECK_SECONDS * 1000):
                if descriptor == self._give:
                    if self._hand_out():
                        poll.unregister(descriptor)
                        os.close(self._give)
                        self._give = -1
                    continue
                data = os.read(descriptor, 1 << 18)
                if data:
                    self._received[descriptor] += data
                    yield from self._parse(self._received[descriptor])
                else:
                    poll.unregister(descriptor)
                    self._reap(descriptor)
        check()

    def _hand_out(self) -> bool:
        """Fill the pipe and tell whether nothing is left to hand out."""
        while self._handed_out < len(self._work):
            end = min(self._handed_out + _TOKENS_AT_ONCE, len(self._work))
            try:
                os.write(self._give, b"".join(_TOKEN.pack(number) for number in range(self._handed_out, end)))
            except BlockingIOError:
                return False
            self._handed_out = end
        return True

    def _parse(self, received: bytearray) -> t.Iterator[_Report]:
        while len(received) >= _HEADER.size:
            length, count, files, vanished, finished, failed = _HEADER.unpack_from(received)
            end = _HEADER.size + length
            if len(received) < end:
                return
            payload = bytes(received[_HEADER.size : end])
            del received[:end]
            if failed:
                msg, code, hint, details = json.loads(payload)
                raise BackupError(msg, code=code, hint=hint, **details)
            self.done += finished
            yield _Report(count, files, vanished, finished, payload)

    def _reap(self, reader: int) -> None:
        process = self._workers.pop(reader)
        os.close(reader)
        _process, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            raise BackupError(f"a copying process was killed by signal {os.WTERMSIG(status)}", code="copy_worker_died")
        if status:
            raise BackupError("a copying process ended early", code="copy_worker_died")

    def stop(self) -> None:
        for process in self._workers.values():
            os.kill(process, signal.SIGKILL)
        for reader, process in self._workers.items():
            os.close(reader)
            os.waitpid(process, 0)
        self._workers.clear()
        os.close(self._take)
        if self._give >= 0:
            os.close(self._give)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
