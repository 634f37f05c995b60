# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths: which lies in which, which directory is the same, where mounts are.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import os
import re
import typing as t

Identity = t.Tuple[int, int]


_OCTAL = re.compile(rb"\\([0-7]{3})")


def identity(path: bytes) -> t.Optional[Identity]:
    """Return what tells one file or directory from all others, None when there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def mounts_below(directory: bytes) -> set[bytes]:
    """Return the mount points below ``directory``, an absolute path without links; bind mounts are such too."""
    with open("/proc/self/mountinfo", "rb") as stream:
        points = [_OCTAL.sub(lambda match: bytes([int(match.group(1), 8)]), line.split()[4]) for line in stream]
    return {point for point in points if point.startswith(directory.rstrip(b"/") + b"/")}


def inside(path: bytes, directory: bytes) -> bool:
    """Tell whether ``path`` is ``directory`` or lies in it."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def nearest(path: bytes) -> bytes:
    """Return the nearest of ``path`` and its parents that exists."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path
