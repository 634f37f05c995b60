# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this user can change: names in directories, files, whole trees. It only looks.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable

# statx(2): arguments, bits of stx_attributes, and where this member is in the structure of 256 bytes.
_NOT_RELATIVE, _NO_FOLLOW = -100, 0x100
_IMMUTABLE, _APPEND = 0x10, 0x20
_ATTRIBUTES, _SIZE = 8, 256


class Obstacle(t.NamedTuple):
    """Why this user cannot change ``path``, and what would cure it; the first word of ``why`` is about the path."""

    path: bytes
    why: str
    cure: str


def _statx() -> t.Optional[t.Callable[..., int]]:
    try:
        function = ctypes.CDLL(None).statx
    except (AttributeError, OSError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]
    return t.cast(t.Callable[..., int], function)


_STATX = _statx()


def attributes_of(path: bytes) -> int:
    """Return the attributes of a file as statx(2) knows them, 0 where they are unknown; links are not followed."""
    buffer = ctypes.create_string_buffer(_SIZE)
    if _STATX is None or _STATX(_NOT_RELATIVE, path, _NO_FOLLOW, 0, buffer) != 0:
        return 0
    return int(ctypes.c_uint64.from_buffer(buffer, _ATTRIBUTES).value)


def frozen(path: bytes) -> t.Optional[Obstacle]:
    """Return why a file or directory can be neither removed nor renamed, nor what is in it: its attributes."""
    attributes = attributes_of(path)
    for bit, word, flag in ((_IMMUTABLE, "immutable", "i"), (_APPEND, "append-only", "a")):
        if attributes & bit:
            return Obstacle(path, f"is {word}", f"chattr -{flag} {_quoted(path)}")
    return None


def closed(directory: bytes) -> t.Optional[Obstacle]:
    """Return why this user can neither make nor remove names in ``directory``, None when it can."""
    obstacle = frozen(directory)
    if obstacle is not None or os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        return obstacle
    try:
        status = os.stat(directory)
        if os.statvfs(directory).f_flag & os.ST_RDONLY:
            return Obstacle(directory, "is on a file system that is mounted read-only", "")
    except OSError as exc:
        return Obstacle(directory, f"cannot be examined ({exc.strerror})", "")
    if status.st_uid == os.geteuid():
        return Obstacle(
            directory, f"has the mode {stat.S_IMODE(status.st_mode):04o}", f"chmod u+rwx {_quoted(directory)}"
        )
    return foreign(directory, status)


def foreign(path: bytes, status: os.stat_result) -> Obstacle:
    """Return the obstacle that a file or directory belongs to another user."""
    user = os.geteuid()
    return Obstacle(path, f"belongs to the user {status.st_uid}, not {user}", f"chown -R {user} {_quoted(path)}")


def fixed(path: bytes, status: os.stat_result, parent: os.stat_result) -> t.Optional[Obstacle]:
    """Return why this user cannot remove ``path`` from a directory in which it can remove names."""
    if parent.st_mode & stat.S_ISVTX and os.geteuid() not in (0, status.st_uid, parent.st_uid):
        return foreign(path, status)
    return frozen(path)


def obstacles(tree: bytes) -> t.Iterator[Obstacle]:
    """Yield what prevents this user from removing the contents of the directory ``tree``; links are not followed."""
    pending = [tree]
    while pending:
        directory = pending.pop()
        try:
            parent = os.lstat(directory)
        except FileNotFoundError:
            continue
        try:
            with os.scandir(directory) as listing:
                entries = list(listing)
        except OSError:
            yield closed(directory) or Obstacle(directory, "cannot be read", f"chmod u+rwx {_quoted(directory)}")
            continue
        obstacle = closed(directory) if entries else None
        if obstacle is not None:
            yield obstacle
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            obstacle = fixed(entry.path, status, parent)
            if obstacle is not None:
                yield obstacle
            elif stat.S_ISDIR(status.st_mode):
                pending.append(entry.path)


def _quoted(path: bytes) -> str:
    return shlex.quote(printable(path))
