# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work in a detached process, which survives the end of the task, the connection and the controller.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.

The process is forked from the module after all imports, because the module's payload is deleted when the task ends. It
holds a lock until it ends, and its record ``progress.json`` has the progress and the outcome. Each call of the module
is one :meth:`Job.step`: it begins the work or joins it, waits a while, and returns the result or the progress.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import time
import types
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import fields as _fields
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import (
    make_directory,
    printable,
    replacing,
    write_bytes,
    write_json,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.locks import is_locked, take_lock
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.program import close_descriptors
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trees import discard
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trust import trusted_users

RUNNING, DONE, FAILED = "running", "done", "failed"
RECORD = "progress.json"
RECORD_INTERVAL = 0.5
POLL_INTERVAL = 0.1
BEGIN_SECONDS = 5.0
RESERVE_BYTES = 16384
LARGEST = 64 << 20  # bytes of a record
PROGRESS = ("percent", "done_bytes", "total_bytes", "bytes_per_second", "seconds_left")


# What every record has; each kind of work adds its own fields. Times are in seconds since 1970.
_COMMON: t.Dict[str, _fields.Check[t.Any]] = {
    "pid": _fields.integer(1, 1 << 31),
    "started_at": _fields.timestamp,
    "finished_at": _fields.timestamp,
    "total_bytes": _fields.byte_count,
    "total_files": _fields.byte_count,
    "done_bytes": _fields.byte_count,
    "done_files": _fields.byte_count,
    "percent": _fields.number(0, _fields.MOST_SECONDS),
    "bytes_per_second": _fields.number(0, _fields.MOST_BYTES),
    "seconds_left": _fields.number(0, _fields.MOST_BYTES),
    "error": _fields.text(),
    "code": _fields.text(100),
    "hint": _fields.text(),
    "details": _fields.mapping_of(_fields.text(100), _fields.json_value),
}


def read_progress(folder: str, more: t.Mapping[str, _fields.Check[t.Any]]) -> t.Dict[str, t.Any]:
    """Return the record in ``folder``: ``state``, the values above and those that ``more`` checks; no others.

    ``{}`` when the work was never begun. Raises OSError, and ``_fields.Wrong`` naming the field.
    """
    try:
        content = _fields.read_object(os.path.join(folder, RECORD), LARGEST, trusted_users(folder))
    except FileNotFoundError:
        return {}
    found = _fields.known(content, **{**_COMMON, **more})
    found["state"] = _fields.field(content, "state", _fields.one_of(RUNNING, DONE, FAILED))
    return found


class Recorder:
    """Writes ``<folder>/progress.json``, at intervals during the work and durably at its end.

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
        """Record the progress; cheap enough to be called at any rate."""
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
        # On a full disk the work itself fails with a better message.
        with contextlib.suppress(OSError), replacing(self._path, durable=False) as stream:
            stream.write(json.dumps(self.content).encode("ascii"))

    def begin(self) -> None:
        """Write the first record, and reserve space for the final one, which a full disk must not prevent."""
        write_json(self._path, self.content)
        write_bytes(self._reserve, bytes(RESERVE_BYTES))

    def finish(self, **changes: t.Any) -> None:
        """Write the final record."""
        self.content.update(changes)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._reserve)
        write_json(self._path, self.content)


class Step(t.NamedTuple):
    """The answer of one call: ``result`` once the work is done, else None and the present ``record``.

    ``began`` is false when the work had been done before this call.
    """

    result: t.Optional[t.Mapping[str, t.Any]]
    record: t.Mapping[str, t.Any]
    began: bool = True

    def progress(self, participle: str) -> dict[str, t.Any]:
        """Return the part of a module's result that reports unfinished work, as ``12 % copied``."""
        progress = {name: self.record.get(name) for name in PROGRESS}
        return {"finished": False, "progress": progress, "msg": f"{progress['percent']} % {participle}."}


class Job:
    """A piece of work that at most one process does at a time; each kind of it is a subclass with :meth:`work`.

    ``folder`` holds its record; ``lock`` is the path of the file whose flock the process holds, by default in that
    folder. Messages speak of the ``noun`` of the ``subject``, "The copy of photo 1 failed", and codes begin with
    the noun; ``verb`` is its participle, "the process copying photo 1". ``again`` is the hint after the process
    was killed.
    """

    noun = "work"
    verb = "working on"
    again = ""
    # The checks of what the work adds to its record.
    fields: t.Mapping[str, _fields.Check[t.Any]] = types.MappingProxyType({})
    # Whether the process removes its folder when it has succeeded; the result is then kept elsewhere.
    removes_folder = False

    def __init__(self, folder: str, subject: str, lock: t.Optional[str] = None) -> None:
        self.folder = folder
        self.lock = lock or os.path.join(folder, "lock")
        self._subject = subject

    # -- what a subclass defines ------------------------------------------------------------------------------------

    def work(self, recorder: Recorder) -> t.Mapping[str, t.Any]:
        """Do the work, in the detached process, and return what is added to the final record."""
        # Not an abstract method: the other steps are empty by default, which linters refuse in an abstract base class.
        raise NotImplementedError

    def done_before(self) -> t.Optional[t.Mapping[str, t.Any]]:
        """Check before the work begins, and return its result when nothing is left to do. Raises what prevents it."""
        return self.result()

    def prepare(self) -> None:
        """Make what the lock needs; nothing is held yet."""

    def enter(self, lock: int) -> None:
        """Prepare the rest under the lock, right before the process is forked."""

    def join(self) -> None:
        """Join the running work. Raises BackupError when it is not the work that this call asks for."""

    def result(self) -> t.Optional[t.Mapping[str, t.Any]]:
        """Return the result of this work when it is finished, else None."""
        record = self.read()
        return record if record.get("state") == DONE else None

    def close(self) -> None:
        """Clean up when the result, or the failure, is known to the caller."""

    # -- what callers use -------------------------------------------------------------------------------------------

    def step(self, seconds: float) -> Step:
        """Begin the work or join it, and wait ``seconds`` for its end (0: without limit).

        Raises :class:`BackupError`: what :meth:`done_before` and :meth:`join` raise, what the work raised, ``busy``,
        and ``<noun>_killed`` when the process ended without recording a result.
        """
        if self.is_running():
            self.join()
        else:
            result = self.done_before()
            if result is not None:
                return Step(result, {}, began=False)
            self._begin()
        record = None
        try:
            record = self.wait(seconds)
        except BackupError:
            # The process may have succeeded and removed its folder with the record.
            if self.result() is None:
                self.close()
                raise
        result = self.result()
        if result is None:
            return Step(None, record or self.read())
        self.close()
        return Step(result, record or {})

    def _begin(self) -> None:
        self.prepare()
        try:
            with self.hold() as lock:
                # Another call may have done the work while this one waited.
                if self.result() is None:
                    self.enter(lock)
                    self.launch(lock)
        except BackupError as exc:
            # Another call may have begun it first.
            if exc.code != "busy" or not self.is_running():
                raise
            self.join()

    def read(self) -> dict[str, t.Any]:
        """Return the record, ``{}`` when the work was never begun or its record cannot be read: it is begun again."""
        try:
            return read_progress(self.folder, self.fields)
        except (OSError, _fields.Wrong):
            return {}

    def make_folder(self) -> None:
        """Make the folder, of mode 0700, unless it exists."""
        make_directory(self.folder)

    @contextlib.contextmanager
    def hold(self, seconds: float = 5.0) -> t.Iterator[int]:
        """Hold the lock and give its descriptor. Raises :class:`BackupError` (``busy``) when it stays held."""
        handle = take_lock(self.lock, seconds)
        if handle is None:
            raise BackupError(
                f"Another process is already working on {self._subject}.",
                code="busy",
                hint=f"Find out which process holds it: fuser -v {shlex.quote(self.lock)}",
            )
        try:
            yield handle
        finally:
            os.close(handle)

    def is_running(self) -> bool:
        """Return whether the work is running or has just ended; work that is beginning gets time to write its record.

        Raises :class:`BackupError` (``busy``) when a process holds the lock for something else.
        """
        deadline = time.monotonic() + BEGIN_SECONDS
        while is_locked(self.lock):
            if self.read().get("state") in (RUNNING, DONE):
                return True
            if time.monotonic() >= deadline:
                raise BackupError(
                    f"Another process is already working on {self._subject}, and it is not a {self.noun}.", code="busy"
                )
            time.sleep(0.05)
        return False

    def launch(self, lock: int) -> None:
        """Call :meth:`work` in a detached process, which inherits the descriptor ``lock`` of the held lock.

        :meth:`wait` raises what it raises. The caller closes the descriptor afterwards.
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
                self._run(recorder)
        finally:
            # Never return into the module's code: two processes would answer the task.
            os._exit(0)

    def _run(self, recorder: Recorder) -> None:
        recorder.content["pid"] = os.getpid()
        try:
            result = self.work(recorder)
            recorder.finish(
                **{"percent": 100.0, "seconds_left": 0, **result, "state": DONE, "finished_at": time.time()}
            )
        except BackupError as exc:
            # A module's result must not have the key "path", which Ansible takes for a file that the module manages.
            details = {name: value for name, value in exc.details.items() if name != "path"}
            recorder.finish(state=FAILED, error=exc.msg, code=exc.code, hint=exc.hint, details=details)
        except OSError as exc:
            where = f"{printable(os.fsencode(exc.filename))}: " if exc.filename else ""
            recorder.finish(state=FAILED, error=f"{where}{exc.strerror or exc}", code=f"{self.noun}_failed", hint="")
        except Exception as exc:  # this process has no one to report to, so it records why it dies
            recorder.finish(state=FAILED, error=repr(exc), code=f"{self.noun}_failed", hint="")
        if self.removes_folder and recorder.content["state"] == DONE:
            discard(self.folder)

    def wait(self, seconds: float) -> t.Optional[dict[str, t.Any]]:
        """Return the record of the finished work, None when it still runs after ``seconds`` (0: no limit).

        Raises :class:`BackupError` when the work failed or its process was killed.
        """
        deadline = time.monotonic() + seconds
        while True:
            # In this order: a process writes its final record before it releases the lock.
            locked = is_locked(self.lock)
            record = self.read()
            if record.get("state") == DONE:
                return record
            # While the lock is held, this is an earlier record, or the process is about to end.
            if record.get("state") == FAILED and not locked:
                raise BackupError(
                    f"The {self.noun} of {self._subject} failed: {record.get('error')}",
                    code=record.get("code") or f"{self.noun}_failed",
                    hint=record.get("hint") or "",
                    **{**(record.get("details") or {}), "progress": record},
                )
            if not locked:
                raise BackupError(
                    f"The process {self.verb} {self._subject} ended without recording a result; it was killed.",
                    code=f"{self.noun}_killed",
                    hint=self.again,
                    progress=record,
                )
            if seconds and time.monotonic() >= deadline:
                return None
            time.sleep(POLL_INTERVAL)


def _detach(lock: int) -> None:
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    close_descriptors(lock)
