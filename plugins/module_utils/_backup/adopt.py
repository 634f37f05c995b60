# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking over a copy that the user's own step made between start and stop (a snapshot, rsync).

The result has the layout and the contents of our own copy: PostgreSQL's exclusions are removed, the links of the
tablespaces lead into the backup, and no file may be missing that the server has had since before the start.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import copy as _backup_copy
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import copy_process as _copy_process
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import tree as _tree
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.manifest import ManifestFile
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import files as _host_files
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import write_bytes
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trees import remove, sync_tree
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository import plain as _plain
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import Server
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup

CONTROL = b"global/pg_control"

# The list of the server's files before the start, in the directory of an unfinished backup.
LISTING = "start_files"


def write_listing(path: str, live: _tree.Scan) -> None:
    """Write the list of the server's files; each path ends with NUL, the one byte that it cannot contain."""
    write_bytes(path, b"".join(entry.path + b"\0" for entry in live.files))


def read_listing(path: str) -> frozenset[bytes]:
    """Return the paths that :func:`write_listing` wrote. Raises OSError."""
    with open(path, "rb") as stream:
        return frozenset(stream.read().split(b"\0")[:-1])


def adopt(backup: Backup, server: Server, stopped: bool, algorithm: str, jobs: int) -> dict[bytes, ManifestFile]:
    """Bring what the user's own step has put into ``backup`` into shape, and return its files by path, described.

    ``stopped`` means that an earlier call has stopped the backup. Raises :class:`BackupError` as :func:`take_over`.
    """
    destination = os.fsencode(backup.path)
    live = _copy_process.scan_source(server, follow_symlinks=False)
    at_start = read_listing(backup.file(LISTING))
    take_over(live, destination, server.major, server.catalog_version, at_start)
    if not stopped:
        # A standby's backup requires that pg_control is copied last, which a user's step may not do. Never after the
        # stop: a newer one may need WAL beyond the backup's end. The call that stopped has copied it.
        _backup_copy.copy_control(live.data_directory, destination, algorithm="NONE", sync=True)

    def check() -> None:
        """Check nothing: the stop notices a session that has ended."""

    sync_tree(destination, jobs=jobs, check=check)
    found = _backup_copy.hash_missing(destination, set(), jobs=jobs, algorithm=algorithm, check=check)
    return {one.path: one for one in found}


def take_over(
    live: _tree.Scan, backup_path: bytes, major: int, catalog_version: int, at_start: t.AbstractSet[bytes]
) -> None:
    """Turn the copy in ``backup_path`` into what our own copy would be.

    ``live`` is the server's tree now, ``at_start`` its files before the start. Raises :class:`BackupError`:
    ``nothing_copied``; ``not_a_copy`` when these are the server's own files; ``copy_not_whole`` when files are missing
    that the server has had since before the start. Replay creates only those again that were created later.
    """
    layout = _plain.PlainLayout(backup_path, _plain.external(live.tablespaces))
    _refuse_directories(live, layout)
    if not os.path.isfile(layout.place(b"PG_VERSION")):
        raise BackupError(
            f"Nothing was copied into {os.fsdecode(layout.data)}.",
            code="nothing_copied",
            hint="Run pgfleet.basebackup.backup_copy, or your own copy step, between start and stop.",
        )
    # A stop that was killed may have left some.
    _host_files.remove_temporary(os.fsdecode(layout.data))
    _link_tablespaces(live, layout)
    copied = _tree.scan(layout.data, major, catalog_version)
    _refuse_files(live, copied)
    have = {one.path for one in copied.files}
    missing = sorted(one.path for one in live.files if one.path in at_start and one.path not in have)
    if missing:
        raise BackupError(
            f"The copy in {os.fsdecode(backup_path)} is not whole: {len(missing)} files are missing, for example"
            f" {_host_files.printable(missing[0])}.",
            code="copy_not_whole",
            hint="Copy the data directory to data/ and each tablespace to tablespaces/<oid>/ of the backup.",
        )
    _prune(copied, layout)


def _refuse_directories(live: _tree.Scan, layout: _plain.PlainLayout) -> None:
    """Refuse the server's own directories, reached by a link or a mount: files are about to be removed from them."""
    pairs = [(live.data_directory + name, layout.data + name) for name in (b"", b"/pg_tblspc")]
    pairs += [(one.location, layout.tablespace(one.oid)) for one in live.tablespaces]
    for original, place in pairs:
        if os.path.islink(place):
            raise _not_a_copy(place, "is a symbolic link")
        if os.path.exists(place) and os.path.exists(original) and os.path.samefile(original, place):
            raise _not_a_copy(place, f"is {_host_files.printable(original)} itself")


def _refuse_files(live: _tree.Scan, copied: _tree.Scan) -> None:
    """Refuse the server's own files, reached by a hard link: they still change after the backup."""
    places = {one.path: one.source for one in copied.files}
    for entry in live.files:
        place = places.get(entry.path)
        try:
            if place is not None and os.path.samefile(place, entry.source):
                raise _not_a_copy(place, f"is {_host_files.printable(entry.source)} itself")
        except FileNotFoundError:
            continue


def _not_a_copy(place: bytes, why: str) -> BackupError:
    return BackupError(
        f"{_host_files.printable(place)} {why}, not a copy.",
        code="not_a_copy",
        hint="Put real files there: a copy, a clone, or a snapshot that is mounted.",
    )


def _link_tablespaces(live: _tree.Scan, layout: _plain.PlainLayout) -> None:
    folder = layout.place(b"pg_tblspc")
    for name in os.listdir(folder):
        # A copied link leads to the live tablespace.
        if os.path.islink(folder + b"/" + name):
            os.unlink(folder + b"/" + name)
    for tablespace in live.tablespaces:
        place = layout.tablespace(tablespace.oid)
        if tablespace.in_place:
            continue
        if not os.path.isdir(place):
            raise BackupError(
                f"The tablespace {tablespace.oid} at {_host_files.printable(tablespace.location)} was not copied to"
                f" {os.fsdecode(place)}.",
                code="copy_not_whole",
                hint="Copy each tablespace to tablespaces/<oid>/ of the backup.",
            )
        os.symlink(layout.link_target(tablespace.oid), layout.link(tablespace.oid))


def _prune(copied: _tree.Scan, layout: _plain.PlainLayout) -> None:
    folders = {layout.data, layout.tablespaces, *map(layout.place, copied.directories)}
    links = {layout.link(oid) for oid in _plain.external(copied.tablespaces)}
    keep = {layout.place(CONTROL), *(layout.place(one.path) for one in copied.files)}
    for top in (layout.data, layout.tablespaces):
        if os.path.isdir(top):
            _prune_folder(top, keep, folders, links)
    for place in map(layout.place, copied.directories):
        if os.path.islink(place) and place not in links:
            os.unlink(place)
        if not os.path.isdir(place):
            os.mkdir(place, 0o700)


def _prune_folder(folder: bytes, keep: set[bytes], folders: set[bytes], links: set[bytes]) -> None:
    os.chmod(folder, 0o700)
    with os.scandir(folder) as listing:
        entries = list(listing)
    for entry in entries:
        if entry.path in links:
            continue
        if entry.is_dir(follow_symlinks=False):
            if entry.path in folders:
                _prune_folder(entry.path, keep, folders, links)
            else:
                remove(entry.path)
        elif entry.path in keep and entry.is_file(follow_symlinks=False):
            os.chmod(entry.path, 0o600)
        else:
            os.unlink(entry.path)
