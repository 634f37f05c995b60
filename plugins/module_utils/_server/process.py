# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running server was started with: directories, configuration, programs, log, account, owner.

It is read from /proc, ``postmaster.pid`` and the configuration files, so no login is needed.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import os
import pwd
import re
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.conf import read_settings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.log import collector_log
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.owner import CONTAINER, Owner, owner_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.running import main_process

# Lines of postmaster.pid (PostgreSQL's pidfile.h).
_PORT_LINE, _SOCKET_LINE = 4, 5
# Short options of the server and what they stand for (PostgreSQL, "postgres").
_SHORT = {"k": "unix_socket_directories", "p": "port"}
_DELETED = " (deleted)"


class ServerProcess(t.NamedTuple):
    """A running server. Paths are absolute; "", () and 0 stand for what is not set or cannot be known.

    ``log_file`` is the file that it writes to now.
    """

    pid: int
    data_directory: str
    config_file: str
    hba_file: str
    ident_file: str
    external_pid_file: str
    bin_directory: str
    socket_directories: tuple[str, ...]
    port: int
    log_file: str
    os_user: str
    owner: Owner


def server_process(data_directory: t.Union[str, bytes]) -> t.Optional[ServerProcess]:
    """Return the server that runs in ``data_directory``, None when none does.

    Raises BackupError, code ``not_the_server_user``, when this user may not examine it.
    """
    found = main_process(data_directory)
    if found is None:
        return None
    pid = found.pid
    try:
        directory = os.readlink(f"/proc/{pid}/cwd")
        words = words_of(pid)
        environment = environment_of(pid)
        owner = owner_of(pid)
        program = os.readlink(f"/proc/{pid}/exe")
        user = os.stat(f"/proc/{pid}").st_uid
        log_file = _log_file(pid, directory)
    except PermissionError as exc:
        raise BackupError(
            f"The server on {os.fsdecode(data_directory)} (process {pid}) cannot be examined: {exc.strerror}.",
            code="not_the_server_user",
            hint="Run this as the operating system user of the server.",
        ) from exc
    except (FileNotFoundError, ProcessLookupError):
        if os.path.exists(f"/proc/{pid}/cwd"):
            raise
        # It has ended meanwhile.
        return None
    given = given_settings(words)
    base = _absolute(given.get("-D") or environment.get("PGDATA", ""), environment, directory) or directory
    config_file = _absolute(given.get("config_file", ""), environment, directory) or os.path.join(
        base, "postgresql.conf"
    )
    settings = {} if owner.kind == CONTAINER else _settings(config_file, directory)
    settings.update(given)

    def path(name: str, default: str) -> str:
        value = settings.get(name, "")
        return _absolute(value, environment, directory) if value else default

    lines = _pid_file(directory)
    sockets = settings.get("unix_socket_directories") or _line(lines, _SOCKET_LINE)
    port = _line(lines, _PORT_LINE)
    return ServerProcess(
        pid=pid,
        data_directory=directory,
        config_file=config_file,
        hba_file=path("hba_file", os.path.join(base, "pg_hba.conf")),
        ident_file=path("ident_file", os.path.join(base, "pg_ident.conf")),
        external_pid_file=path("external_pid_file", ""),
        bin_directory=os.path.dirname(program[: -len(_DELETED)] if program.endswith(_DELETED) else program),
        socket_directories=tuple(filter(None, (one.strip().strip('"') for one in sockets.split(",")))),
        port=int(port) if port.isdigit() else 0,
        log_file=log_file,
        os_user=_name_of(user),
        owner=owner,
    )


def run_by(process: ServerProcess) -> dict[str, t.Any]:
    """Return who runs a server and with what, as the modules return it: ``kind``, ``unit``, ``program``, ``pid`` of the
    owner, ``main_pid``, and the other fields of the process."""
    facts = process._asdict()
    owner = facts.pop("owner")
    facts["main_pid"] = facts.pop("pid")
    facts["socket_directories"] = list(process.socket_directories)
    return {**owner._asdict(), **facts}


def words_of(pid: int) -> list[str]:
    """Return the command line of a process. Raises OSError."""
    with open(f"/proc/{pid}/cmdline", "rb") as stream:
        return [os.fsdecode(word) for word in stream.read().split(b"\0")[:-1]]


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment with which a process was started. Raises OSError."""
    with open(f"/proc/{pid}/environ", "rb") as stream:
        items = [os.fsdecode(item) for item in stream.read().split(b"\0")]
    # A server may overwrite the memory of its environment.
    return dict(item.partition("=")[::2] for item in items if item.find("=") > 0)


def given_settings(words: t.Sequence[str]) -> dict[str, str]:
    """Return the settings on a server's command line, and ``-D`` (PostgreSQL's postmaster.c and guc.c)."""
    found: dict[str, str] = {}
    rest = list(words[1:])
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            name, _equal, value = word[2:].partition("=")
            found[_setting(name)] = value
        elif re.match(r"-[DcpkNBhS]", word):
            # The value may be attached.
            value = word[2:] or (rest.pop(0) if rest else "")
            if word[1] == "c":
                name, _equal, value = value.partition("=")
                found[_setting(name)] = value
            else:
                found["-D" if word[1] == "D" else _SHORT.get(word[1], word[1])] = value
    return found


def _setting(name: str) -> str:
    return name.strip().replace("-", "_").lower()


def _absolute(path: str, environment: t.Mapping[str, str], data_directory: str) -> str:
    """Return a path as the server took it: relative to where it was started, which its environment may say."""
    if not path:
        return ""
    return os.path.normpath(os.path.join(environment.get("PWD") or data_directory, path))


def _settings(config_file: str, data_directory: str) -> dict[str, str]:
    """Return the settings in the configuration files, none when they cannot be read."""
    try:
        return read_settings(config_file, data_directory)
    except BackupError:
        return {}


def _pid_file(data_directory: str) -> list[str]:
    try:
        with open(os.path.join(data_directory, "postmaster.pid"), errors="surrogateescape", encoding="utf-8") as stream:
            return stream.read().splitlines()
    except OSError:
        return []


def _line(lines: t.Sequence[str], number: int) -> str:
    return lines[number - 1].strip() if len(lines) >= number else ""


def _log_file(pid: int, data_directory: str) -> str:
    """Return the file of the logging collector, else that of the server's standard error, "" when it is no file."""
    output = os.readlink(f"/proc/{pid}/fd/2")
    if os.path.isfile(output):
        return output
    return collector_log(data_directory)


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
