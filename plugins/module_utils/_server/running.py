# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers that run on this host, with their directories.

The working directory of each process of a server is the data directory, so a server whose main process was killed is
found until its last process has ended. Directories are compared by device and inode, which holds for
servers in containers too. ``postmaster.pid`` alone is not believed: after a reboot its number may be that of another
process, and a signal would stop that one.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import (
    Identity,
    Spot,
    identity,
    identity_of,
    inside,
    overlap,
    same,
    spot_of,
    within,
)

_PROGRAMS = (b"postgres", b"postmaster", b"edb-postgres")
# Options with which the program is not a server (PostgreSQL's main.c).
_OTHER_MODES = frozenset((b"--single", b"--boot", b"--check", b"--describe-config", b"-C"))
# The line of postmaster.pid that holds the status (PostgreSQL's pidfile.h, LOCK_FILE_LINE_PM_STATUS).
_STATUS_LINE = 8


class Postmaster(t.NamedTuple):
    """The process of a running server.

    ``status`` is ``starting``, ``stopping``, ``ready`` or ``standby``, "" when it is not known. ``is_main`` is false
    when only other processes of the server are left.
    """

    pid: int
    status: str
    is_main: bool = True


class Held(t.NamedTuple):
    """A directory that a server uses: its path as the server knows it, identity and spot as far as they are known."""

    path: bytes
    identity: t.Optional[Identity] = None
    spot: t.Optional[Spot] = None

    def is_used_by(self, place: bytes, known: t.Optional[Identity], spot: t.Optional[Spot]) -> bool:
        """Return whether ``place`` with this identity and spot is, contains or lies in the directory."""
        if self.identity is None and self.spot is None:
            return inside(place, self.path) or inside(self.path, place)
        return same(known, self.identity) or overlap(spot, self.spot)

    def contains(self, place: bytes, spot: t.Optional[Spot]) -> bool:
        """Return whether ``place`` with this spot is the directory or lies in it."""
        if self.spot is None or spot is None:
            return inside(place, self.path)
        return spot.device == self.spot.device and inside(spot.path, self.spot.path)


class Running(t.NamedTuple):
    """A server: one of its processes, its data directory, and what it ``held`` when it was looked at: the data
    directory, the tablespaces and the WAL.

    The facts of another account's process are unreadable: ``data_directory`` comes from its command line and the rest
    is empty.
    """

    pid: int
    data_directory: bytes
    identity: t.Optional[Identity]
    held: t.Tuple[Held, ...] = ()
    is_main: bool = True

    def uses(self, place: bytes) -> bool:
        """Return whether ``place``, which need not exist, is, contains or lies in a directory of the server."""
        known, spot = identity(place), spot_of(place)
        return any(one.is_used_by(place, known, spot) for one in self.held or (Held(self.data_directory),))


