# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a data directory, and which of them a base backup contains.

The rules are those of the server's own base backup (``sendDir`` in PostgreSQL's basebackup.c; documentation, section
"Backing Up the Data Directory" of "Making a Base Backup Using the Low Level API"). All paths are bytes: file systems
have no encoding. A path "in backup terms" is relative to the data directory, as ``backup_manifest`` writes it; files
of a tablespace are ``pg_tblspc/<oid>/PG_<major>_<catalog version>/…``, wherever the tablespace is.

Private to pgfleet.basebackup. Room ``_datadir``: a data directory and the formats of its files; it knows no server.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import Identity, identity_of

_EXCLUDED_PREFIXES = (b"pgsql_tmp", b"pg_internal.init")

_EXCLUDED_NAMES = frozenset(
    (
        b"backup_label",
        b"backup_manifest",
        b"current_logfiles.tmp",
        b"postgresql.auto.conf.tmp",
        b"postmaster.opts",
        b"postmaster.pid",
        b"tablespace_map",
    )
)

_EMPTIED_NAMES = frozenset(
    (b"pg_dynshmem", b"pg_notify", b"pg_replslot", b"pg_serial", b"pg_snapshots", b"pg_stat_tmp", b"pg_subtrans")
)

_RELATION = re.compile(rb"([0-9]+)(?:_(fsm|vm|init))?(?:\.([0-9]+))?", re.DOTALL)
_TEMPORARY_RELATION = re.compile(rb"t[0-9]+_[0-9]+(?:_(?:fsm|vm|init))?(?:\.[0-9]+)?", re.DOTALL)
_SPECIAL_KINDS = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFLNK: "symlink"}


class Tablespace(t.NamedTuple):
    """A tablespace other than ``pg_default`` and ``pg_global``.

    ``location`` is the absolute path of its directory; ``in_place`` means that this is a real directory inside
    ``pg_tblspc`` (``allow_in_place_tablespaces``), not a link.
    """

    oid: int
    location: bytes
    in_place: bool


class Entry(t.NamedTuple):
    """A regular file to copy: ``path`` in backup terms, ``source`` to open, ``size`` in bytes when it was listed.

    ``followed`` means that its path below the data directory contains symbolic links, which may be followed.
    """

    path: bytes
    source: bytes
    size: int
    followed: bool = False


class Special(t.NamedTuple):
    """A file that a backup leaves out, and that the administrator must know about.

    ``kind`` is ``symlink``, ``fifo``, ``socket`` or ``device``; ``target`` is a symbolic link's text, else empty.
    """

    path: bytes
    kind: str
    target: bytes


class Scan(t.NamedTuple):
    """The contents of a backup except ``global/pg_control``, which is copied after everything else.

    ``directories`` are in backup terms, parents before children, including those that are emptied and
    ``pg_tblspc/<oid>`` of every tablespace. ``total_bytes`` is the sum of the files' sizes.
    """

    data_directory: bytes
    directories: list[bytes]
    files: list[Entry]
    specials: list[Special]
    tablespaces: list[Tablespace]
    total_bytes: int

    @property
    def total_files(self) -> int:
        return len(self.files)


def is_excluded(name: bytes, major: int) -> bool:
    """Return whether files and directories of this bare name are left out at any depth."""
    return name.startswith(_EXCLUDED_PREFIXES) or name in _EXCLUDED_NAMES or (name == b".DS_Store" and major >= 15)


def is_emptied(name: bytes) -> bool:
    """Return whether directories of this bare name are kept without their contents at any depth."""
    return name in _EMPTIED_NAMES


def parse_relation(name: bytes, major: int) -> t.Optional[tuple[bytes, bytes]]:
    """Split the file name of a permanent or unlogged relation into ``(number, fork)``, the main fork being ``b""``.

    Return None for other names. Since version 17 the server refuses leading zeros and numbers over 32 bits.
    """
    match = _RELATION.fullmatch(name)
    if match is None:
        return None
    number, fork, segment = match.groups()
    if major < 17:
        return (number, fork or b"") if len(number) <= 10 else None
    for digits in (number, segment):
        if digits is not None and (digits.startswith(b"0") or int(digits) > 0xFFFFFFFF):
            return None
    return number, fork or b""


