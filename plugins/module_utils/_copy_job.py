# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy as a process of its own, which goes on when the task, the connection or the controller dies.

Private to pgfleet.basebackup: no stability is promised.

The process holds the backup's lock and a line to the session; its record ``copy/progress.json`` tells the modules how
far it is. It is forked from the module after everything is imported, because the module's payload disappears.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils import _copy, _datadir, _manifest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository import (
    Backup,
    fsync_path,
    write_bytes,
    write_json,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._work import (
    COPY_RECORD,
    read_progress,
    session_of,
)

RUNNING, DONE, BROKEN = "running", "done", "failed"
RECORD_INTERVAL = 0.5
POLL_INTERVAL = 0.1
BEGIN_SECONDS = 5.0
RESERVE_BYTES = 16384


def journal_path(backup: Backup) -> bytes:
    """Return the path of the list of files that are copied."""
    return os.fsencode(backup.file("copy", "files.jsonl"))


def scan_source(content: t.Mapping[str, t.Any], follow_symlinks: bool) -> _datadir.Scan:
    """Return what the backup with the metadata ``content`` has to copy."""
    server = content["server"]
    statistics = server.get("stats_temp_directory")
    return _datadir.scan(
        os.fsencode(server["data_directory"]),
        server["major"],
        server["catalog_version"],
        follow_symlinks=follow_symlinks,
        stats_temp_directory=os.fsencode(statistics) if statistics else None,
    )


class _Recorder:
    """Writes ``copy/progress.json``, now and then while the copy runs and durably at its end."""

    def __init__(self, backup: Backup, total_bytes: int, total_files: int) -> None:
        self._path = backup.file(*COPY_RECORD)
        self._reserve = backup.file("copy", "reserve")
        self._begun = time.monotonic()
        self._written = 0.0
        self.content: dict[str, t.Any] = {
            "state": RUNNING,
            "pid": os.getpid(),
            "started_at": time.time(),
            "total_bytes": total_bytes,
            "total_files": total_files,
            "done_bytes": 0,
            "done_files": 0,
            "percent": 0.0,
        }

    def progress(self, done_bytes: int, done_files: int) -> None:
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
        # Read by others while it is replaced, so by rename; not durable, so without fsync.
        temporary = self._path + ".new"
        # On a full disk those that copy have the better message.
        with contextlib.suppress(OSError):
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as stream:
                stream.write(json.dumps(self.content).encode("ascii"))
            os.rename(temporary, self._path)

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


