# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on many files in forked processes.

For many small files several threads are no faster than one, because they wait for the interpreter lock. And a process
can be killed in the middle of any file.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import struct
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

_CHECK_SECONDS = 0.1
_LARGE = 4 << 20
_BATCH_FILES = 32

# Work is handed out as the numbers of batches in a pipe that all workers read: four bytes, which are never torn as
# long as all writes are multiples of four and no larger than PIPE_BUF.
_TOKEN = struct.Struct("=I")
_TOKENS_AT_ONCE = select.PIPE_BUF // _TOKEN.size
_HEADER = struct.Struct("=IQIIII")
_T = t.TypeVar("_T")


class Report(t.NamedTuple):
    """What a worker has done since its last report: ``lines`` has one for each of ``files``."""

    done_bytes: int
    files: int
    vanished: int
    batches: int
    lines: bytes


class Reporter:
    """A worker's connection to the process that forked it."""

    def __init__(self, pipe: int, parent: int) -> None:
        self._pipe = pipe
        self._parent = parent
        self._bytes = self._files = self._vanished = 0
        self._lines: list[bytes] = []

    def advance(self, count: int) -> None:
        """Report bytes done."""
        self._bytes += count
        if self._bytes >= _LARGE:
            self.send()

    def finish(self, line: t.Optional[bytes]) -> None:
        """Report a finished file with its line for the caller; None for one that has vanished or needs no line."""
        if line is None:
            self._vanished += 1
        else:
            self._files += 1
            self._lines.append(line)

    def send(self, batches_done: int = 0) -> None:
        """Send the reports since the last time, or end this process when the one that forked it has ended."""
        if os.getppid() != self._parent:
            os._exit(1)
        lines = b"".join(self._lines)
        header = _HEADER.pack(len(lines), self._bytes, self._files, self._vanished, batches_done, 0)
        self._bytes = self._files = self._vanished = 0
        self._lines.clear()
        _write_all(self._pipe, header + lines)

    def fail(self, error: BackupError) -> None:
        """Send what was done, then the error that ends the work."""
        self.send()
        text = json.dumps([error.msg, error.code, error.hint, error.details]).encode("ascii")
        _write_all(self._pipe, _HEADER.pack(len(text), 0, 0, 0, 0, 1) + text)


def batches(items: t.Sequence[_T], sizes: t.Sequence[int]) -> list[list[_T]]:
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


def run_workers(
    work: t.Sequence[t.Sequence[_T]],
    function: t.Callable[[t.Sequence[_T], Reporter], None],
    jobs: int,
    check: t.Callable[[], None],
) -> t.Iterator[Report]:
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
            raise BackupError(f"{len(work) - pool.done} parts of the work were lost.", code="copy_worker_died")
    finally:
        pool.stop()


class _Pool(t.Generic[_T]):
    def __init__(
        self, work: t.Sequence[t.Sequence[_T]], function: t.Callable[[t.Sequence[_T], Reporter], None]
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
            reporter = Reporter(writer, parent)
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
            except Exception as exc:  # this process has no one else to report to
                reporter.fail(BackupError(f"A worker process failed: {exc!r}.", code="copy_worker_died"))
        finally:
            os._exit(status)

    def reports(self, check: t.Callable[[], None]) -> t.Iterator[Report]:
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
        """Fill the pipe and return whether nothing is left to hand out."""
        while self._handed_out < len(self._work):
            end = min(self._handed_out + _TOKENS_AT_ONCE, len(self._work))
            try:
                os.write(self._give, b"".join(_TOKEN.pack(number) for number in range(self._handed_out, end)))
            except BlockingIOError:
                return False
            self._handed_out = end
        return True

    def _parse(self, received: bytearray) -> t.Iterator[Report]:
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
            yield Report(count, files, vanished, finished, payload)

    def _reap(self, reader: int) -> None:
        process = self._workers.pop(reader)
        os.close(reader)
        _process, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            raise BackupError(f"A worker process was killed by signal {os.WTERMSIG(status)}.", code="copy_worker_died")
        if status:
            raise BackupError("A worker process ended early.", code="copy_worker_died")

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