def is_temporary_relation(name: bytes) -> bool:
    """Return whether this is the name of a file of a temporary relation, ``t<backend>_<number>…``."""
    return _TEMPORARY_RELATION.fullmatch(name) is not None


def is_database_directory(path: bytes, version_directory: bytes) -> bool:
    """Return whether ``path``, in backup terms, holds the relations of one database."""
    parent, _slash, name = path.rpartition(b"/")
    return name.isdigit() and (parent == b"base" or parent.endswith(b"/" + version_directory))


def version_directory(major: int, catalog_version: int) -> bytes:
    """Return the name of the directory in which a server of this version keeps its part of a tablespace."""
    return b"PG_%d_%d" % (major, catalog_version)


def scan(
    data_directory: bytes,
    major: int,
    catalog_version: int,
    *,
    follow_symlinks: bool = False,
    stats_temp_directory: t.Optional[bytes] = None,
) -> Scan:
    """Walk a data directory and its tablespaces and return the contents of a backup.

    Files that vanish during the walk are left out, as the server does; WAL replay accounts for them. With
    ``follow_symlinks`` a link to a file becomes a file of the backup and a link to a directory becomes a directory;
    dangling links and links to a directory that the backup already has are reported. ``stats_temp_directory`` is the
    setting of a version 14 server. Raises BackupError, code ``unreadable``, naming what cannot be read and why.
    """
    root = data_directory.rstrip(b"/") or b"/"
    walk = _Walk(root, major, catalog_version, follow_symlinks, stats_temp_directory)
    try:
        walk.run()
    except OSError as exc:
        path = printable(exc.filename)
        raise BackupError(f"Cannot read {path}: {exc.strerror}.", code="unreadable", path=path) from exc
    total = sum(entry.size for entry in walk.files)
    return Scan(root, walk.directories, walk.files, walk.specials, walk.tablespaces, total)


