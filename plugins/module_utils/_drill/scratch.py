# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The scratch directory of a restore drill: made, sealed against the source's tablespaces, and removed.

Private to pgfleet.basebackup. Room ``_drill``: the scratch directory of a drill; it knows nothing of ``_backup``.

::

    <directory>/<cluster>.drill/pgfleet_drill.json    which drill made it, and where its socket is
                               /run/                  configuration and log
                               /data/ /tablespaces/   the restored cluster

A directory without the marker is never removed. The marker is the first file created and the last one removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import stat
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import fields as _fields
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import is_temporary, write_json
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.locks import is_locked
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trees import remove
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trust import refuse_unsafe
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import check_name
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import pg_ctl as _pg_ctl

MARKER = "pgfleet_drill.json"
SOCKET_PREFIX = "pgdrill."
STOP_SECONDS = 120
END_SECONDS = 30

# A socket's path has at most 107 bytes, the server's part of it is .s.PGSQL.5432.
LONGEST_SOCKET_DIRECTORY = 107 - len("/.s.PGSQL.65535")

_LARGEST = 1 << 16  # bytes of a marker

CONFIGURATION = {
    # They replace the source's, which may include others or name directories of the live server.
    "postgresql.conf": "# The settings of a restore drill are in postgresql.auto.conf.\n",
    # Only this user and root can enter the socket's directory.
    "pg_hba.conf": "local all all trust\n",
    "pg_ident.conf": "",
}


class Marker(t.NamedTuple):
    """What a drill writes about itself; all empty in a directory that it had only begun to make or to remove."""

    run: str = ""
    by: str = ""
    socket_directory: str = ""


class Scratch:
    """The scratch directory of a cluster's drills below ``directory``.

    Raises :class:`BackupError`, code ``bad_path``, ``bad_name`` or ``unsafe_directory``, for a directory or a name that
    cannot be used.
    """

    def __init__(self, directory: str, cluster: str) -> None:
        check_name(cluster, "The cluster name")
        if not os.path.isabs(directory) or not os.path.isdir(directory):
            raise BackupError(
                f"The directory for drills, {directory}, is not an absolute path of an existing directory.",
                code="bad_path",
                hint="Make it for the user that runs the drill: install -d -m 0700 -o postgres"
                f" {shlex.quote(directory)}",
            )
        # Who can exchange it there could make a drill stop or remove another server.
        refuse_unsafe(directory, "The directory for drills")
        self.path = os.path.join(os.path.realpath(directory), f"{cluster}.drill")

    def file(self, *parts: str) -> str:
        """Return a path in the scratch directory."""
        return os.path.join(self.path, *parts)

    @property
    def data(self) -> str:
        """The data directory."""
        return self.file("data")

    def places(self) -> dict[str, str]:
        """Return the paths that the tasks of a drill use, by option name."""
        return {
            "directory": self.path,
            "data_directory": self.data,
            "tablespace_directory": self.file("tablespaces"),
            "config_file": self.file("run", "postgresql.conf"),
            "hba_file": self.file("run", "pg_hba.conf"),
            "ident_file": self.file("run", "pg_ident.conf"),
            "log_file": self.file("run", "log"),
        }

    def marker(self) -> t.Optional[Marker]:
        """Return the contents of the marker, an empty one for an empty directory, None without a directory.

        Raises :class:`BackupError`, code ``not_a_drill``, for a directory that no drill has made.
        """
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return None
        with contextlib.suppress(OSError, _fields.Wrong):
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                names = os.listdir(self.path)
                # A drill that died while making or removing the directory leaves no more than this.
                if all(map(is_temporary, names)):
                    return Marker()
                if not any(os.path.islink(self.file(name)) for name in names):
                    content = _fields.read_object(self.file(MARKER), _LARGEST, {os.geteuid()})
                    texts = {name: _fields.field(content, name, _fields.text()) for name in Marker._fields}
                    return Marker(**texts)
        raise BackupError(
            f"{self.path} is not the scratch directory of a drill by this user: it has no readable {MARKER}.",
            code="not_a_drill",
            hint=f"Remove it yourself, or set another {option('directory')}.",
        )

    def make(self, run: str, by: str, socket_parent: str) -> str:
        """Make it for the drill ``run``, replacing an earlier one, and return the socket's directory."""
        if len(os.fsencode(socket_parent)) + len(SOCKET_PREFIX) + 9 > LONGEST_SOCKET_DIRECTORY:
            raise BackupError(
                f"{socket_parent} is too long for the path of a socket.",
                code="bad_path",
                hint=f"Set {option('socket_parent')} to a shorter path, such as /tmp.",
            )
        self.remove(None)
        os.mkdir(self.path, 0o700)
        socket = os.path.join(socket_parent, SOCKET_PREFIX + secrets.token_hex(4))
        # Its name is recorded before it is made, so that it can be removed after a crash.
        write_json(self.file(MARKER), {"run": run, "by": by, "socket_directory": socket})
        os.mkdir(socket, 0o700)
        os.mkdir(self.file("run"), 0o700)
        for name, content in CONFIGURATION.items():
            with open(self.file("run", name), "w", encoding="ascii") as stream:
                stream.write(content)
        return socket

    def seal(self) -> bool:
        """Keep the restored server from making links to tablespaces; return whether that changed anything.

        Replaying CREATE TABLESPACE makes a link to the original location, which on the source's host is the live
        directory. The links of the backup's own tablespaces exist; without the map the server does not remake them.
        """
        links, changed = self.file("data", "pg_tblspc"), False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.file("data", "tablespace_map"))
            changed = True
        changed = changed or stat.S_IMODE(os.stat(links).st_mode) != 0o500
        os.chmod(links, 0o500)
        return changed

    def remove(self, run: t.Optional[str], check_mode: bool = False) -> bool:
        """Stop the server and remove the directory of the drill ``run`` (None: any); return whether there was one."""
        marker = self.marker()
        if marker is None or (run is not None and marker.run != run):
            return False
        if check_mode:
            return True
        self._end_restore()
        _pg_ctl.stop(self.data, "immediate", STOP_SECONDS)
        with contextlib.suppress(FileNotFoundError):
            os.chmod(self.file("data", "pg_tblspc"), 0o700)
        for name in sorted(os.listdir(self.path), key=lambda one: one == MARKER):
            if name == MARKER:
                _remove_socket(marker.socket_directory)
            remove(self.file(name))
        os.rmdir(self.path)
        return True

    def _end_restore(self) -> None:
        """End the detached process of a restore into it, which outlives the run that started it."""
        lock = self.file("data", "pgfleet_restore", "lock")
        deadline = time.monotonic() + END_SECONDS
        while is_locked(lock):
            for pid in _holders(lock):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise BackupError(
                    f"The process restoring into {self.data} cannot be ended.",
                    code="busy",
                    hint=f"Find out which process holds it: fuser -v {shlex.quote(lock)}",
                )
            time.sleep(0.05)


def _holders(path: str) -> list[int]:
    """Return the processes of this user that have a file open."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            handles = f"/proc/{name}/fd"
            if int(name) != os.getpid() and any(
                os.readlink(os.path.join(handles, one)) == path for one in os.listdir(handles)
            ):
                found.append(int(name))
    return found


def _remove_socket(directory: str) -> None:
    """Remove the directory of a socket, unless it is another user's or not a directory."""
    if not os.path.basename(directory).startswith(SOCKET_PREFIX):
        return
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(directory)
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
            remove(directory)
