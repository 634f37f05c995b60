# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carrying out a plan. The order of the steps is the guarantee.

``global/pg_control`` is removed first and written last, so the data directory cannot be started in between. The record
of the finished restore is written right before it, and does not count without it. The next call continues a restore
that was killed at any point.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import os
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.control import parse_control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.label import format_tablespace_map
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import trees as _trees
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import (
    printable,
    sync_path,
    unwritable,
    write_file,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.aside import Aside, set_aside, unlink
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.contents import read_verified
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.copy import Copies, restore_files
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import (
    CONTROL,
    RECORD,
    WORK,
    Survey,
    remove,
    wal_directory,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.pg_wal import copy_segment, empty, save
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.plan import Plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import (
    WAL_SAVED,
    Record,
    Request,
    write_record,
    write_request,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.report import result_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.settings import (
    AUTO_CONF,
    auto_conf,
    data_directory_line,
    signal_file,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _running

JOURNAL = b"files.jsonl"


class Restore:
    """Carries out a plan, under the lock of the work folder. Each step can be repeated.

    ``aside`` is what was moved aside, ``check`` is called often and may raise, ``progress`` gets the bytes and files
    done.
    """

    def __init__(
        self, plan: Plan, aside: Aside, check: t.Callable[[], None], progress: t.Callable[[int, int], None]
    ) -> None:
        self._plan = plan
        self._aside = aside
        self._choice, self._layout = plan.approved()
        self._check = check
        self._progress = progress
        self._sync = bool(plan.params["sync"])
        self._folder = plan.data + b"/" + WORK
        self._warnings: list[str] = []
        self._used = [(self._aside.wal if place == aside.old_wal else place, name) for place, name in plan.wal.used]

    def write_request(self) -> None:
        """Write the request, for the call that continues an interrupted restore."""
        plan, wal = self._plan, self._plan.wal
        if plan.destination.request.backup_id != self._choice.backup.id:
            # A file without a checksum is recognised by its size alone, and one of another backup may have that size.
            unlink(self._folder + b"/" + JOURNAL)
            sync_path(self._folder)
        sources = [*wal.sources, *([self._aside.wal] if self._aside.wal else [])]
        if wal.save_to and wal.save_to not in sources:
            sources.append(wal.save_to)
        spaces = {str(space.oid): os.fsdecode(space.location) for space in self._layout.spaces}
        choice = self._choice
        identifier = choice.record.server.system_identifier
        write_request(
            plan.data, Request(plan.digest, choice.backup.id, spaces, wal.save_to, tuple(sources), identifier)
        )

    def run(self) -> dict[str, t.Any]:
        """Restore, and return the module's result. Raises BackupError."""
        self._remove_control()
        self._save_old_wal()
        survey = self._clear()
        self._make_directories()
        copies = self._copy(survey)
        self._write_wal()
        self._write_configuration()
        if self._sync:
            for root in self._layout.roots:
                _trees.sync_tree(root, jobs=self._plan.params["jobs"], check=self._check)
            for space in self._layout.spaces:
                sync_path(space.real)
        result = self._result(copies, survey)
        self._finish(result)
        return result

    def _remove_control(self) -> None:
        """Remove ``pg_control``, so that the data directory cannot be started."""
        _running.refuse_running(self._plan.data)
        control = self._layout.place(CONTROL)
        folder = os.path.dirname(control)
        try:
            if os.path.islink(folder):
                # Its target belongs to something else.
                os.unlink(folder)
                sync_path(self._plan.data)
            if os.path.lexists(control):
                # While it existed a server may have run, and changed files that the journal lists.
                unlink(self._folder + b"/" + JOURNAL)
                unlink(self._folder + b"/" + WAL_SAVED)
                sync_path(self._folder)
                os.unlink(control)
                sync_path(os.path.dirname(control))
            unlink(self._plan.data + b"/" + RECORD)
        except OSError as exc:
            raise unwritable(control, exc) from exc

    def _save_old_wal(self) -> None:
        """Save the WAL that is not archived, and empty the old ``pg_wal``."""
        data, wal, layout = self._plan.data, self._plan.wal, self._layout
        directory = wal_directory(data)
        if directory is None:
            return
        own = [data + b"/pg_wal"] + ([os.path.realpath(layout.waldir)] if layout.waldir else [])
        if directory not in own:
            self._warnings.append(f"The old WAL in {printable(directory)} is left alone.")
            return
        if wal.save_to and wal.unarchived:
            save(wal.unarchived, directory, wal.save_to, 0o700)
            self._used = [(wal.save_to if place == directory else place, name) for place, name in self._used]
        write_file(self._folder + b"/" + WAL_SAVED, b"", True)
        empty(directory)

    def _clear(self) -> Survey:
        """Remove surplus files, and return the survey."""
        plan, contents = self._plan, self._plan.contents
        set_aside(plan.data, self._aside.left_over, self._layout.version)
        survey = self._layout.survey(contents.paths, frozenset(contents.directories), contents.links)
        for surplus, is_directory in survey.surplus:
            self._check()
            remove(surplus, is_directory)
        return survey

    def _make_directories(self) -> None:
        data, layout = self._plan.data, self._layout
        own = {b"pg_tblspc/%d" % space.oid for space in layout.spaces}
        for place in [space.real for space in layout.spaces] + ([layout.waldir] if layout.waldir else []):
            try:
                os.makedirs(place, mode=0o700, exist_ok=True)
                os.chmod(place, layout.directory_mode)
            except OSError as exc:
                raise unwritable(place, exc) from exc
        for path in self._plan.contents.directories:
            if path not in own and path.partition(b"/")[0] != b"pg_wal":
                layout.make_directory(layout.place(path))
        if layout.waldir:
            layout.make_link(data + b"/pg_wal", layout.waldir)
        elif not os.path.ismount(data + b"/pg_wal"):
            layout.make_directory(data + b"/pg_wal")
        for name in (b"archive_status", b"summaries")[: 2 if self._choice.record.server.major >= 17 else 1]:
            layout.make_directory(layout.place(b"pg_wal/" + name))
        for space in layout.spaces:
            layout.make_link(data + b"/pg_tblspc/%d" % space.oid, space.location)

    def _copy(self, survey: Survey) -> Copies:
        return restore_files(
            self._plan.contents.files,
            self._layout,
            survey.existing,
            self._folder + b"/" + JOURNAL,
            jobs=self._plan.params["jobs"],
            sync=self._sync,
            check=self._check,
            progress=self._progress,
        )

    def _write(self, path: bytes, content: bytes) -> None:
        place = self._layout.place(path)
        write_file(place, content, False)
        os.chmod(place, self._layout.file_mode)

    def _write_wal(self) -> None:
        layout = self._layout
        for file in self._plan.contents.files:
            if file.entry.path.startswith(b"pg_wal/"):
                name = os.path.basename(file.entry.path)
                self._write(b"pg_wal/archive_status/" + name + b".done", b"")
        for place, segment in self._used:
            name = os.fsencode(segment)
            copy_segment(place + b"/" + name, layout.place(b"pg_wal/" + name), layout.file_mode, self._sync)

    def _write_configuration(self) -> None:
        plan, layout = self._plan, self._layout
        if layout.spaces:
            spaces = {space.oid: space.location for space in layout.spaces}
            self._write(b"tablespace_map", format_tablespace_map(spaces))
        old = plan.contents.small.get(AUTO_CONF)
        self._write(AUTO_CONF, auto_conf(old, plan.configuration))
        if plan.configuration.overrides_data_directory:
            with open(layout.place(b"postgresql.conf"), "rb") as stream:
                content = stream.read()
            self._write(b"postgresql.conf", content + data_directory_line(plan.data))
        self._write(signal_file(plan.params["restore_as"]), b"")

    def _finish(self, result: t.Mapping[str, t.Any]) -> None:
        """Record that the restore is finished, and make the data directory startable."""
        plan, layout, place = self._plan, self._layout, self._layout.place(CONTROL)
        control = parse_control(read_verified(plan.contents.small[CONTROL])).raw
        temporary = self._folder + b"/pg_control"
        write_file(temporary, control, self._sync)
        _running.refuse_running(plan.data)
        params, backup_id = plan.params, self._choice.backup.id
        record = Record(plan.digest, backup_id, params["restore_as"], time.time(), params["run_id"], dict(result))
        write_record(plan.data, record)
        try:
            os.chmod(plan.data + b"/" + RECORD, layout.file_mode)
            os.chmod(temporary, layout.file_mode)
            os.rename(temporary, place)
        except OSError as exc:
            raise unwritable(place, exc) from exc
        sync_path(os.path.dirname(place))

    def _result(self, copies: Copies, survey: Survey) -> dict[str, t.Any]:
        result = result_of(self._plan, aside=self._aside, warnings=self._warnings)
        kept_files = copies.kept_files + copies.reused_files
        result["plan"].update(
            keep_files=kept_files,
            keep_bytes=copies.kept_bytes + copies.reused_bytes,
            copy_files=copies.copied_files,
            copy_bytes=copies.copied_bytes,
            replace_files=max(0, len(survey.existing) - kept_files),
            remove_files=len(survey.surplus),
        )
        rate = copies.copied_bytes + copies.kept_bytes
        return {
            **result,
            "reused_files": copies.reused_files,
            "seconds": round(copies.seconds, 3),
            "bytes_per_second": round(rate / max(copies.seconds, 0.000001)),
        }
