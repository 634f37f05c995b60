# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What on this host a restore must not touch: running servers with their tablespaces, and mounts.

A server's working directory is its data directory, in the main process and in all others, so one whose main process was
killed is seen as long as any of its processes lives. Directories are compared by device and inode, which holds for
servers in containers too.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import (
    Identity,
    identity,
    identity_of,
    same,
)

_PROGRAMS = (b"postgres", b"postmaster", b"edb-postgres")


class Running(t.NamedTuple):
    """A server: one of its processes, its directories by identity, and the same as the server's paths.

    What another account's process has cannot be seen; then ``data_directory`` comes from its command line and the rest
    is empty.
    """

    pid: int
    data_directory: bytes
    identity: t.Optional[Identity]
    tablespaces: dict[bytes, t.Optional[Identity]]
    wal: t.Optional[Identity] = None


def running_servers() -> list[Running]:
    """Return the PostgreSQL servers that run on this host, as far as this user may see."""
    found: dict[t.Any, Running] = {}
    for name in os.listdir(b"/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                server = _server_of(int(name))
                if server is not None:
                    found.setdefault(server.identity or server.data_directory, server)
    return list(found.values())


def _server_of(pid: int) -> t.Optional[Running]:
    with open(b"/proc/%d/comm" % pid, "rb") as stream:
        if not stream.read().startswith(_PROGRAMS):
            return None
    directory = b"/proc/%d/cwd" % pid
    try:
        status = os.stat(directory)
        path = os.readlink(directory)
    except PermissionError:
        path = _named_directory(pid)
        return Running(pid, path, None, {}) if path else None
    if not os.path.exists(directory + b"/PG_VERSION"):
        return None
    # In another mount namespace its paths mean something else here.
    root = b"/proc/%d/root" % pid
    spaces = {location: identity(root + location) for location in tablespaces_of(directory).values()}
    try:
        link = os.readlink(directory + b"/pg_wal")
    except OSError:
        link = b""
    wal = identity(root + link if os.path.isabs(link) else directory + b"/pg_wal")
    return Running(pid, path, identity_of(status), spaces, wal)


def _named_directory(pid: int) -> bytes:
    """Return the data directory that a main process was told on its command line, empty when it was not."""
    with open(b"/proc/%d/cmdline" % pid, "rb") as stream:
        words = stream.read().split(b"\0")
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
                    found[int(name)] = os.path.normpath(os.path.join(folder, os.readlink(folder + b"/" + name)))
    return found


def server_in(data_directory: bytes, servers: t.Sequence[Running]) -> t.Optional[int]:
    """Return a process of the server that runs in ``data_directory``, None when there is none."""
    wanted = identity(data_directory)
    for server in servers:
        if same(server.identity, wanted) if server.identity else server.data_directory == data_directory:
            return server.pid
    return None


def refuse_running(data_directory: bytes) -> None:
    """Raise BackupError, code ``server_running``, while a server runs in ``data_directory``."""
    pid = server_in(data_directory, running_servers())
    if pid is not None:
        raise BackupError(
            f"A PostgreSQL server runs in {os.fsdecode(data_directory)} (process {pid}).",
            code="server_running",
            hint="Stop it first.",
        )