class _Walk:
    """One walk over the trees of a cluster; the directories still to be read are a stack."""

    def __init__(
        self, root: bytes, major: int, catalog_version: int, follow: bool, stats_temp_directory: t.Optional[bytes]
    ) -> None:
        self.root = root
        self.major = major
        self.version_directory = version_directory(major, catalog_version)
        self.follow = follow
        self.stats_directory = _relative(stats_temp_directory, root) if major == 14 and stats_temp_directory else None
        self.tablespaces: list[Tablespace] = []
        self.directories: list[bytes] = []
        self.files: list[Entry] = []
        self.specials: list[Special] = []
        # Directories to read: path in backup terms, path on disk, and whether a followed link led there.
        self.pending: list[tuple[bytes, bytes, bool]] = []
        self.links: list[tuple[bytes, bytes]] = []
        # Directories that no followed link may add again, and those that become separate archives.
        self.known: set[Identity] = set()
        self.separate: set[Identity] = set()

    def run(self) -> None:
        self.tablespaces = _find_tablespaces(self.root)
        # In-place tablespaces are plain directories to servers before 16.
        separate = [space for space in self.tablespaces if not space.in_place or self.major >= 16]
        for space in separate:
            with contextlib.suppress(FileNotFoundError):
                self.separate.add(identity_of(os.stat(space.location)))
        self.pending.append((b"", self.root, False))
        self._drain()
        for space in separate:
            self._add_tablespace(space)
            self._drain()
        # Links come last, so that a link to a directory of the cluster never takes its place.
        while self.links:
            self._follow(*self.links.pop())
            self._drain()

    def _add_tablespace(self, space: Tablespace) -> None:
        path = b"pg_tblspc/%d" % space.oid
        if not space.in_place:
            self.directories.append(path)
        # A tablespace may be shared by servers of several versions: each has its own directory in it.
        source = os.path.join(space.location, self.version_directory)
        try:
            os.stat(source)
        except FileNotFoundError:
            # It is being dropped, which is what the server assumes; or its disk is not mounted.
            self.specials.append(Special(path, "symlink", space.location))
            return
        path += b"/" + self.version_directory
        self.directories.append(path)
        self.pending.append((path, source, False))

    def _drain(self) -> None:
        while self.pending:
            path, source, followed = self.pending.pop()
            try:
                self._read_directory(path, source, followed)
            except FileNotFoundError:
                if not path:
                    raise

    def _read_directory(self, path: bytes, source: bytes, followed: bool) -> None:
        self.known.add(identity_of(os.stat(source)))
        with os.scandir(source) as listing:
            entries = list(listing)
        in_database = is_database_directory(path, self.version_directory)
        unlogged: set[bytes] = set()
        if in_database or (path == b"global" and self.major >= 17):
            unlogged = {entry.name[: -len(b"_init")] for entry in entries if entry.name.endswith(b"_init")}
        prefix = path + b"/" if path else b""
        for entry in entries:
            name = entry.name
            if is_excluded(name, self.major) or (in_database and is_temporary_relation(name)):
                continue
            if unlogged:
                relation = parse_relation(name, self.major)
                if relation is not None and relation[1] != b"init" and relation[0] in unlogged:
                    continue
            try:
                self._read_entry(prefix + name, entry, followed)
            except FileNotFoundError:
                continue

    def _read_entry(self, path: bytes, entry: os.DirEntry[bytes], followed: bool) -> None:
        if path == b"global/pg_control":
            return
        if entry.is_file(follow_symlinks=False):
            self.files.append(Entry(path, entry.path, entry.stat(follow_symlinks=False).st_size, followed))
            return
        is_directory = entry.is_dir(follow_symlinks=False)
        if self._is_emptied(path) and (is_directory or entry.is_symlink()):
            self.directories.append(path)
            if path == b"pg_wal":
                self.directories += [b"pg_wal/archive_status"] + [b"pg_wal/summaries"] * (self.major >= 17)
            self.known.add(identity_of(os.stat(entry.path)))
        elif is_directory:
            self.directories.append(path)
            if not self.separate or identity_of(os.stat(entry.path)) not in self.separate:
                self.pending.append((path, entry.path, followed))
        elif not entry.is_symlink():
            kind = _SPECIAL_KINDS.get(stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode), "device")
            self.specials.append(Special(path, kind, b""))
        elif os.path.dirname(path) == b"pg_tblspc" and _is_oid(entry.name):
            return
        elif self.follow:
            self.links.append((path, entry.path))
        else:
            self.specials.append(Special(path, "symlink", os.readlink(entry.path)))

    def _is_emptied(self, path: bytes) -> bool:
        return path in (b"pg_wal", self.stats_directory) or is_emptied(os.path.basename(path))

    def _follow(self, path: bytes, source: bytes) -> None:
        try:
            target = os.stat(source)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            mode = 0
        else:
            mode = target.st_mode
        if stat.S_ISREG(mode):
            self.files.append(Entry(path, source, target.st_size, True))
        elif stat.S_ISDIR(mode) and not self._holds_known(source, identity_of(target)):
            self.directories.append(path)
            self.pending.append((path, source, True))
        else:
            with contextlib.suppress(FileNotFoundError):
                self.specials.append(Special(path, "symlink", os.readlink(source)))

    def _holds_known(self, source: bytes, found: Identity) -> bool:
        """Return whether the backup already contains this directory or one inside it."""
        parent = os.path.join(os.path.realpath(source), b"")
        trees = [self.root] + [space.location for space in self.tablespaces]
        return found in self.known | self.separate or any(os.path.realpath(x).startswith(parent) for x in trees)


def _find_tablespaces(root: bytes) -> list[Tablespace]:
    """Return the tablespaces in ``pg_tblspc``, by oid. Raises OSError."""
    found = []
    with os.scandir(root + b"/pg_tblspc") as entries:
        for entry in entries:
            if not _is_oid(entry.name):
                continue
            if entry.is_symlink():
                with contextlib.suppress(FileNotFoundError):
                    location = os.path.normpath(os.path.join(root, b"pg_tblspc", os.readlink(entry.path)))
                    found.append(Tablespace(int(entry.name), location, False))
            elif entry.is_dir(follow_symlinks=False):
                found.append(Tablespace(int(entry.name), entry.path, True))
    return sorted(found)


def _is_oid(name: bytes) -> bool:
    return name.isdigit() and not name.startswith(b"0")


def _relative(directory: bytes, root: bytes) -> t.Optional[bytes]:
    """Return where a directory lies below ``root``, or None when it lies elsewhere."""
    path = os.path.normpath(os.path.join(root, directory))
    return path[len(root) + 1 :] if path.startswith(root + b"/") else None
