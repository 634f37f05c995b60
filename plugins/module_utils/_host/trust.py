# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom we trust with a file: the operating system's root and the user of this process.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.

A directory is safe when no other user can change what its path leads to: it and each directory above belong to a
trusted user and are not writable for others, as sshd's StrictModes asks of a home. Above, a sticky directory such as
/tmp is good enough, because there only the owner of an entry can exchange it. An entry of an access control list that
may write shows in the bits of the group.
"""

from __future__ import annotations

import os
import shlex
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import user_name

_MOST_LINKS = 40
Users = t.AbstractSet[int]


class Distrust(t.NamedTuple):
    """Why other users can change what a path leads to: ``reason`` is a sentence, ``remedy`` the next step."""

    reason: str
    remedy: str


def trusted_users(directory: str = "") -> Users:
    """Return the ids of the users that we trust. Root also trusts the owner of ``directory``, which it works on."""
    users = {0, os.geteuid()}
    if directory and os.geteuid() == 0:
        try:
            users.add(os.lstat(directory).st_uid)
        except OSError:
            pass
    return users


def distrust(status: os.stat_result, users: Users, what: str, place: str) -> t.Optional[Distrust]:
    """Return why the file or directory ``what``, at ``place``, can be changed by others; None when it cannot."""
    path = shlex.quote(place)
    if status.st_uid not in users:
        me = shlex.quote(user_name(os.geteuid()))
        return Distrust(
            f"{what} belongs to the user {user_name(status.st_uid)}.",
            f"Only {me} or root may own it. Look at what it holds, then: chown {me} {path}",
        )
    if status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        return Distrust(f"{what} is writable for other users (mode {mode:04o}).", f"chmod go-w {path}")
    return None


def distrust_directory(path: str, users: Users, what: str) -> t.Optional[Distrust]:
    """Return why the directory ``path``, or what leads to it, can be changed by others; None when it cannot.

    ``what`` names it in the sentence, which adds the path. What does not exist cannot be changed; whoever makes it
    is judged above. The last component must not be a link. Raises OSError.
    """
    pending = _parts(path)
    place, links = "/", 0
    while pending:
        above = distrust_above(place, users)
        if above:
            return above
        # No component of "place" is a link, so ".." can be resolved by text.
        place = os.path.normpath(os.path.join(place, pending.pop()))
        try:
            status = os.lstat(place)
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if not pending or status.st_uid not in users or links > _MOST_LINKS:
                return _link(place, what if not pending else "")
            target = os.readlink(place)
            pending += _parts(target)
            place = "/" if target.startswith("/") else os.path.dirname(place)
    return distrust(os.lstat(place), users, f"{what} {place}", place)


def _parts(path: str) -> t.List[str]:
    """Return the components of a path, the last one first."""
    return [part for part in path.split("/") if part not in ("", ".")][::-1]


def _link(place: str, what: str) -> Distrust:
    name = f"{what} {place}" if what else place
    return Distrust(
        f"{name} is a symbolic link.",
        f"Use the directory itself, {os.path.realpath(place)}." if what else f"Remove it: rm {shlex.quote(place)}",
    )


def distrust_above(place: str, users: Users) -> t.Optional[Distrust]:
    """Return why others can exchange the entries of the directory ``place``; None when they cannot. Raises OSError."""
    status = os.lstat(place)
    if status.st_mode & stat.S_ISVTX and status.st_uid in users:
        return None
    return distrust(status, users, f"The directory {place}", place)


def refuse_unsafe(path: str, what: str, users: t.Optional[Users] = None) -> None:
    """Raise :class:`BackupError`, code ``unsafe_directory``, unless the directory ``path`` is safe or does not exist.

    ``what`` names it, for example "The repository".
    """
    found = distrust_directory(path, trusted_users(path) if users is None else users, what)
    if found:
        raise BackupError(found.reason, code="unsafe_directory", hint=found.remedy)


def mount_of(descriptor: int) -> t.Tuple[int, str]:
    """Return what identifies the mount of an open file: the device, and the number of the mount.

    A bind mount has the device of the file system that it shows, so the device alone is not enough (proc(5), fdinfo).
    """
    number = ""
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
            number = next((line.split()[1] for line in lines if line.startswith("mnt_id:")), "")
    except OSError:
        pass
    return os.fstat(descriptor).st_dev, number