def _copy_all(
    backup: Backup, content: t.Mapping[str, t.Any], options: t.Mapping[str, t.Any], recorder: _Recorder
) -> None:
    watch = session_of(backup).watch()
    try:
        scan = scan_source(content, options["follow_symlinks"])
        recorder.content.update(total_bytes=scan.total_bytes, total_files=scan.total_files)
        destination = os.fsencode(backup.path)
        result = _copy.copy_cluster(
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
        control = _copy.copy_control(
            scan.data_directory, destination, algorithm=options["checksum_algorithm"], sync=options["sync"]
        )
        # A session lost by now would mean that pg_control may be newer than the backup's end.
        watch.check()
    finally:
        watch.close()
    seconds = max(result.seconds, 0.000001)
    recorder.finish(
        state=DONE,
        percent=100.0,
        done_bytes=result.bytes + result.reused_bytes,
        done_files=result.files + result.reused_files,
        seconds_left=0,
        bytes_per_second=round(result.bytes / seconds),
        finished_at=time.time(),
        control={
            "size": control.size,
            "mtime": control.mtime,
            "algorithm": control.algorithm,
            "checksum": control.checksum,
        },
        checksum_algorithm=options["checksum_algorithm"],
        files=result.files + result.reused_files + 1,
        bytes=result.bytes + result.reused_bytes + control.size,
        seconds=round(result.seconds, 3),
        reused_files=result.reused_files,
        reused_bytes=result.reused_bytes,
        vanished_files=result.vanished,
        special_files=[
            {
                "path": one.path.decode("utf-8", "surrogateescape"),
                "kind": one.kind,
                "target": one.target.decode("utf-8", "surrogateescape"),
            }
            for one in scan.specials
        ],
        tablespace_oids=[one.oid for one in scan.tablespaces],
    )


def _run(backup: Backup, content: t.Mapping[str, t.Any], options: t.Mapping[str, t.Any], recorder: _Recorder) -> None:
    recorder.content["pid"] = os.getpid()
    try:
        _copy_all(backup, content, options, recorder)
    except BackupError as exc:
        recorder.finish(state=BROKEN, error=exc.msg, code=exc.code, hint=exc.hint)
    except Exception as exc:  # nobody sees this process die, so it writes down why
        recorder.finish(state=BROKEN, error=f"The copy failed: {exc!r}", code="copy_failed", hint="")


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


def is_copying(backup: Backup) -> bool:
    """Tell whether a copy of ``backup`` runs, or has just ended; one that begins is given the time to say so.

    Raises :class:`BackupError` (``busy``) when somebody holds the backup's lock for something else.
    """
    deadline = time.monotonic() + BEGIN_SECONDS
    while backup.is_worked_on():
        if read_progress(backup).get("state") in (RUNNING, DONE):
            return True
        if time.monotonic() >= deadline:
            raise BackupError(f"Another process works on the backup {backup.id}, and it is not a copy.", code="busy")
        time.sleep(0.05)
    return False


def launch(backup: Backup, content: t.Mapping[str, t.Any], options: t.Mapping[str, t.Any]) -> None:
    """Start the copying process of ``backup``; ``options`` are arguments of ``backup_copy``.

    Raises :class:`BackupError` (``busy``) when somebody holds the backup's lock.
    """
    with backup.work() as lock:
        if read_progress(backup).get("state") == DONE:
            # Another call's copy has finished while this one waited for the lock.
            return
        folder = backup.file("copy")
        if not os.path.isdir(folder):
            os.mkdir(folder, 0o700)
            os.chmod(folder, 0o700)
            fsync_path(backup.path)
        recorder = _Recorder(backup, 0, 0)
        recorder.begin()
        first = os.fork()
        if first:
            os.waitpid(first, 0)
            return
        try:
            _detach(lock)
            if os.fork() == 0:
                _run(backup, content, options, recorder)
        finally:
            # Never back into the module's code: two processes would answer the task.
            os._exit(0)


def wait(backup: Backup, seconds: float) -> t.Optional[dict[str, t.Any]]:
    """Return the finished copy's record, None when it still runs after ``seconds`` (0: no limit).

    Raises :class:`BackupError` when the copy failed or its process was killed.
    """
    deadline = time.monotonic() + seconds
    while True:
        # Asked in this order: a process that ends in between has written its last word before it let go of the lock.
        locked = backup.is_worked_on()
        record = read_progress(backup)
        if record.get("state") == DONE:
            return record
        # While the lock is held that is the record of an earlier copy, or the process is about to end.
        if record.get("state") == BROKEN and not locked:
            raise BackupError(
                f"The copy of the backup {backup.id} failed: {record['error']}",
                code=record.get("code") or "copy_failed",
                hint=record.get("hint") or "",
                progress=record,
            )
        if not locked:
            raise BackupError(
                f"The process that copied the backup {backup.id} is gone without a word; it was killed.",
                code="copy_killed",
                hint="Run backup_copy again: the files copied so far are kept.",
                progress=record,
            )
        if seconds and time.monotonic() >= deadline:
            return None
        time.sleep(POLL_INTERVAL)


def copied_files(backup: Backup) -> dict[bytes, _manifest.ManifestFile]:
    """Return the files that the copy has written, by path, without pg_control."""
    return {one.path: one for one in _copy.read_journal(journal_path(backup))}
