# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a backup and that of a cluster, as values: typed, checked, immutable.

Private to pgfleet.basebackup. Room ``_repository``: backups on disk, their records and their locks; it knows no server.

``record_file.py`` reads and writes them, ``backup.json`` and ``cluster.json``, and checks each value: the grammar of
names and oids, absolute locations, finite numbers in range. So these values need no further checks.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.timelines import WalRange

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
STARTED = "started"  # the session was requested; its own record has its state
STOPPED = "stopped"  # label, map and manifest are written; some WAL may not be archived yet
COMPLETE = "complete"  # every needed WAL segment is proven; next is the rename
FAILED = "failed"  # void, kept only for inspection

# Where a restore finds the WAL that a backup needs.
ARCHIVE = "archive"
INCLUDE = "include"  # in the backup's own pg_wal
NONE = "none"  # unknown: nothing checked that its WAL is kept
WAL_CHOICES = (ARCHIVE, INCLUDE, NONE)
BY_US, BY_USER = "backup_copy", "user"
LONGEST_ERROR = 10_000
RUN_BY_KINDS = ("systemd", "systemd_user", "patroni", "supervisor", "container", "none")


class ClusterRecord(t.NamedTuple):
    """``cluster.json``: the database cluster whose backups are in a directory."""

    system_identifier: str


class RunBy(t.NamedTuple):
    """Who ran the server, and with what; the names are those of ``process_info``, and empty stands for unknown."""

    kind: str
    unit: str
    program: str
    config_file: str
    hba_file: str
    ident_file: str
    external_pid_file: str
    bin_directory: str
    socket_directories: t.Tuple[str, ...]
    log_file: str
    os_user: str


class Server(t.NamedTuple):
    """The server that was backed up, as it was then; the names are those of ``server_info``."""

    version: str
    major: int
    role: str  # primary or standby
    system_identifier: str
    data_directory: str
    stats_temp_directory: t.Optional[str]  # relative to the data directory, or absolute
    wal_segment_size: int  # bytes
    block_size: int  # bytes
    data_checksums: bool
    catalog_version: int
    config_files_outside: t.Tuple[str, ...]
    port: int
    run_by: t.Optional[RunBy] = None  # unknown when the backup was not started beside the server


class Start(t.NamedTuple):
    """The result of starting a backup."""

    lsn: int
    wal_file: str
    timeline: int
    from_standby: bool
    started_at: float  # seconds since the epoch


class SpecialFile(t.NamedTuple):
    """A file left out by the copy: ``path`` in backup terms, ``kind`` as in ``_datadir.tree``, ``target`` of a link."""

    path: str
    kind: str
    target: str


class Copy(t.NamedTuple):
    """The copy of a backup. Facts that only our own copy knows are None or empty for one that the user made."""

    by: str  # backup_copy or user
    files: int
    bytes: int
    seconds: t.Optional[float]
    checksum_algorithm: t.Optional[str]
    special_files: t.Tuple[SpecialFile, ...]
    vanished_files: t.Optional[int]
    reused_files: t.Optional[int]


class Stop(t.NamedTuple):
    """The result of stopping a backup, and the facts derived from it."""

    lsn: int
    timeline: int
    stopped_at: float  # seconds since the epoch
    wal_ranges: t.Tuple[WalRange, ...]
    manifest_checksum: str
    tablespaces: t.Mapping[int, bytes]  # oid: location at the source, as in tablespace_map


class WalProof(t.NamedTuple):
    """The proof that the WAL of a backup is kept. ``sha256`` has the included files, by their names."""

    archived: t.Tuple[str, ...]
    method: str
    source: str
    system_identifier: str
    proven_at: float  # seconds since the epoch
    sha256: t.Mapping[str, str]


class DrillCheck(t.NamedTuple):
    """One check of a drill; ``ok`` is None when it was skipped.

    ``value`` and ``expected`` are JSON, the result of a check of the user and what it must be; None for other checks.
    """

    name: str
    ok: t.Optional[bool]
    msg: str
    value: t.Optional[str]
    expected: t.Optional[str]


class Drill(t.NamedTuple):
    """The result of a restore drill of a backup; the fields are those of ``result`` of ``backup_proven``."""

    at: str  # UTC
    ok: bool
    by: str
    host: str
    recovered_to_lsn: t.Optional[str]
    last_transaction_at: t.Optional[str]
    timeline: t.Optional[int]
    target: t.Optional[str]
    seconds: t.Optional[float]
    msg: t.Optional[str]
    checks: t.Tuple[DrillCheck, ...]


class Outcome(t.NamedTuple):
    """The parts of a record that exist from the stop on."""

    start: Start
    copy: Copy
    stop: Stop
    required_wal: t.Tuple[str, ...]


class BackupRecord(t.NamedTuple):
    """``backup.json``. Each change is a new record; :meth:`.repository.Backup.save` writes it."""

    backup_id: str
    cluster: str
    state: str
    kind: str
    wal: str  # one of WAL_CHOICES
    host: str  # on which it was started
    label: str
    created_at: float  # seconds since the epoch
    session_idle_timeout: float  # seconds
    server: Server
    outcome: t.Optional[Outcome] = None
    wal_proof: t.Optional[WalProof] = None
    published_at: t.Optional[float] = None  # seconds since the epoch
    error: str = ""
    kept: bool = False  # it failed, and the administrator keeps it for inspection
    drills: t.Tuple[Drill, ...] = ()  # the newest last

    @property
    def start(self) -> Start:
        """The result of the start. Raises :class:`BackupError`, ``not_stopped``, like the next three."""
        return self._outcome.start

    @property
    def copy(self) -> Copy:
        """The copy."""
        return self._outcome.copy

    @property
    def stop(self) -> Stop:
        """The result of the stop."""
        return self._outcome.stop

    @property
    def required_wal(self) -> t.Tuple[str, ...]:
        """The names of the WAL files that a restore needs."""
        return self._outcome.required_wal

    @property
    def _outcome(self) -> Outcome:
        if self.outcome is None:
            raise BackupError(
                f"The backup {self.backup_id} is not stopped (state {self.state}).",
                code="not_stopped",
                hint="Run pgfleet.basebackup.backup_stop first.",
            )
        return self.outcome

    @property
    def includes_wal(self) -> bool:
        """Whether the backup itself contains the WAL that it needs."""
        return self.wal == INCLUDE

    @property
    def included_wal(self) -> t.Mapping[str, str]:
        """The SHA-256 of each WAL file in the backup, by its name; it may have more files than the needed ones."""
        return self.wal_proof.sha256 if self.includes_wal and self.wal_proof else {}

    def stopped(self, outcome: Outcome, wal_proof: t.Optional[WalProof]) -> BackupRecord:
        """Return the record of the same backup, stopped; ``wal_proof`` is None when the WAL is to be archived."""
        return self._replace(state=STOPPED, outcome=outcome, wal_proof=wal_proof)

    def completed(self, wal_proof: WalProof, published_at: float) -> BackupRecord:
        """Return the record of the same backup with its WAL proven."""
        return self._replace(state=COMPLETE, wal_proof=wal_proof, published_at=published_at)

    def failed(self, error: str, kept: bool = False) -> BackupRecord:
        """Return the record of the same backup, void."""
        return self._replace(state=FAILED, error=error[:LONGEST_ERROR], kept=kept or self.kept)
