# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting, stopping and restarting the server of a data directory on this host.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import subprocess
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.control import (
    SHUT_DOWN_IN_RECOVERY,
    read_control,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.programs import find
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.running import (
    Postmaster,
    find_server,
    main_process,
)

# pg_ctl waits this long for a server that dies at once; a longer recovery continues without it.
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


def log_tail(log_file: t.Optional[str], lines: int = 20) -> list[str]:
    """Return the last lines of the server's log, none when it cannot be read."""
    try:
        with open(log_file or "", "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 65536))
            return stream.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []


def quoted_log(log_file: t.Optional[str]) -> str:
    """Return what the log says about a server that died, as the end of a sentence."""
    tail = log_tail(log_file)
    if not tail:
        return f"its log {log_file} has no message." if log_file else "see its log."
    # The lines before the fatal one often have the reason. Where messages are translated the last ones have to do.
    fatal = [number for number, line in enumerate(tail) if re.search(r"\b(FATAL|PANIC):", line)]
    quoted = tail[max(0, fatal[-1] - 2) : fatal[-1] + 1] if fatal else tail[-5:]
    return f"the log {log_file} says: {' | '.join(quoted)}"


def _refuse_root() -> None:
    if os.geteuid() == 0:
        raise BackupError(
            "PostgreSQL does not run as root.", code="root", hint=f"Set {option('become_user')} to the server's user."
        )


def start(data_directory: str, programs: str, config_file: t.Optional[str], log_file: str) -> t.Optional[Postmaster]:
    """Start the server by ``pg_ctl`` and return it; None when its recovery has reached a target and shut it down.

    It may still be recovering at the return. Raises :class:`BackupError` with the end of its log when it died.
    """
    _refuse_root()
    if not os.path.exists(os.path.join(data_directory, "global", "pg_control")):
        raise BackupError(
            f"{data_directory} has no global/pg_control: it was not restored to the end.",
            code="not_startable",
            hint="Run pgfleet.basebackup.backup_restore again; it continues where it stopped.",
        )
    command = [os.path.join(programs, "pg_ctl"), "-D", data_directory, "-l", log_file, "-s", "-w"]
    command += ["-t", str(START_SECONDS)]
    if config_file:
        # pg_ctl gives this text to a shell.
        command += ["-o", f"-c config_file={shlex.quote(config_file)}"]
    # pylint: disable=ansible-bad-function  # module_utils have no AnsibleModule, whose run_command this would be
    done = subprocess.run(
        [*command, "start"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    process = main_process(data_directory)
    if process is None and control_state(data_directory) != SHUT_DOWN_IN_RECOVERY:
        said = " ".join(done.stdout.decode("utf-8", "replace").split())
        raise BackupError(
            f"The server on {data_directory} does not start: {said} - {quoted_log(log_file)}",
            code="start_failed",
            log=log_tail(log_file),
        )
    return process


def restart(data_directory: str, server: Postmaster, programs: t.Optional[str], mode: str, timeout: float) -> Restarted:
    """Restart a running server by ``pg_ctl`` with its own command line, and wait until it accepts connections.

    It keeps writing to the log file that it has; ``programs`` are by default those that it runs from. Each half may
    take ``timeout`` seconds. Raises :class:`BackupError` when it does not stop, or not start.
    """
    _refuse_root()
    try:
        output = os.readlink(f"/proc/{server.pid}/fd/2")
    except OSError as exc:
        raise BackupError(
            f"The server on {data_directory} (process {server.pid}) cannot be examined: {exc.strerror}.",
            code="not_the_server_user",
            hint="Run this as the operating system user of the server.",
        ) from exc
    # With a pipe or a log that was removed pg_ctl would leave the server this module's own output, and wait for it.
    log_file = output if os.path.isfile(output) else os.devnull
    pg_ctl = find("pg_ctl", major_of(data_directory), programs, server.pid)
    command = [pg_ctl, "restart", "-D", data_directory, "-l", log_file, "-s", "-w"]
    # pylint: disable=ansible-bad-function  # module_utils have no AnsibleModule, whose run_command this would be
    done = subprocess.run(
        [*command, "-m", mode, "-t", str(math.ceil(timeout))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    process = main_process(data_directory)
    said = " ".join(done.stdout.decode("utf-8", "replace").split())
    if process and process.pid == server.pid:
        raise BackupError(
            f"The server on {data_directory} (process {server.pid}) was not restarted: {said}",
            code="stop_timeout",
            hint="Its clients may hold it: wait longer, or stop it in the mode fast, then immediate.",
        )
    if process is None:
        raise BackupError(
            f"The server on {data_directory} was stopped and does not start: {said} - {quoted_log(log_file)}",
            code="start_failed",
            log=log_tail(log_file),
        )
    if done.returncode != 0:
        raise BackupError(
            f"The server on {data_directory} was restarted and does not accept connections yet: {said}",
            code="start_timeout",
            hint="It may still be recovering: see its log, or wait longer.",
            log=log_tail(log_file),
        )
    return Restarted(process, os.path.dirname(pg_ctl), log_file)


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