def running_servers() -> list[Running]:
    """Return the PostgreSQL servers on this host that this user may see."""
    found: dict[t.Any, Running] = {}
    for name in os.listdir(b"/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                server = _server_of(int(name))
                key = server and (server.identity or server.data_directory)
                # A child that was just forked still has the command line of the main process, which came first.
                if server is not None and (key not in found or (server.is_main and not found[key].is_main)):
                    found[key] = server
    return list(found.values())


def _server_of(pid: int) -> t.Optional[Running]:
    if not _is_server_process(pid):
        return None
    directory = b"/proc/%d/cwd" % pid
    try:
        status = os.stat(directory)
        path = os.readlink(directory)
    except PermissionError:
        path = _named_directory(pid)
        return Running(pid, path, None) if path else None
    if not os.path.exists(directory + b"/PG_VERSION"):
        return None
    links = [b"pg_wal", *(b"pg_tblspc/%d" % oid for oid in tablespaces_of(directory))]
    held = [Held(path, identity_of(status), spot_of(directory, pid)), *(_held(pid, link) for link in links)]
    return Running(pid, path, identity_of(status), tuple(held), _is_main(pid))


def _held(pid: int, link: bytes) -> Held:
    """Return the directory that a path in the data directory of a process leads to, as its kernel resolves it."""
    place = b"/proc/%d/cwd/" % pid + link
    target = os.readlink(place) if os.path.islink(place) else b""
    if os.path.isabs(target):
        # In another mount namespace an absolute path means something else here.
        place = within(b"/proc/%d/root" % pid, target)
    return Held(target or link, identity(place), spot_of(place, pid))


def _is_server_process(pid: int) -> bool:
    with open(b"/proc/%d/comm" % pid, "rb") as stream:
        return stream.read().startswith(_PROGRAMS)


def _is_main(pid: int) -> bool:
    """Return whether a process of a server is its main process: no child, and in no mode that serves no clients."""
    words = _words(pid)
    with open(b"/proc/%d/comm" % pid, "rb") as stream:
        is_program = stream.read().strip() in _PROGRAMS
    return is_program and not words[0].startswith(b"postgres: ") and not _OTHER_MODES & set(words[1:])


def _words(pid: int) -> list[bytes]:
    with open(b"/proc/%d/cmdline" % pid, "rb") as stream:
        return stream.read().split(b"\0")


def _named_directory(pid: int) -> bytes:
    """Return the data directory on the command line of a main process, empty when there is none."""
    words = _words(pid)
    for number, word in enumerate(words[:-1]):
        if word == b"-D":
            return words[number + 1]
        if word.startswith(b"-D/"):
            return word[2:]
    return b""


def tablespaces_of(data_directory: bytes) -> dict[int, bytes]:
    """Return oid → location of the links in ``pg_tblspc``, none where they cannot be read."""
    found = {}
    with contextlib.suppress(OSError):
        folder = data_directory + b"/pg_tblspc"
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if name.isdigit():
                    link = os.readlink(folder + b"/" + name)
                    # The kernel resolves the links on the way of a relative one; text cannot.
                    found[int(name)] = os.path.normpath(link) if os.path.isabs(link) else _resolved(folder, link)
    return found


def _resolved(folder: bytes, link: bytes) -> bytes:
    return os.path.realpath(folder + b"/" + link)


def server_in(data_directory: bytes, servers: t.Sequence[Running]) -> t.Optional[int]:
    """Return a process of the server that runs in ``data_directory``, None when there is none."""
    wanted = identity(data_directory)
    for server in servers:
        if same(server.identity, wanted) if server.identity else server.data_directory == data_directory:
            return server.pid
    return None


def cluster_of(place: str) -> str:
    """Return the data directory of the cluster in which ``place`` lies, which need not exist; "" for none.

    The directories of a running server count with its tablespaces and its WAL.
    """
    real = os.path.realpath(os.fsencode(place))
    spot = spot_of(real)
    for server in running_servers():
        if any(one.contains(real, spot) for one in server.held or (Held(server.data_directory),)):
            return os.fsdecode(server.data_directory)
    return os.fsdecode(cluster_around(real + b"/x"))


def cluster_around(path: bytes) -> bytes:
    """Return the data directory that contains ``path``, used or not, or empty bytes."""
    while len(path) > 1:
        path = os.path.dirname(path)
        # The directory of a database has a PG_VERSION, too.
        if os.path.lexists(path + b"/PG_VERSION") and os.path.lexists(path + b"/global"):
            return path
    return b""


def find_server(data_directory: t.Union[str, bytes]) -> t.Optional[Postmaster]:
    """Return the server that runs in ``data_directory``, None when there is none.

    Raises BackupError, code ``not_the_server_user``, when this user may not see whether it runs there.
    """
    directory = os.fsencode(data_directory)
    written = _postmaster_of(directory)
    if written is not None:
        return written
    for server in running_servers():
        if server_in(directory, [server]) is not None:
            return Postmaster(server.pid, "", server.is_main)
    return None


def main_process(data_directory: t.Union[str, bytes]) -> t.Optional[Postmaster]:
    """Return the main process of the server that runs in ``data_directory``; raises as :func:`find_server`."""
    process = find_server(data_directory)
    return process if process is not None and process.is_main else None


def _postmaster_of(directory: bytes) -> t.Optional[Postmaster]:
    """Return the process that ``postmaster.pid`` names when the directory is its working directory."""
    pid = 0
    try:
        with open(directory + b"/postmaster.pid", encoding="utf-8", errors="replace") as stream:
            lines = stream.read().splitlines()
        pid = int(lines[0])
        # Its number may be that of another process, even of one that stands in this directory.
        if not same(identity_of(os.stat(f"/proc/{pid}/cwd")), identity(directory)) or not _is_server_process(pid):
            return None
    except PermissionError as exc:
        if pid and not _may_be_server_of(pid, directory):
            return None
        raise BackupError(
            f"Whether a server runs in {os.fsdecode(directory)} cannot be seen: {exc.strerror}.",
            code="not_the_server_user",
            hint="Run this as the operating system user of the server.",
        ) from exc
    except (OSError, ValueError, IndexError):
        return None
    return Postmaster(pid, lines[_STATUS_LINE - 1].strip() if len(lines) >= _STATUS_LINE else "")


def _may_be_server_of(pid: int, directory: bytes) -> bool:
    """Return whether a process whose working directory cannot be seen may be the server of a data directory.

    A server runs as the owner of its data directory.
    """
    try:
        return _is_server_process(pid) and os.stat(f"/proc/{pid}").st_uid == os.stat(directory).st_uid
    except OSError:
        return False


def refuse_running(data_directory: bytes) -> None:
    """Raise BackupError, code ``server_running``, while a server runs in ``data_directory``."""
    process = find_server(data_directory)
    if process is not None:
        raise BackupError(
            f"A PostgreSQL server runs in {os.fsdecode(data_directory)} (process {process.pid}).",
            code="server_running",
            hint="Stop it first.",
        )
