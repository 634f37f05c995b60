# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work in a detached process, which goes on when the task, the connection or the controller dies.

Private to pgfleet.basebackup: no stability is promised.

The process is forked from the module after everything is imported, because the module's payload disappears. It holds a
lock as long as it lives, and its record ``progress.json`` tells the modules how far it is and how it ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import (
    make_directory,
    read_json,
    replacing,
    write_bytes,
    write_json,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.locks import is_locked, take_lock

RUNNING, DONE, BROKEN = "running", "done", "failed"


RECORD = "progress.json"


RECORD_INTERVAL = 0.5


POLL_INTERVAL = 0.1


BEGIN_SECONDS = 5.0


RESERVE_BYTES = 16384


PROGRESS = ("percent", "done_bytes", "total_bytes", "bytes_per_second", "seconds_left")


class Recorder:
    """Writes ``<folder>/progress.json``, now and then while the work goes on and durably at its end.

    ``content`` is what is written: ``state``, ``pid``, ``started_at`` (seconds since 1970), ``total_bytes``,
    ``total_files``, ``done_bytes``, ``done_files``, ``percent``, and what the work adds.
    """

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, RECORD)
        self._reserve = os.path.join(folder, "reserve")
        self._begun = time.monotonic()
        self._written = 0.0
        self.content: dict[str, t.Any] = {
            "state": RUNNING,
            "pid": os.getpid(),
            "started_at": time.time(),
            "total_bytes": 0,
            "total_files": 0,
            "done_bytes": 0,
            "done_files": 0,
            "percent": 0.0,
        }

    def progress(self, done_bytes: int, done_files: int) -> None:
        """Tell how much is done; cheap, so that it may be called as often as one likes."""
        now = time.monotonic()
        if now < self._written + RECORD_INTERVAL:
            return
        self._written = now
        seconds = now - self._begun
        total = self.content["total_bytes"]
        rate = done_bytes / seconds if seconds > 0 else 0.0
        self.content.update(
            done_bytes=done_bytes,
            done_files=done_files,
            percent=round(100.0 * done_bytes / total, 1) if total else 100.0,
            bytes_per_second=round(rate),
            seconds_left=round((total - done_bytes) / rate) if rate > 0 else None,
        )
        # On a full disk those that work have the better message.
        with contextlib.suppress(OSError), replacing(self._path, durable=False) as stream:
            stream.write(json.dumps(self.content).encode("ascii"))

    def begin(self) -> None:
        """Write the first record, and keep room for the last one, which a full disk must not prevent."""
        write_json(self._path, self.content)
        write_bytes(self._reserve, bytes(RESERVE_BYTES))

    def finish(self, **changes: t.Any) -> None:
        """Write the last record."""
        self.content.update(changes)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._reserve)
        write_json(self._path, self.content)


