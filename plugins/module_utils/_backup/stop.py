# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stopping a backup: end backup mode, write label, map and manifest, list the WAL that a restore needs.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import copy_process as _copy_process
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import (
    claim,
    session_of,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.adopt import adopt
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.copy_record import read_copy
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.include_wal import include_wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.publish import wal_sentence
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.start import start_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.stop_checks import (
    check_control,
    refuse_lost_tablespaces,
    refuse_new_tablespaces,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import control as _control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import label as _label
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import manifest as _manifest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import checksums as _host_checksums
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import detached as _host_detached
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import (
    remove_temporary,
    replacing,
    write_bytes,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import (
    ARCHIVE,
    BY_US,
    BY_USER,
    COMPLETE,
    INCLUDE,
    STOPPED,
    BackupRecord,
    Outcome,
    SpecialFile,
    WalProof,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import Copy as CopyFacts
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import Start as StartFacts
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import Stop as StopFacts
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session.session import require_alive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session.state import State
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import timelines as _timelines

STOP_SECONDS = 900.0


def result(backup: Backup, record: BackupRecord, changed: bool, msg: str) -> dict[str, t.Any]:
    """Return the module's result for a stopped backup."""
    start, stop = record.start, record.stop
    return {
        "repository": backup.cluster.repository.path,
        "cluster": backup.cluster.name,
        "backup_id": backup.id,
        "directory": backup.path,
        "changed": changed,
        "msg": msg + wal_sentence(record),
        "state": "published" if backup.published else record.state,
        "start_lsn": _segments.format_lsn(start.lsn),
        "stop_lsn": _segments.format_lsn(stop.lsn),
        "start_timeline": start.timeline,
        "stop_timeline": stop.timeline,
        "from_standby": start.from_standby,
        "system_identifier": record.server.system_identifier,
        "wal_segment_size": record.server.wal_segment_size,
        "wal_ranges": [
            {
                "timeline": one.timeline,
                "start": _segments.format_lsn(one.start),
                "end": _segments.format_lsn(one.end),
            }
            for one in stop.wal_ranges
        ],
        "required_wal": list(record.required_wal),
        "wal": record.wal,
        "manifest_checksum": stop.manifest_checksum,
    }


def release(backup: Backup, record: BackupRecord) -> None:
    """End the session that kept the WAL for ``backup``, which has it now or is void."""
    if record.wal == INCLUDE and not backup.published and session_of(backup).alive():
        # A session that does not answer ends by itself when it is not renewed or its folder is removed.
        with contextlib.suppress(BackupError):
            session_of(backup).ask("release")


class Stop:
    """One call of ``backup_stop`` for a backup in progress."""

    def __init__(self, backup: Backup, checksum_algorithm: str, jobs: int) -> None:
        self._backup = backup
        self._algorithm = checksum_algorithm
        self._jobs = jobs
        self._record = backup.load()
        self._server = self._record.server
        self._layout = backup.layout()

    def run(self) -> dict[str, t.Any]:
        """Stop the backup; a second call returns the same result, unchanged."""
        backup = self._backup
        with backup.hold():
            # Another call may have finished while this one waited for the lock.
            self._record = backup.load()
            if self._record.state in (STOPPED, COMPLETE):
                release(backup, self._record)
                return result(backup, self._record, False, f"The backup {backup.id} was stopped already.")
            claim(backup, None)
            session = session_of(backup)
            state = session.ask("status")
            stopped = state["state"] == "stopped"
            if not stopped:
                require_alive(state)
            files = self._copied_files(stopped)
            if not stopped:
                state = session.ask("stop", seconds=STOP_SECONDS)
                if state["state"] != "stopped":
                    require_alive(state)
                    raise BackupError(
                        f"The session of the backup {backup.id} has ended in the state {state['state']}; the backup"
                        " is void.",
                        code="session_lost",
                    )
            self._finish(state, files)
            release(backup, self._record)
        return result(backup, self._record, True, f"The backup {backup.id} was stopped at {state['stop_lsn']}.")

    def _copied_files(self, stopped: bool) -> dict[bytes, _manifest.ManifestFile]:
        """Return the files in the backup, with pg_control. Raises :class:`BackupError` when the copy is not whole."""
        record = read_copy(self._backup)
        if not record:
            return adopt(self._backup, self._server, stopped, self._algorithm, self._jobs)
        if record["state"] != _host_detached.DONE:
            raise BackupError(
                f"The copy of the backup {self._backup.id} is not finished (state {record['state']}).",
                code="copy_not_finished",
                hint="Run pgfleet.basebackup.backup_copy again; it continues where it stopped.",
            )
        self._layout.refuse_links()
        files = _copy_process.copied_files(self._backup)
        control = record["control"]
        files[b"global/pg_control"] = _manifest.ManifestFile(
            b"global/pg_control", control["size"], control["mtime"], control["algorithm"], control["checksum"]
        )
        return files

    def _void(self, error: BackupError) -> BackupError:
        self._record = self._record.failed(error.msg)
        self._backup.save(self._record)
        release(self._backup, self._record)
        return error

    def _finish(self, state: State, files: dict[bytes, _manifest.ManifestFile]) -> None:
        backup, server = self._backup, self._server
        label_bytes, map_bytes = bytes.fromhex(state["label_file"]), bytes.fromhex(state["map_file"])
        label, tablespaces = _label.parse_backup_label(label_bytes), _label.parse_tablespace_map(map_bytes)
        stop_lsn = _segments.parse_lsn(state["stop_lsn"])
        start = self._check(state, label, tablespaces)
        timeline, ranges = self._ranges(label, stop_lsn, state)
        # A stop that was killed may have left some.
        remove_temporary(os.fsdecode(self._layout.data))
        for name, content in ((b"backup_label", label_bytes), (b"tablespace_map", map_bytes)):
            if content:
                write_bytes(os.fsdecode(self._layout.place(name)), content)
                files[name] = self._describe(name, content)
        required = _timelines.required_wal(ranges, server.wal_segment_size)
        proof = self._prove(required, ranges, start.from_standby)
        checksum = self._write_manifest(files, ranges)
        outcome = Outcome(
            start=start._replace(timeline=label.start_timeline),
            copy=self._copy_summary(files),
            stop=StopFacts(
                lsn=stop_lsn,
                timeline=timeline,
                stopped_at=state["stopped_at"],
                wal_ranges=tuple(ranges),
                manifest_checksum=checksum,
                tablespaces=tablespaces,
            ),
            required_wal=tuple(required),
        )
        self._record = self._record.stopped(outcome, proof)
        backup.save(self._record)

    def _check(
        self,
        state: State,
        label: _label.BackupLabel,
        tablespaces: t.Iterable[int],
    ) -> StartFacts:
        """Return the start. Raises :class:`BackupError` when the copy contradicts it: the backup is void."""
        server, start = self._server, start_of(self._backup)
        try:
            refuse_new_tablespaces(self._backup.id, state, server.data_directory)
            known = {one["oid"] for one in state["tablespaces_after"]}
            refuse_lost_tablespaces([oid for oid in tablespaces if oid in known], server, self._layout)
            with open(self._layout.place(b"global/pg_control"), "rb") as file:
                control = _control.parse_control(file.read())
            check_control(control, label, _segments.parse_lsn(state["stop_lsn"]), server)
            if start is None or start.lsn != label.start_lsn:
                recorded = _segments.format_lsn(start.lsn) if start else "none"
                raise BackupError(f"The label names another start than {recorded}.", code="label_of_another_backup")
        except BackupError as exc:
            raise self._void(exc) from exc
        return start

    def _prove(
        self, required: list[str], ranges: t.Sequence[_timelines.WalRange], from_standby: bool
    ) -> t.Optional[WalProof]:
        """Include the WAL if it is to be included, and return its proof, None when the WAL is to be archived."""
        wal = self._record.wal
        if wal == ARCHIVE:
            return None
        checksums = self._include(required, ranges, from_standby) if wal == INCLUDE else {}
        return WalProof(
            archived=tuple(checksums),
            method="included" if wal == INCLUDE else "none",
            source="pg_wal" if wal == INCLUDE else "",
            system_identifier=self._server.system_identifier,
            proven_at=time.time(),
            sha256=checksums,
        )

    def _include(
        self, required: list[str], ranges: t.Sequence[_timelines.WalRange], from_standby: bool
    ) -> dict[str, str]:
        """Copy the WAL into the backup, and return the SHA-256 of each file."""

        def renew() -> None:
            with contextlib.suppress(BackupError):
                session_of(self._backup).ask("status")

        target = os.fsdecode(self._layout.place(b"pg_wal"))
        # A primary has finished its last segment. A standby has not: the rest of that segment is left out.
        end = ranges[0].end if from_standby else None
        try:
            return include_wal(self._server, target, required, ranges, end, renew)
        except BackupError as exc:
            raise self._void(exc) from exc

    def _copy_summary(self, files: t.Mapping[bytes, _manifest.ManifestFile]) -> CopyFacts:
        progress = read_copy(self._backup)
        return CopyFacts(
            by=BY_US if progress else BY_USER,
            files=len(files),
            bytes=sum(one.size for one in files.values()),
            seconds=progress.get("seconds"),
            checksum_algorithm=progress.get("checksum_algorithm"),
            special_files=tuple(SpecialFile(**one) for one in progress.get("special_files") or ()),
            vanished_files=progress.get("vanished_files"),
            reused_files=progress.get("reused_files"),
        )

    def _ranges(self, label: _label.BackupLabel, stop_lsn: int, state: State) -> tuple[int, list[_timelines.WalRange]]:
        newest = label.start_timeline
        history: t.Sequence[_timelines.HistoryEntry] = ()
        if label.backup_from == "standby":
            newest = max(newest, state["min_recovery_end_timeline"])
        if newest != label.start_timeline:
            path = os.path.join(self._server.data_directory, "pg_wal", _segments.history_name(newest))
            try:
                with open(path, encoding="ascii") as stream:
                    history = _timelines.parse_history(stream.read())
            except (OSError, ValueError) as exc:
                raise BackupError(
                    f"The timeline changed from {label.start_timeline} to {newest} and {path} cannot be read: {exc}",
                    code="history_missing",
                ) from exc
        timeline = _timelines.timeline_at(stop_lsn, newest, history)
        known = [entry for entry in history if entry.timeline < timeline]
        return timeline, _timelines.wal_ranges(label.start_timeline, label.start_lsn, timeline, stop_lsn, known)

    def _describe(self, path: bytes, content: bytes) -> _manifest.ManifestFile:
        algorithm = read_copy(self._backup).get("checksum_algorithm") or self._algorithm
        digest = _host_checksums.new_hash(algorithm)
        checksum = None
        if digest is not None:
            digest.update(content)
            checksum = digest.hexdigest()
        modified = os.stat(self._layout.place(path)).st_mtime
        return _manifest.ManifestFile(path, len(content), modified, algorithm if checksum else None, checksum)

    def _write_manifest(
        self, files: t.Mapping[bytes, _manifest.ManifestFile], ranges: t.Sequence[_timelines.WalRange]
    ) -> str:
        path = os.fsdecode(self._layout.place(b"backup_manifest"))
        with replacing(path) as stream:
            return _manifest.write_manifest(
                stream,
                self._server.major,
                int(self._server.system_identifier),
                (files[path] for path in sorted(files)),
                ranges,
            )
