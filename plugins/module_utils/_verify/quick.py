# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The quick check of a published backup, which reads no data files: label, map, control file, manifest, sizes, links.

Every bad file is reported, not only the first. Some files that ``pg_verifybackup`` accepts are refused here: those that
this collection never puts into a backup (a signal file, a changed ``postgresql.auto.conf``, WAL in ``pg_wal``), those
that differ from what it wrote into the manifest, and a label, map, control file or tablespace link with which a restore
would fail, whatever its checksum.

Private to pgfleet.basebackup. Room ``_verify``: whether a published backup is still what was published; it only reads.
"""

from __future__ import annotations

import os
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import control as _control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import label as _label
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import manifest as _manifest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import BackupRecord
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import timelines as _timelines

# path in backup terms, problem, msg
BadFile = t.Dict[str, str]
_HEADER_BYTES = 8192

# initdb's list of directories. They are empty in a backup or in many clusters, so that the manifest does not show that
# one is missing; the server needs all of them to start.
_DIRECTORIES = (
    *("base", "global", "pg_commit_ts", "pg_dynshmem", "pg_logical", "pg_logical/mappings", "pg_logical/snapshots"),
    *("pg_multixact", "pg_multixact/members", "pg_multixact/offsets", "pg_notify", "pg_replslot", "pg_serial"),
    *("pg_snapshots", "pg_stat", "pg_subtrans", "pg_tblspc", "pg_twophase", "pg_wal", "pg_xact"),
)


class Found(t.NamedTuple):
    """A file whose size is that of its entry in the manifest, and its path on disk."""

    entry: _manifest.ManifestFile
    place: bytes


def quick(backup: Backup, record: BackupRecord) -> list[BadFile]:
    """Return the bad files of a published backup that are found without reading the data files.

    Each has ``path`` (as in ``backup_manifest``), ``problem`` (``missing``, ``surplus``, ``size``, ``not_a_file``,
    ``unreadable``, ``damaged``, ``link``) and ``msg``.
    """
    return QuickCheck(backup, record).bad_files


class QuickCheck:
    """The quick check of a backup: ``bad_files``, and ``files``, whose checksums are still to be checked."""

    def __init__(self, backup: Backup, record: BackupRecord) -> None:
        self._layout = backup.layout(record.stop.tablespaces)
        self._record = record
        self._bad: dict[str, BadFile] = {}
        self.files: list[Found] = []
        self._everything()

    @property
    def bad_files(self) -> list[BadFile]:
        """The bad files, by path."""
        return [self._bad[path] for path in sorted(self._bad)]

    def _add(self, path: t.Union[str, bytes], problem: str, msg: str) -> None:
        name = printable(path) if isinstance(path, bytes) else path
        # The first problem of a file says most.
        self._bad.setdefault(name, bad_file(name, problem, msg))

    def _everything(self) -> None:
        major = self._record.server.major
        if self._read(b"PG_VERSION") not in (None, b"%d\n" % major):
            self._add("PG_VERSION", "damaged", f"Its version is not {major}.")
        label = self._check_label()
        self._check_map()
        self._check_control(label)
        self._check_required()
        manifest = self._check_manifest()
        self._check_links()
        for name in _DIRECTORIES:
            if not os.path.isdir(self._layout.place(name.encode("ascii"))):
                self._add(name, "missing", "The directory is missing.")
        found = self._scan()
        self._check_wal(found)
        self._compare(manifest, found)

    def _read(self, path: bytes) -> t.Optional[bytes]:
        try:
            with open(self._layout.place(path), "rb") as stream:
                return stream.read()
        except OSError as exc:
            self._add_unread(path, exc)
            return None

    def _add_unread(self, path: t.Union[str, bytes], exc: OSError) -> None:
        if isinstance(exc, (FileNotFoundError, NotADirectoryError)):
            self._add(path, "missing", "The file is missing.")
        else:
            self._add(path, "unreadable", f"It cannot be read: {exc.strerror}.")

    def _check_label(self) -> t.Optional[_label.BackupLabel]:
        data = self._read(b"backup_label")
        if data is None:
            return None
        start = self._record.start
        try:
            label = _label.parse_backup_label(data)
        except BackupError as exc:
            self._add("backup_label", "damaged", exc.msg)
            return None
        says = (label.start_lsn, label.start_timeline, label.backup_from == "standby")
        if says != (start.lsn, start.timeline, start.from_standby):
            self._add(
                "backup_label",
                "damaged",
                f"It is not that of a backup that starts at {_segments.format_lsn(start.lsn)}.",
            )
        return label

    def _check_map(self) -> None:
        expected = self._record.stop.tablespaces
        if not expected and not os.path.lexists(self._layout.place(b"tablespace_map")):
            return
        data = self._read(b"tablespace_map")
        if data is None:
            return
        try:
            if _label.parse_tablespace_map(data) != expected:
                self._add("tablespace_map", "damaged", f"It does not list the tablespaces {sorted(expected)}.")
        except BackupError as exc:
            self._add("tablespace_map", "damaged", exc.msg)

    def _check_control(self, label: t.Optional[_label.BackupLabel]) -> None:
        data = self._read(b"global/pg_control")
        if data is None:
            return
        try:
            control = _control.parse_control(data)
        except BackupError as exc:
            self._add("global/pg_control", "damaged", exc.msg)
            return
        problem = ""
        if str(control.system_identifier) != self._record.server.system_identifier:
            problem = f"It belongs to the cluster {control.system_identifier}."
        elif label and (label.backup_from == "standby") != control.in_recovery:
            problem = f"Its state {control.state} contradicts a backup from a {label.backup_from}."
        elif control.min_recovery_point > self._record.stop.lsn:
            problem = f"It needs WAL up to {_segments.format_lsn(control.min_recovery_point)}, beyond the backup's end."
        if problem:
            self._add("global/pg_control", "damaged", problem)

    def _check_manifest(self) -> t.Optional[_manifest.Manifest]:
        data = self._read(b"backup_manifest")
        if data is None:
            return None
        checksum = self._record.stop.manifest_checksum
        try:
            manifest = _manifest.parse_manifest(data)
        except (ValueError, RecursionError) as exc:
            self._add("backup_manifest", "damaged", f"It is damaged: {exc}.")
            return None
        if data.rstrip(b'"}\n')[-64:].decode("ascii").lower() != checksum:
            self._add("backup_manifest", "damaged", f"Its checksum is not the recorded one, {checksum}.")
        return manifest

    def _check_required(self) -> None:
        needed = _timelines.required_wal(self._record.stop.wal_ranges, self._record.server.wal_segment_size)
        if set(needed) - set(self._record.required_wal):
            self._add("backup.json", "damaged", "It does not list all the WAL that a restore needs.")

    def _check_links(self) -> None:
        for oid in self._record.stop.tablespaces:
            wanted, name = self._layout.link_target(oid), f"pg_tblspc/{oid}"
            try:
                target = os.readlink(self._layout.link(oid))
            except FileNotFoundError:
                self._add(name, "missing", "The link to the tablespace is missing.")
            except OSError:
                self._add(name, "link", f"It is not a link to {printable(wanted)}.")
            else:
                if target != wanted:
                    self._add(name, "link", f"It leads to {printable(target)} instead of {printable(wanted)}.")

    def _scan(self) -> dict[bytes, tuple[bytes, int]]:
        """Return place and size of everything that is not a directory; the size is -1 when it is not a regular file."""

        def unread(path: bytes, exc: OSError) -> None:
            self._add(path or b".", "unreadable", f"The directory cannot be read: {exc.strerror}.")

        known = {b"pg_tblspc/%d" % oid for oid in self._record.stop.tablespaces}
        found: dict[bytes, tuple[bytes, int]] = {}
        for path, entry in self._layout.entries(unread):
            if not entry.is_dir(follow_symlinks=False) and not (path in known and entry.is_symlink()):
                status = entry.stat(follow_symlinks=False)
                found[path] = (entry.path, status.st_size if stat.S_ISREG(status.st_mode) else -1)
        return found

    def _check_wal(self, found: dict[bytes, tuple[bytes, int]]) -> None:
        """Check the WAL that belongs in pg_wal and take it out of ``found``; any other file there is surplus.

        A segment of another cluster is worse than none: recovery would replay it.
        """
        size, identifier = self._record.server.wal_segment_size, int(self._record.server.system_identifier)
        # The needed segments, and the timeline histories included with them.
        for name in self._record.included_wal:
            path = b"pg_wal/" + name.encode("ascii")
            found.pop(b"pg_wal/archive_status/" + name.encode("ascii") + b".done", None)
            place, present = found.pop(path, (b"", -1))
            if present < 0:
                self._add(path, "missing", "The WAL file is missing.")
            elif _segments.is_segment_name(name):
                if present != size:
                    self._add(path, "size", f"It has {present} bytes instead of {size}.")
                    continue
                try:
                    with open(place, "rb") as stream:
                        first = stream.read(_HEADER_BYTES)
                    _segments.check_segment(first, name, size, identifier)
                except OSError as exc:
                    self._add_unread(path, exc)
                except BackupError as exc:
                    self._add(path, "bad_segment", exc.msg)

    def _compare(self, manifest: t.Optional[_manifest.Manifest], found: dict[bytes, tuple[bytes, int]]) -> None:
        found.pop(b"backup_manifest", None)
        if manifest is None:
            return
        for entry in manifest.files:
            name, (place, size) = printable(entry.path), found.pop(entry.path, (b"", -2))
            if size == -2:
                try:
                    if stat.S_ISREG(os.lstat(self._layout.place(entry.path)).st_mode):
                        self._add(name, "unreadable", "Its directory cannot be read.")
                    else:
                        self._add(name, "not_a_file", "It is not a file.")
                except OSError as exc:
                    self._add_unread(name, exc)
            elif size == -1:
                self._add(name, "not_a_file", "It is not a regular file.")
            elif size != entry.size:
                self._add(name, "size", f"It has {size} bytes; {entry.size} were backed up.")
            elif name not in self._bad:
                self.files.append(Found(entry, place))
        for path in found:
            self._add(path, "surplus", "It does not belong to the backup.")


def bad_file(path: str, problem: str, msg: str) -> BadFile:
    """Return one entry of :func:`quick`."""
    return {"path": path, "problem": problem, "msg": msg}
