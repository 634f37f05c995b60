# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The repository: its layout, its locks, its records, and the one step that publishes a backup.

Private to pgfleet.basebackup. Room ``_repository``: backups on disk, their records and their locks; it knows no server.

See docs/architecture.md for the states on disk.

::

    <repository>/<cluster>/cluster.json, lock, in_progress/<id>/, backups/<id>/

A backup under ``backups/`` is always complete: one rename moves it there, after everything in it is durable.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.control import read_control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import (
    fsync_path,
    make_directory,
    new_directory,
    read_small,
    remove_temporary,
    write_bytes,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.locks import is_locked, take_lock
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trees import remove
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trust import refuse_unsafe, trusted_users
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.identity import (
    Foreign,
    remove_ours,
    why_foreign,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.plain import PlainLayout
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import (
    COMPLETE,
    NAME,
    BackupRecord,
    ClusterRecord,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record_file import (
    LARGEST_FILE,
    parse_backup,
    parse_cluster,
    write_backup,
    write_cluster,
)

# Files of work in progress; a published backup has none of them.
WORK_FILES = ("session", "copy", "start_files", "owner.json", "lock")


def check_name(name: str, what: str) -> None:
    """Raise :class:`BackupError` unless ``name`` is a plain file name of letters, digits, dot, dash, underscore."""
    if not NAME.match(name):
        raise BackupError(
            f"{what} {name!r} is not a plain file name.",
            code="bad_name",
            hint="Use letters, digits, dots, dashes and underscores, beginning with a letter or digit, at most 100.",
        )


class Repository:
    """A directory with the backups of one or more clusters.

    Raises :class:`BackupError` unless ``path`` is the absolute path of an existing directory that this user may write
    to, or only read if ``read_only``, and that no other user can change or exchange (``_host/trust.py``).
    """

    def __init__(self, path: str, read_only: bool = False) -> None:
        if not os.path.isabs(path):
            raise BackupError(f"The repository {path!r} is not an absolute path.", code="repository_relative")
        if not os.path.isdir(path):
            raise BackupError(
                f"The repository {path} does not exist or is not a directory.",
                code="repository_missing",
                hint=f"Make it on this host, owned by the user that runs the backup: install -d -m 0700 -o"
                f" postgres {shlex.quote(path)}",
            )
        self.users = trusted_users(path)
        refuse_unsafe(path, "The repository", self.users)
        self.path = os.path.realpath(path)
        wanted = os.R_OK | os.X_OK if read_only else os.R_OK | os.W_OK | os.X_OK
        if not os.access(self.path, wanted):
            raise BackupError(
                f"The repository {path} cannot be {'read' if read_only else 'written'} by the user with id"
                f" {os.geteuid()}.",
                code="repository_not_writable",
                hint=f"Check its owner and mode, and {option('become_user')}.",
            )

    def cluster_names(self) -> list[str]:
        """Return the names of the clusters that have a directory here, sorted."""
        with os.scandir(self.path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and NAME.match(entry.name))

    def cluster(self, name: str) -> Cluster:
        """Return the cluster ``name``, which need not exist yet.

        Raises :class:`BackupError`, code ``unsafe_directory``, when another user can change one of its directories.
        """
        check_name(name, "The cluster name")
        cluster = Cluster(self, name)
        for directory in (cluster.path, cluster.in_progress, cluster.backups, cluster.archive):
            refuse_unsafe(directory, "The directory", self.users)
        return cluster

    def free_bytes(self) -> int:
        """Return the free bytes for an ordinary user."""
        usage = os.statvfs(self.path)
        return usage.f_bavail * usage.f_frsize


class Cluster:
    """One database cluster's part of the repository."""

    def __init__(self, repository: Repository, name: str) -> None:
        self.repository = repository
        self.name = name
        self.path = os.path.join(repository.path, name)
        self.in_progress = os.path.join(self.path, "in_progress")
        self.backups = os.path.join(self.path, "backups")
        self.archive = os.path.join(self.path, "wal")

    def archive_directory(self, directory: t.Optional[str], restore_command: t.Optional[str]) -> t.Optional[str]:
        """Return the directory of the WAL archive: ``directory``, else the cluster's default one if it exists.

        Return None when a ``restore_command`` is to be used instead, or there is no archive.
        """
        if directory or restore_command:
            return directory or None
        return self.archive if os.path.isdir(self.archive) else None

    def system_identifier(self) -> t.Optional[str]:
        """Return the system identifier of this cluster's backups, None before the first backup."""
        try:
            data = read_small(os.path.join(self.path, "cluster.json"), LARGEST_FILE, self.repository.users)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise BackupError(f"{self.path}/cluster.json cannot be read: {exc}", code="damaged_cluster") from exc
        return parse_cluster(data, self.path).system_identifier

    def refuse_other(self, system_identifier: str) -> None:
        """Raise :class:`BackupError` when the backups here are of another database cluster."""
        known = self.system_identifier()
        if known is not None and known != system_identifier:
            raise BackupError(
                f"{self.path} holds backups of the cluster with system identifier {known};"
                f" this server's is {system_identifier}.",
                code="other_cluster",
                hint="Give this cluster its own name or repository. After initdb or pg_upgrade it is another cluster.",
            )

    def refuse_inside(self, directories: t.Iterable[bytes]) -> None:
        """Raise :class:`BackupError` when the backups would be inside one of the server's ``directories``."""
        for own in (os.fsencode(self.repository.path), os.path.realpath(os.fsencode(self.path))):
            for directory in directories:
                real = os.path.realpath(directory)
                if own == real or own.startswith(real + b"/"):
                    raise BackupError(
                        f"The repository {os.fsdecode(own)} lies inside {os.fsdecode(real)}, which is part of the"
                        f" database cluster.",
                        code="repository_inside_cluster",
                        hint="A backup must not contain itself. Choose a directory outside, preferably on another"
                        " device.",
                    )

    def prepare(self, system_identifier: str) -> None:
        """Make the directories and ``cluster.json``. Raises as :meth:`refuse_other`."""
        for directory in (self.path, self.in_progress, self.backups):
            make_directory(directory)
        with self.lock():
            remove_temporary(self.path)
            self.refuse_other(system_identifier)
            if self.system_identifier() is None:
                write_bytes(os.path.join(self.path, "cluster.json"), write_cluster(ClusterRecord(system_identifier)))

    @contextlib.contextmanager
    def lock(self, seconds: float = 60.0) -> t.Iterator[None]:
        """Hold the catalogue's lock, which is never held for long."""
        handle = take_lock(os.path.join(self.path, "lock"), seconds)
        if handle is None:
            raise BackupError(
                f"The lock of {self.path} was still held after {seconds:.0f} s.",
                code="catalogue_locked",
                hint=f"A process hangs while it changes the catalogue: fuser -v {shlex.quote(self.path + '/lock')}",
            )
        try:
            yield
        finally:
            os.close(handle)

    def _entries(self, published: bool) -> t.Iterator[t.Union[Backup, Foreign]]:
        directory = self.backups if published else self.in_progress
        try:
            with os.scandir(directory) as entries:
                names = sorted(entry.name for entry in entries if NAME.match(entry.name))
        except FileNotFoundError:
            return
        for name in names:
            # Another process may publish or remove it at this moment.
            with contextlib.suppress(FileNotFoundError):
                yield self._foreign(name, published) or Backup(self, name, published)

    def _foreign(self, name: str, published: bool) -> t.Optional[Foreign]:
        """Return why an entry is not a backup of ours, None when it is. Raises OSError."""
        directory = self.backups if published else self.in_progress
        # A published backup without its record is damaged, and nothing removes it.
        return why_foreign(directory, name, self.repository.users, marked=not published)

    def unfinished(self) -> list[Backup]:
        """Return the backups under ``in_progress``, by name."""
        return [one for one in self._entries(published=False) if isinstance(one, Backup)]

    def published(self) -> list[Backup]:
        """Return the backups under ``backups``, by name."""
        return [one for one in self._entries(published=True) if isinstance(one, Backup)]

    def foreign(self) -> list[Foreign]:
        """Return what lies among the backups and is not ours."""
        return [one for published in (False, True) for one in self._entries(published) if isinstance(one, Foreign)]

    def published_in_order(self) -> list[Published]:
        """Return the published backups in the order in which they ended: the latest is the last.

        One with a damaged record is placed by the last change of its directory.
        """
        found = []
        for backup in self.published():
            try:
                record = backup.load()
                found.append((record.stop.stopped_at, backup.id, Published(backup, record, None)))
            except BackupError as exc:
                with contextlib.suppress(FileNotFoundError):
                    found.append((os.stat(backup.path).st_mtime, backup.id, Published(backup, None, exc)))
        return [one for _ended, _id, one in sorted(found, key=lambda entry: entry[:2])]

    def find(self, backup_id: str) -> t.Optional[Backup]:
        """Return the backup ``backup_id``, published or not, or None.

        Raises :class:`BackupError`, code ``not_ours``, for an entry of this name that is not a backup of ours.
        """
        check_name(backup_id, "The backup_id")
        for published in (True, False):
            with contextlib.suppress(FileNotFoundError):
                foreign = self._foreign(backup_id, published)
                if foreign:
                    raise foreign.error()
                return Backup(self, backup_id, published)
        return None

    def get(self, backup_id: str) -> Backup:
        """Return the backup ``backup_id`` or raise :class:`BackupError`."""
        backup = self.find(backup_id)
        if backup is None:
            raise BackupError(
                f"There is no backup {backup_id} in {self.path}.",
                code="unknown_backup",
                hint="pgfleet.basebackup.backup_info lists the backups.",
            )
        return backup

    def new_backup(self, record: BackupRecord) -> Backup:
        """Make ``in_progress/<id>`` with its record; the caller holds :meth:`lock`. Raises as :meth:`Backup.save`."""
        data = write_backup(record)
        backup = Backup(self, record.backup_id, published=False)
        new_directory(backup.path)
        write_bytes(backup.file("backup.json"), data)
        return backup


class Published(t.NamedTuple):
    """A published backup and its record, or the error of reading that."""

    backup: Backup
    record: t.Optional[BackupRecord]
    error: t.Optional[BackupError]


class Backup:
    """One backup's directory, in progress or published."""

    def __init__(self, cluster: Cluster, backup_id: str, published: bool) -> None:
        self.cluster = cluster
        self.id = backup_id
        self.published = published

    @property
    def path(self) -> str:
        """The directory of the backup, before or after its publishing."""
        return os.path.join(self.cluster.backups if self.published else self.cluster.in_progress, self.id)

    def file(self, *parts: str) -> str:
        """Return the path of a file of this backup."""
        return os.path.join(self.path, *parts)

    def layout(self, oids: t.Iterable[int] = ()) -> PlainLayout:
        """Return the layout of the server's files in this backup.

        ``oids`` are those of the tablespaces outside the data directory.
        """
        return PlainLayout(os.fsencode(self.path), oids)

    def load(self) -> BackupRecord:
        """Return the record of this backup, checked.

        Raises :class:`BackupError`: ``damaged_backup``, ``newer_schema``, ``old_schema``, and ``other_cluster`` for a
        published one of another database cluster than ``cluster.json`` names.
        """
        try:
            data = read_small(self.file("backup.json"), LARGEST_FILE, self.cluster.repository.users)
        except OSError as exc:
            raise BackupError(f"The backup {self.path} is damaged: backup.json: {exc}", code="damaged_backup") from exc
        record = parse_backup(data, self.id, self.cluster.name, self.path)
        if self.published and record.state != COMPLETE:
            raise BackupError(
                f"The backup {self.path} is damaged: backup.json: state is {record.state}, not {COMPLETE}.",
                code="damaged_backup",
                hint="Use another backup.",
            )
        if self.published:
            self._refuse_foreign(record, "backup.json")
        return record

    def refuse_foreign_control(self, record: BackupRecord) -> None:
        """Raise :class:`BackupError`, ``other_cluster``, when the ``pg_control`` in here is of another cluster.

        One that cannot be read is damage, which other checks name.
        """
        try:
            found = read_control(self.layout().place(b"global/pg_control"), attempts=1).system_identifier
        except BackupError:
            return
        self._refuse_foreign(record, "global/pg_control", str(found))

    def _refuse_foreign(self, record: BackupRecord, file: str, identifier: str = "") -> None:
        own = record.server.system_identifier
        known, found = (own, identifier) if identifier else (self.cluster.system_identifier() or own, own)
        if found != known:
            raise BackupError(
                f"The backup {self.path} is not of this database cluster: its {file} has the system identifier {found},"
                f" {'its backup.json' if identifier else f'{self.cluster.path}/cluster.json'} has {known}.",
                code="other_cluster",
                hint="It was copied here, or a file was edited. Move it to the directory of its own cluster.",
            )

    def save(self, record: BackupRecord) -> None:
        """Replace the record durably. Raises :class:`BackupError`, ``bad_record``, for one that could not be read."""
        write_bytes(self.file("backup.json"), write_backup(record))

    def is_worked_on(self) -> bool:
        """Return whether a process holds this backup's lock."""
        return not self.published and is_locked(self.file("lock"))

    @contextlib.contextmanager
    def hold(self, seconds: float = 5.0) -> t.Iterator[int]:
        """Hold this backup's lock and give its descriptor, which a worker process may inherit."""
        try:
            handle = take_lock(self.file("lock"), seconds)
        except FileNotFoundError as exc:
            raise BackupError(f"The backup {self.path} does not exist any more.", code="unknown_backup") from exc
        if handle is None:
            raise BackupError(
                f"Another process is already working on the backup {self.id} in {self.cluster.path}.",
                code="busy",
                hint=f"Find out which process holds it: fuser -v {shlex.quote(self.file('lock'))}",
            )
        try:
            yield handle
        finally:
            os.close(handle)

    def publish(self) -> None:
        """Move a COMPLETE backup to ``backups``. After a crash at any point it can be called again.

        The order is the guarantee: remove the work files, make everything durable, rename, make both parents durable.
        """
        with self.cluster.lock():
            if self.published or not os.path.isdir(self.path):
                raise BackupError(f"The backup {self.id} is no longer in progress.", code="unknown_backup")
            if self.load().state != COMPLETE:
                raise BackupError(f"The backup {self.id} is not complete and cannot be published.", code="not_complete")
            target = os.path.join(self.cluster.backups, self.id)
            if os.path.exists(target):
                raise BackupError(f"The backup {target} is already published.", code="backup_exists")
            for name in WORK_FILES:
                remove(self.file(name))
            remove_temporary(self.path)
            fsync_path(self.path)
            os.rename(self.path, target)
            self.published = True
            fsync_path(self.cluster.backups)
            fsync_path(self.cluster.in_progress)

    def remove(self) -> None:
        """Delete an unfinished backup; ``backup.json`` is the last file, so that a crash leaves a backup with a name.

        The caller has called :meth:`hold` if the directory is whole. Raises :class:`BackupError` for a published
        backup, and as :func:`remove_ours`.
        """
        if self.published:
            raise BackupError(f"The backup {self.path} is published and is not removed.", code="published")
        with self.cluster.lock():
            found = self.cluster.find(self.id)
            if found is not None and not found.published:
                self._rule_out()
        remove_ours(self.cluster.in_progress, self.id, self.cluster.repository.users)

    def _rule_out(self) -> None:
        """Make sure that this is never published; under the catalogue's lock, like :meth:`publish`."""
        try:
            self.save(self.load().failed("being removed"))
        except BackupError:
            # Without its metadata it cannot be published anyway.
            pass
        except OSError:
            # A full disk takes no new file, but a file can be removed; a backup without its label is never published.
            layout = self.layout()
            label = os.fsdecode(layout.place(b"backup_label"))
            if os.path.lexists(label) and not os.path.islink(layout.data):
                os.unlink(label)
                fsync_path(os.path.dirname(label))
