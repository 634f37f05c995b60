# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Doing what a plan says. The order is the guarantee.

``global/pg_control`` is the first that goes and the last that comes, so the data directory cannot be started in
between; the record that tells of a finished restore is written right before it and does not count without it. A
restore that was killed at any point is continued by the next call.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import label as _label
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import trees as _trees
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.clock import utc_name
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.detached import Job, Recorder
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import (
    printable,
    sync_path,
    unwritable,
    write_file,
    write_json,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import identity_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import copy as _restore_copy
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import old_wal as _old_wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import settings as _restore_settings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.aside import _set_aside, _unlink
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import CONTROL, RECORD, WORK, remove
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.plan import Plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import WAL_SAVED, WISH
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _running

JOURNAL = b"files.jsonl"


SCHEMA = 1


class RestoreJob(Job):
    """The detached process of the restore into one data directory; its folder goes when it has succeeded."""

    def __init__(self, data: bytes) -> None:
        folder = os.path.join(os.fsdecode(data), os.fsdecode(WORK))
        again = "Run backup_restore again: what is restored so far is kept."
        super().__init__(folder, "restore", os.fsdecode(data), again)

    def _run(self, work: t.Callable[[Recorder], t.Mapping[str, t.Any]], recorder: Recorder) -> None:
        super()._run(work, recorder)
        if recorder.content["state"] == "done":
            _trees.discard(self.folder)


class Restore:
    """The work of one restore, under the lock of its folder. Each step can be repeated."""

    def __init__(self, plan: Plan, check: t.Callable[[], None], progress: t.Callable[[int, int], None]) -> None:
        self._plan = plan
        self._layout = plan.places
        self._chosen = plan.choice
        self._check = check
        self._progress = progress
        self._sync = bool(plan.params["sync"])
        self._folder = plan.data + b"/" + WORK

    def write_wish(self) -> None:
        """Write down what is wanted, for the call that has to continue."""
        plan = self._plan
        if plan.save_to and plan.save_to not in plan.wal_from:
            plan.wal_from.append(plan.save_to)
        if plan.wish.get("backup_id") != self._chosen.backup.id:
            # Files without a checksum are known by their size alone, which those of another backup may have.
            _unlink(self._folder + b"/" + JOURNAL)
            sync_path(self._folder)
        write_json(
            os.path.join(os.fsdecode(self._folder), WISH),
            {
                "digest": plan.digest,
                "backup_id": self._chosen.backup.id,
                "spaces": {str(space.oid): os.fsdecode(space.location) for space in self._layout.spaces},
                "save_wal_to": os.fsdecode(plan.save_to),
                "wal_from": [os.fsdecode(place) for place in plan.wal_from],
            },
        )

    def run(self) -> dict[str, t.Any]:
        """Restore, and return the module's result. Raises BackupError."""
        self._stop_being_startable()
        self._take_wal_away()
        surplus = self._clear()
        self._make_directories()
        copies = self._copy()
        self._write_wal()
        self._write_configuration()
        if self._sync:
            for root in self._layout.roots:
                _trees.sync_tree(root, jobs=self._plan.params["jobs"], check=self._check)
            for space in self._layout.spaces:
                sync_path(space.real)
        result = self._result(copies, surplus)
        self._finish(result)
        return result

    def _stop_being_startable(self) -> None:
        _running.refuse_running(self._plan.data)
        control = self._layout.place(CONTROL)
        folder = os.path.dirname(control)
        try:
            if os.path.islink(folder):
                # What it leads to is somebody else's.
                os.unlink(folder)
                sync_path(self._plan.data)
            if os.path.lexists(control):
                # While it was there a server may have run, and changed what the journal vouches for.
                _unlink(self._folder + b"/" + JOURNAL)
                _unlink(self._folder + b"/" + WAL_SAVED)
                sync_path(self._folder)
                os.unlink(control)
                sync_path(os.path.dirname(control))
            _unlink(self._plan.data + b"/" + RECORD)
        except OSError as exc:
            raise unwritable(control, exc) from exc

    def _take_wal_away(self) -> None:
        plan, layout = self._plan, self._layout
        directory = _old_wal.directory_of(plan.data)
        if directory is None:
            return
        own = [plan.data + b"/pg_wal"] + ([os.path.realpath(layout.waldir)] if layout.waldir else [])
        if directory not in own:
            plan.warnings.append(f"The old WAL in {printable(directory)} is left alone.")
            return
        if plan.save_to and plan.unarchived:
            _old_wal.save(plan.unarchived, directory, plan.save_to, 0o700)
            plan.used = [(plan.save_to if place == directory else place, name) for place, name in plan.used]
        write_file(self._folder + b"/" + WAL_SAVED, b"", True)
        _old_wal.empty(directory)

    def _clear(self) -> int:
        plan = self._plan
        if not plan.replaces:
            for oid, location in plan.aside:
                _set_aside(plan.data, oid, location, plan.version(), os.fsencode(utc_name()))
        self.survey = self._layout.survey(
            {file.entry.path for file in plan.files}, set(plan.directories), plan.specials()
        )
        for surplus, _is_directory in self.survey.surplus:
            self._check()
            remove(surplus)
        return len(self.survey.surplus)

    def _make_directories(self) -> None:
        plan, layout = self._plan, self._layout
        own = {b"pg_tblspc/%d" % space.oid for space in layout.spaces}
        for place in [space.real for space in layout.spaces] + ([layout.waldir] if layout.waldir else []):
            try:
                os.makedirs(place, mode=0o700, exist_ok=True)
                os.chmod(place, layout.directory_mode)
            except OSError as exc:
                raise unwritable(place, exc) from exc
        for path in plan.directories:
            if path not in own and path.partition(b"/")[0] != b"pg_wal":
                layout.make_directory(layout.place(path))
        if layout.waldir:
            layout.make_link(plan.data + b"/pg_wal", layout.waldir)
        elif not os.path.ismount(plan.data + b"/pg_wal"):
            layout.make_directory(plan.data + b"/pg_wal")
        for name in (b"archive_status", b"summaries")[: 2 if plan.content["server"]["major"] >= 17 else 1]:
            layout.make_directory(layout.place(b"pg_wal/" + name))
        for space in layout.spaces:
            layout.make_link(plan.data + b"/pg_tblspc/%d" % space.oid, space.location)

    def _copy(self) -> _restore_copy.Copies:
        return _restore_copy.restore_files(
            self._plan.files,
            self._layout,
            self.survey.existing,
            self._folder + b"/" + JOURNAL,
            jobs=self._plan.params["jobs"],
            sync=self._sync,
            check=self._check,
            progress=self._progress,
        )

    def _write(self, place: bytes, content: bytes) -> None:
        write_file(place, content, False)
        os.chmod(place, self._layout.file_mode)

    def _write_wal(self) -> None:
        plan, layout = self._plan, self._layout
        for file in plan.files:
            if file.entry.path.startswith(b"pg_wal/"):
                name = os.path.basename(file.entry.path)
                self._write(layout.place(b"pg_wal/archive_status/" + name + b".done"), b"")
        for place, segment in plan.used:
            target = layout.place(b"pg_wal/" + os.fsencode(segment))
            _old_wal.copy(place + b"/" + os.fsencode(segment), target, layout.file_mode, self._sync)

    def _write_configuration(self) -> None:
        plan, layout = self._plan, self._layout
        if layout.spaces:
            spaces = {space.oid: space.location for space in layout.spaces}
            self._write(layout.place(b"tablespace_map"), _label.format_tablespace_map(spaces))
        self._write(layout.place(_restore_settings.AUTO_CONF), _restore_settings.auto_conf(plan))
        if plan.data_directory_setting:
            conf = layout.place(b"postgresql.conf")
            with open(conf, "rb") as stream:
                content = stream.read()
            self._write(conf, content + _restore_settings.data_directory_line(plan.data))
        _restore_settings.write_signals(layout, plan.params["restore_as"], self._write)

    def _finish(self, result: t.Mapping[str, t.Any]) -> None:
        plan, layout = self._plan, self._layout
        control = _restore_settings.control_of(plan)
        device, inode = identity_of(os.stat(plan.data))
        record = os.path.join(os.fsdecode(plan.data), os.fsdecode(RECORD))
        temporary = self._folder + b"/pg_control"
        write_file(temporary, control, self._sync)
        _running.refuse_running(plan.data)
        write_json(
            record,
            {
                "schema": SCHEMA,
                "digest": plan.digest,
                "backup_id": self._chosen.backup.id,
                "restore_as": plan.params["restore_as"],
                "data_directory": os.fsdecode(plan.data),
                "device": device,
                "inode": inode,
                "restored_at": time.time(),
                "run_id": plan.params["run_id"],
                "result": dict(result),
            },
        )
        try:
            os.chmod(plan.data + b"/" + RECORD, layout.file_mode)
            os.chmod(temporary, layout.file_mode)
            os.rename(temporary, layout.place(CONTROL))
        except OSError as exc:
            raise unwritable(layout.place(CONTROL), exc) from exc
        sync_path(os.path.dirname(layout.place(CONTROL)))

    def _result(self, copies: _restore_copy.Copies, surplus: int) -> dict[str, t.Any]:
        told = self._plan.told()
        kept_files = copies.kept_files + copies.reused_files
        kept_bytes = copies.kept_bytes + copies.reused_bytes
        there = len(self.survey.existing)
        told["plan"].update(
            keep_files=kept_files,
            keep_bytes=kept_bytes,
            copy_files=copies.copied_files,
            copy_bytes=copies.copied_bytes,
            replace_files=max(0, there - kept_files),
            remove_files=surplus,
        )
        rate = copies.copied_bytes + copies.kept_bytes
        return {
            **told,
            "reused_files": copies.reused_files,
            "seconds": round(copies.seconds, 3),
            "bytes_per_second": round(rate / max(copies.seconds, 0.000001)),
        }


def finished(plan_data: bytes, record: t.Mapping[str, t.Any], digest: str) -> t.Optional[dict[str, t.Any]]:
    """Return the result of the restore that ``record`` tells of when it is the one with this digest, else None."""
    if record.get("digest") != digest:
        return None
    job = RestoreJob(plan_data)
    # A crash right after the end leaves the folder, which no one needs.
    with contextlib.suppress(BackupError, OSError):
        if os.path.isdir(job.folder):
            with job.hold(0):
                _trees.discard(job.folder)
    return t.cast("dict[str, t.Any]", record["result"])
