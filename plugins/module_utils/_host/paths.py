# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths: nesting, identity of directories, mount points.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import os
import re
import typing as t

Identity = t.Tuple[int, int]
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


def mounts_below(directory: bytes) -> set[bytes]:
    """Return the mount points, bind mounts included, below ``directory``, an absolute path without links."""
    with open("/proc/self/mountinfo", "rb") as stream:
        points = [_OCTAL.sub(lambda match: bytes([int(match.group(1), 8)]), line.split()[4]) for line in stream]
    return {point for point in points if point.startswith(directory.rstrip(b"/") + b"/")}


def inside(path: bytes, directory: bytes) -> bool:
    """Return whether ``path`` is ``directory`` or lies in it."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def nearest(path: bytes) -> bytes:
    """Return the nearest of ``path`` and its parents that exists."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path
