# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths: nesting, identity of directories, mount points; also of directories as another process sees them.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import os
import re
import typing as t

Identity = t.Tuple[int, int]
# The kernel follows no more links than this (MAXSYMLINKS).
_MOST_LINKS = 40
_OCTAL = re.compile(rb"\\([0-7]{3})")


def identity_of(status: os.stat_result) -> Identity:
    """Return device and inode, which identify a file or directory whatever path leads to it."""
    return status.st_dev, status.st_ino


def identity(path: t.Union[str, bytes]) -> t.Optional[Identity]:
    """Return :func:`identity_of` what ``path`` leads to, None when that is unknown. Compare with :func:`same`."""
    try:
        return identity_of(os.stat(path))
    except OSError:
        return None


def same(one: t.Optional[Identity], other: t.Optional[Identity]) -> bool:
    """Return whether both are known and equal: two unknown directories are not the same one."""
    return one is not None and one == other


def _unescaped(word: bytes) -> bytes:
    """Return a path of mountinfo as it is."""
    return _OCTAL.sub(lambda match: bytes([int(match.group(1), 8)]), word)


def mounts_below(directory: bytes) -> set[bytes]:
    """Return the mount points, bind mounts included, below ``directory``, an absolute path without links."""
    with open("/proc/self/mountinfo", "rb") as stream:
        points = [_unescaped(line.split()[4]) for line in stream]
    return {point for point in points if point.startswith(directory.rstrip(b"/") + b"/")}


def inside(path: bytes, directory: bytes) -> bool:
    """Return whether ``path`` is ``directory`` or lies in it."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def nearest(path: bytes) -> bytes:
    """Return the nearest of ``path`` and its parents that exists."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


class Spot(t.NamedTuple):
    """Where a directory lies on its file system: ``device`` as in mountinfo, ``path`` from the file system's root.

    Bind mounts and mount namespaces give a directory several paths, but one spot.
    """

    device: bytes
    path: bytes


def spot_of(path: bytes, pid: t.Optional[int] = None) -> t.Optional[Spot]:
    """Return the spot of what ``path`` leads to, which need not exist, None when that is unknown.

    ``pid`` is the process in whose mount namespace ``path`` ends, if that is not this process's own.
    """
    there = nearest(path)
    try:
        handle = os.open(there, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        real = os.readlink(b"/proc/self/fd/%d" % handle)
        with open(b"/proc/self/fdinfo/%d" % handle, "rb") as stream:
            mount = next(line.split()[1] for line in stream if line.startswith(b"mnt_id:"))
        device, root, point = _mount(mount, b"/proc/%d/mountinfo" % pid if pid else b"/proc/self/mountinfo")
    except (OSError, StopIteration, ValueError):
        return None
    finally:
        os.close(handle)
    if not inside(real, point):
        return None
    rest = real[len(point.rstrip(b"/")) :] + path[len(there.rstrip(b"/")) :]
    return Spot(device, os.path.normpath(root + b"/" + rest).replace(b"//", b"/"))


def _mount(wanted: bytes, table: bytes) -> tuple[bytes, bytes, bytes]:
    """Return device, root and mount point of a mount. Raises OSError, or ValueError when it is not listed."""
    with open(table, "rb") as stream:
        for line in stream:
            words = line.split()
            if words[0] == wanted:
                return words[2], _unescaped(words[3]), _unescaped(words[4])
    raise ValueError(wanted)


def within(root: bytes, path: bytes) -> bytes:
    """Return the absolute ``path`` of a process whose root is the directory ``root`` as this process can reach it.

    A link to an absolute path would lead out of ``root``, so links are followed here.
    """
    pending, found, links = path.split(b"/")[::-1], b"", 0
    while pending:
        name = pending.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            found = os.path.dirname(found).rstrip(b"/")
            continue
        try:
            target = os.readlink(root + found + b"/" + name)
        except OSError:
            found += b"/" + name
            continue
        links += 1
        if links > _MOST_LINKS:
            break
        found = b"" if target.startswith(b"/") else found
        pending += target.split(b"/")[::-1]
    return root + found


def overlap(one: t.Optional[Spot], other: t.Optional[Spot]) -> bool:
    """Return whether both are known, and one is or contains the other."""
    return (
        one is not None
        and other is not None
        and one.device == other.device
        and (inside(one.path, other.path) or inside(other.path, one.path))
    )
