# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting, stopping and restarting a server that nobody manages, as ``pg_ctl`` does it.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import os
import signal
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.control import (
    SHUT_DOWN_IN_RECOVERY,
    read_control,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.launch import (
    READY,
    check_started,
    launch,
    naming,
    places_of,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.log import log_since, log_tail, quoted_log
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.process import (
    ServerProcess,
    environment_of,
    given_settings,
    server_process,
    words_of,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.programs import find
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.running import (
    Postmaster,
    find_server,
    main_process,
)

# As long is waited for a server that dies at once; a longer recovery continues without it.
START_SECONDS = 5
SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Restarted(t.NamedTuple):
    """A restarted server, the directory of its programs, and the file that it writes to before its own logging."""

    process: Postmaster
    programs: str
    log_file: str


def control_state(data_directory: str) -> int:
    """Return the state in ``pg_control``. Raises :class:`BackupError` when it cannot be read."""
    return read_control(os.path.join(os.fsencode(data_directory), b"global", b"pg_control")).state


def major_of(data_directory: str) -> int:
    """Return the major version in ``PG_VERSION``. Raises :class:`BackupError` when it is no data directory."""
    try:
        with open(os.path.join(data_directory, "PG_VERSION"), encoding="ascii") as stream:
            return int(stream.read())
    except (OSError, ValueError) as exc:
        raise BackupError(
            f"{data_directory} is not a data directory: PG_VERSION: {exc}", code="no_data_directory"
        ) from exc


def _refuse_root() -> None:
    if os.geteuid() == 0:
        raise BackupError(
            "PostgreSQL does not run as root.", code="root", hint=f"Set {option('become_user')} to the server's user."
        )


def start(
    data_directory: str,
    programs: str,
    config_file: t.Optional[str],
    log_file: str,
    login: t.Mapping[str, t.Any],
) -> t.Optional[Postmaster]:
    """Start the server and return it; None when its recovery has reached a target and shut it down.

    It may still be recovering at the return. What starts is checked, as :func:`.launch.check_started` says. Raises
    :class:`BackupError` with the end of its log when it died.
    """
    _refuse_root()
    if not os.path.exists(os.path.join(data_directory, "global", "pg_control")):
        raise BackupError(
            f"{data_directory} has no global/pg_control: it was not restored to the end.",
            code="not_startable",
            hint="Run pgfleet.basebackup.backup_restore again; it continues where it stopped.",
        )
    words = [os.path.join(programs, "postgres"), "-D", data_directory]
    words += naming(places_of(data_directory, config_file))
    since = time.time()
    launched = launch(words, dict(os.environ), data_directory, log_file, START_SECONDS)
    check_started(launched, data_directory, login)
    process = main_process(data_directory)
    if process is None and not _ended_at_target(data_directory, since):
        log = log_since(data_directory, log_file, since)
        raise BackupError(
            f"The server on {data_directory} does not start: {quoted_log(log)}",
            code="start_failed",
            log=log_tail(log),
        )
    return process


def _ended_at_target(data_directory: str, since: float) -> bool:
    """Return whether a server that was started at the time ``since`` shut down in recovery; a failed start does not."""
    written = os.stat(os.path.join(data_directory, "global", "pg_control")).st_mtime
    return control_state(data_directory) == SHUT_DOWN_IN_RECOVERY and written >= since - 1


def restart(
    data_directory: str,
    programs: t.Optional[str],
    mode: str,
    timeout: float,
    login: t.Mapping[str, t.Any],
) -> Restarted:
    """Restart a running server with its own command line and environment, and wait until it accepts connections.

    It keeps writing to the log file that it has; ``programs`` are by default those that it runs from. Each half may
    take ``timeout`` seconds. Raises :class:`BackupError` when it does not stop, or not start.
    """
    _refuse_root()
    server = examine(data_directory)
    # A log that was removed, or a pipe to a process that has ended, cannot be opened again.
    log_file = _output_of(server.pid) or os.devnull
    program = find("postgres", major_of(data_directory), programs or server.bin_directory)
    old = words_of(server.pid)
    environment = environment_of(server.pid)
    given = given_settings(old)
    # Read before it stops: with a configuration that cannot be read it would not start again.
    places = {**places_of(server.data_directory, server.config_file), "config_file": server.config_file}
    stop(data_directory, mode, timeout)
    since = time.time()
    words = [program, *old[1:], *naming(places, {*given, *(["config_file"] if "-D" in given else [])})]
    launched = launch(words, environment, server.data_directory, log_file, timeout)
    check_started(launched, data_directory, login)
    process = main_process(data_directory)
    log = log_since(data_directory, log_file, since)
    if process is None:
        raise BackupError(
            f"The server on {data_directory} was stopped and does not start: {quoted_log(log)}",
            code="start_failed",
            log=log_tail(log),
        )
    if process.status not in READY:
        raise BackupError(
            f"The server on {data_directory} was restarted and does not accept connections within {timeout:g} s.",
            code="start_timeout",
            hint="It may still be recovering: see its log, or wait longer.",
            log=log_tail(log),
        )
    return Restarted(process, os.path.dirname(program), log_file)


def examine(data_directory: str) -> ServerProcess:
    """Return the running server. Raises :class:`BackupError`, ``server_not_running`` or ``not_the_server_user``."""
    server = server_process(data_directory)
    if server is None:
        raise BackupError(
            f"The server on {data_directory} does not run, so it is not restarted: a cluster manager or an"
            " administrator may have stopped it.",
            code="server_not_running",
            hint="If it is to run, start it: pgfleet.basebackup.server_state with state: started.",
        )
    return server


def _output_of(pid: int) -> str:
    """Return the file that a process has as its standard error, "" when it is none or was removed."""
    output = os.readlink(f"/proc/{pid}/fd/2")
    return output if os.path.isfile(output) else ""


def stop(data_directory: str, mode: str, timeout: float) -> bool:
    """Stop the server of ``data_directory`` and return whether one ran; ``mode`` is that of ``pg_ctl``.

    Raises :class:`BackupError` when it still runs after ``timeout`` seconds.
    """
    process = find_server(data_directory)
    if process is None:
        return False
    try:
        # What is left of a server whose main process was killed ends by itself.
        if process.is_main:
            os.kill(process.pid, SIGNALS[mode])
    except ProcessLookupError:
        return True
    except PermissionError as exc:
        raise BackupError(
            f"The server on {data_directory} (process {process.pid}) belongs to another user.",
            code="not_the_server_user",
            hint="Run this as the operating system user of the server.",
        ) from exc
    deadline = time.monotonic() + timeout
    while process is not None:
        if time.monotonic() > deadline:
            raise BackupError(
                f"The server on {data_directory} (process {process.pid}) has not stopped within {timeout:g} s.",
                code="stop_timeout",
                hint="Its clients may hold it: wait longer, or stop it in the mode fast, then immediate.",
            )
        time.sleep(0.05)
        if not os.path.exists(f"/proc/{process.pid}/cwd"):
            process = None if process.is_main else find_server(data_directory)
    return True
