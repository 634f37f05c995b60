# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files in a directory or a backup, and what must be true of them."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import stat
import typing as t

from tests.harness.servers import Server
from tests.harness.user import me, run

# Files that stop writes, after the copy.
WRITTEN_BY_STOP: t.Final = frozenset(("backup_label", "tablespace_map", "backup_manifest"))


def listing(root: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Return everything under ``root`` with the attributes that a change alters: type, mode, inode, size, mtime."""
    found: dict[str, tuple[int, ...]] = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def files_and_directories(root: pathlib.Path) -> tuple[dict[str, int], set[str]]:
    """Return a backup's files with their sizes, and its directories; follows links to tablespaces."""
    files, directories = {}, set()
    for directory, names, file_names in os.walk(root, followlinks=True):
        relative = os.path.relpath(directory, root)
        directories.add(relative)
        directories.update(os.path.join(relative, name) for name in names)
        for name in file_names:
            files[os.path.normpath(os.path.join(relative, name))] = os.stat(os.path.join(directory, name)).st_size
    return files, {os.path.normpath(name) for name in directories}


def is_private(root: pathlib.Path) -> None:
    """Require mode 0700 for every directory, 0600 for every file, and no link that points outside the backup."""
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            assert not os.path.isabs(os.readlink(path)), path
            assert path.resolve().is_relative_to(root.resolve()), path
        else:
            wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
            assert stat.S_IMODE(status.st_mode) == wanted, f"{path}: {status.st_mode:o}"


def control_came_last(data: pathlib.Path) -> None:
    """Require that ``global/pg_control`` was written after every other file of the copy."""
    control = (data / "global" / "pg_control").stat()
    others = [path for path in data.rglob("*") if path.is_file() and path.name not in WRITTEN_BY_STOP]
    newest = max((path for path in others if path.name != "pg_control"), key=lambda path: path.stat().st_mtime_ns)
    assert control.st_mtime_ns >= newest.stat().st_mtime_ns, f"{newest} was copied after pg_control"


def manifest(data: pathlib.Path) -> dict[str, t.Any]:
    """Return the content of ``backup_manifest``."""
    content: dict[str, t.Any] = json.loads((data / "backup_manifest").read_bytes())
    return content


def copy_data_directory(server: Server, backup: pathlib.Path) -> None:
    """Copy a server with cp, as a user's own copy step would: PGDATA to ``data``, tablespaces to their OIDs."""
    run(["cp", "-a", server.data, backup / "data"], user=me())
    run(["mkdir", "-p", backup / "tablespaces"], user=me())
    for link in (server.data / "pg_tblspc").iterdir():
        if link.is_symlink():
            run(["cp", "-a", link.resolve(), backup / "tablespaces" / link.name], user=me())


def read_json(path: pathlib.Path) -> dict[str, t.Any]:
    """Return a JSON file's object, {} if the file does not exist."""
    try:
        content: dict[str, t.Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return content


@contextlib.contextmanager
def untouched(*places: pathlib.Path) -> t.Iterator[None]:
    """Require that nothing below these directories changes."""
    before = [listing(place) for place in places]
    yield
    for place, old in zip(places, before, strict=True):
        new = listing(place)
        assert new == old, sorted(path for path in {*old, *new} if old.get(path) != new.get(path))


def content(backup: pathlib.Path) -> dict[str, t.Any]:
    """Return a backup's record."""
    record: dict[str, t.Any] = json.loads((backup / "backup.json").read_text())
    return record


def holds(root: pathlib.Path, secret: str) -> list[pathlib.Path]:
    """Return the files under ``root`` that contain ``secret``."""
    found = []
    for directory, _names, files in os.walk(root):
        for name in files:
            path = pathlib.Path(directory, name)
            if path.is_file() and secret.encode() in path.read_bytes():
                found.append(path)
    return found