class Job:
    """A piece of work that at most one process does at a time.

    ``folder`` holds its record; ``lock`` is the path of the file whose flock the process holds, by default in that
    folder. Messages speak of the ``noun`` of the ``subject``, "The copy of the backup b1 failed", and codes begin with
    the noun. ``again`` is the hint for somebody whose process was killed.
    """

    def __init__(self, folder: str, noun: str, subject: str, again: str, lock: t.Optional[str] = None) -> None:
        self.folder = folder
        self.lock = lock or os.path.join(folder, "lock")
        self._noun = noun
        self._subject = subject
        self._again = again

    def read(self) -> dict[str, t.Any]:
        """Return the record, ``{}`` when the work was never begun."""
        try:
            return read_json(os.path.join(self.folder, RECORD))
        except (OSError, ValueError):
            return {}

    def make_folder(self) -> None:
        """Make the folder, of mode 0700, unless it is there."""
        make_directory(self.folder)

    @contextlib.contextmanager
    def hold(self, seconds: float = 5.0) -> t.Iterator[int]:
        """Hold the lock and give its descriptor. Raises :class:`BackupError` (``busy``) when it stays taken."""
        handle = take_lock(self.lock, seconds)
        if handle is None:
            raise BackupError(
                f"Another process works on {self._subject} now.",
                code="busy",
                hint=f"Find out which process holds it: fuser -v {self.lock}",
            )
        try:
            yield handle
        finally:
            os.close(handle)

    def is_running(self) -> bool:
        """Tell whether the work goes on, or has just ended; one that begins is given the time to say so.

        Raises :class:`BackupError` (``busy``) when somebody holds the lock for something else.
        """
        deadline = time.monotonic() + BEGIN_SECONDS
        while is_locked(self.lock):
            if self.read().get("state") in (RUNNING, DONE):
                return True
            if time.monotonic() >= deadline:
                raise BackupError(
                    f"Another process works on {self._subject}, and it is not a {self._noun}.", code="busy"
                )
            time.sleep(0.05)
        return False

    def launch(self, lock: int, work: t.Callable[[Recorder], t.Mapping[str, t.Any]]) -> None:
        """Call ``work`` in a detached process, which inherits the descriptor ``lock`` of the held lock.

        What ``work`` returns is added to the record of its end; what it raises is raised by :meth:`wait`. The caller
        lets go of the lock after the return.
        """
        self.make_folder()
        recorder = Recorder(self.folder)
        recorder.begin()
        first = os.fork()
        if first:
            os.waitpid(first, 0)
            return
        try:
            _detach(lock)
            if os.fork() == 0:
                self._run(work, recorder)
        finally:
            # Never back into the module's code: two processes would answer the task.
            os._exit(0)

    def _run(self, work: t.Callable[[Recorder], t.Mapping[str, t.Any]], recorder: Recorder) -> None:
        recorder.content["pid"] = os.getpid()
        try:
            result = work(recorder)
            recorder.finish(
                **{"percent": 100.0, "seconds_left": 0, **result, "state": DONE, "finished_at": time.time()}
            )
        except BackupError as exc:
            # A module's result must not have the key "path", which Ansible takes for a file of its own.
            details = {name: value for name, value in exc.details.items() if name != "path"}
            recorder.finish(state=BROKEN, error=exc.msg, code=exc.code, hint=exc.hint, details=details)
        except Exception as exc:  # nobody sees this process die, so it writes down why
            code = f"{self._noun}_failed"
            recorder.finish(state=BROKEN, error=repr(exc), code=code, hint="")

    def wait(self, seconds: float) -> t.Optional[dict[str, t.Any]]:
        """Return the record of the finished work, None when it still goes on after ``seconds`` (0: no limit).

        Raises :class:`BackupError` when the work failed or its process was killed.
        """
        deadline = time.monotonic() + seconds
        while True:
            # Asked in this order: who ends in between has written the last word before letting go of the lock.
            locked = is_locked(self.lock)
            record = self.read()
            if record.get("state") == DONE:
                return record
            # While the lock is held that is an earlier record, or the process is about to end.
            if record.get("state") == BROKEN and not locked:
                raise BackupError(
                    f"The {self._noun} of {self._subject} failed: {record['error']}",
                    code=record.get("code") or f"{self._noun}_failed",
                    hint=record.get("hint") or "",
                    **{**(record.get("details") or {}), "progress": record},
                )
            if not locked:
                raise BackupError(
                    f"The process of the {self._noun} of {self._subject} is gone without a word; it was killed.",
                    code=f"{self._noun}_killed",
                    hint=self._again,
                    progress=record,
                )
            if seconds and time.monotonic() >= deadline:
                return None
            time.sleep(POLL_INTERVAL)


def progress_of(record: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the part of a running job's record that a module returns as ``progress``."""
    return {name: record.get(name) for name in PROGRESS}


def _detach(lock: int) -> None:
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != lock:
            try:
                os.close(int(name))
            except OSError:
                pass
