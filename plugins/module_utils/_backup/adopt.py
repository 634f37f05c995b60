# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking over a copy that the user's own step made between start and stop (a snapshot, rsync).

The result is laid out, and holds, what our own copy would: PostgreSQL's exclusions are removed, the links of the
tablespaces lead into the backup, and nothing that the server has had since before the start may be missing.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import tree as _tree
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import files as _host_files
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import write_bytes
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trees import remove
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository import plain as _plain

CONTROL = b"global/pg_control"


# The list of the server's files before the start, in the directory of an unfinished backup.
LISTING = "start_files"


# What a stop that was killed may have left.
LEFTOVERS = (b"backup_label.tmp", b"tablespace_map.tmp", b"backup_manifest.tmp")


def write_listing(path: str, live: _tree.Scan) -> None:
    """Write down which files the server has; a path has any byte but NUL, which ends each."""
    write_bytes(path, b"".join(entry.path + b"\0" for entry in live.files))


def read_listing(path: str) -> frozenset[bytes]:
    """Return what :func:`write_listing` wrote down. Raises OSError."""
    with open(path, "rb") as stream:
        return frozenset(stream.read().split(b"\0")[:-1])


def take_over(
    live: _tree.Scan, backup_path: bytes, major: int, catalog_version: int, at_start: t.AbstractSet[bytes]
) -> None:
    """Bring the copy in ``backup_path`` into shape.

    ``live`` is the server's tree now, ``at_start`` what it had before the start. Raises :class:`BackupError`:
    ``nothing_copied``; ``not_a_copy`` when what lies there is the server's own; ``copy_not_whole`` when files are
    missing that were there before the start and still are. Replay makes only those again that were created since.
    """
    data = backup_path + b"/data"
    _refuse_directories(live, backup_path)
    if not os.path.isfile(data + b"/PG_VERSION"):
        raise BackupError(
            f"Nothing was copied into {os.fsdecode(data)}.",
            code="nothing_copied",
            hint="Run pgfleet.basebackup.backup_copy, or your own copy step, between start and stop.",
        )
    for name in LEFTOVERS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(data + b"/" + name)
    _link_tablespaces(live, backup_path)
    copied = _tree.scan(data, major, catalog_version)
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
    _prune(copied, backup_path)


def _refuse_directories(live: _tree.Scan, backup_path: bytes) -> None:
    """What is no part of a backup is about to be removed here, so it must not be the server's: no link, no mount."""
    pairs = [(live.data_directory + name, backup_path + b"/data" + name) for name in (b"", b"/pg_tblspc")]
    pairs += [(one.location, backup_path + b"/tablespaces/%d" % one.oid) for one in live.tablespaces]
    for original, place in pairs:
        if os.path.islink(place):
            raise _not_a_copy(place, "is a symbolic link")
        if os.path.exists(place) and os.path.exists(original) and os.path.samefile(original, place):
            raise _not_a_copy(place, f"is {_host_files.printable(original)} itself")


def _refuse_files(live: _tree.Scan, copied: _tree.Scan) -> None:
    """A hard link is the server's own file, which goes on changing after the backup."""
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


def _link_tablespaces(live: _tree.Scan, backup_path: bytes) -> None:
    folder = backup_path + b"/data/pg_tblspc"
    external = {b"%d" % one.oid: one for one in live.tablespaces if not one.in_place}
    for name in os.listdir(folder):
        # A copied link leads to the live tablespace.
        if os.path.islink(folder + b"/" + name):
            os.unlink(folder + b"/" + name)
    for name, tablespace in external.items():
        if not os.path.isdir(backup_path + b"/tablespaces/" + name):
            raise BackupError(
                f"The tablespace {tablespace.oid} at {_host_files.printable(tablespace.location)} was not copied to"
                f" {os.fsdecode(backup_path)}/tablespaces/{tablespace.oid}.",
                code="copy_not_whole",
                hint="Copy each tablespace to tablespaces/<oid>/ of the backup.",
            )
        os.symlink(_plain.tablespace_link(tablespace), folder + b"/" + name)


def _prune(copied: _tree.Scan, backup_path: bytes) -> None:
    keep = {_plain.destination(one.path, copied.tablespaces) for one in copied.files}
    keep.add(b"data/" + CONTROL)
    folders = {_plain.destination(path, copied.tablespaces) for path in copied.directories} | {
        b"data",
        b"tablespaces",
    }
    links = {b"data/pg_tblspc/%d" % one.oid for one in copied.tablespaces if not one.in_place}
    for top in (b"data", b"tablespaces"):
        if os.path.isdir(backup_path + b"/" + top):
            _prune_folder(backup_path, top, keep, folders, links)
    for path in copied.directories:
        place = backup_path + b"/" + _plain.destination(path, copied.tablespaces)
        if os.path.islink(place) and _plain.destination(path, copied.tablespaces) not in links:
            os.unlink(place)
        if not os.path.isdir(place):
            os.mkdir(place, 0o700)


def _prune_folder(root: bytes, top: bytes, keep: set[bytes], folders: set[bytes], links: set[bytes]) -> None:
    os.chmod(root + b"/" + top, 0o700)
    with os.scandir(root + b"/" + top) as listing:
        entries = list(listing)
    for entry in entries:
        path = top + b"/" + entry.name
        if path in links:
            continue
        if entry.is_dir(follow_symlinks=False):
            if path in folders:
                _prune_folder(root, path, keep, folders, links)
            else:
                remove(entry.path)
        elif path in keep and entry.is_file(follow_symlinks=False):
            os.chmod(entry.path, 0o600)
        else:
            os.unlink(entry.path)
