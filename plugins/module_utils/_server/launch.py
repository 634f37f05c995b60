# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting a server on one directory and no other, and checking what started.

``data_directory`` in a configuration file beats ``-D``, so a start names every place (PostgreSQL, "File Locations"). No
shell reads any of it: the server is started as ``pg_ctl`` does it, without the shell in between.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.conf import read_settings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.control import read_control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import identity, same
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.program import start_detached
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import Connection
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.owner import parent_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.running import Postmaster, main_process

READY = ("ready", "standby")
_PLACES = ("data_directory", "config_file", "hba_file", "ident_file", "external_pid_file")
_STOP_SECONDS = 30.0


class Launched(t.NamedTuple):
    """A process that was started; ``process`` is None when it has ended already."""

    pid: int
    process: t.Optional[Postmaster]


def places_of(data_directory: str, config_file: t.Optional[str]) -> dict[str, str]:
    """Return the places that a server on ``data_directory`` uses, by their settings, all absolute.

    A process id file is there only if the configuration names one. One that it names for another data directory belongs
    to the server there: then it is empty. Raises :class:`BackupError` as ``read_settings`` does.
    """
    config = config_file or os.path.join(data_directory, "postgresql.conf")
    settings = read_settings(config, data_directory)
    home = settings.get("data_directory", "")
    mine = not home or same(identity(os.path.join(data_directory, home)), identity(data_directory))

    def place(name: str, default: str) -> str:
        # Relative ones are relative to where the server is started, which is the data directory.
        return os.path.join(data_directory, settings.get(name) or default)

    external = settings.get("external_pid_file", "")
    places = {
        "data_directory": data_directory,
        "config_file": config,
        "hba_file": place("hba_file", "pg_hba.conf"),
        "ident_file": place("ident_file", "pg_ident.conf"),
    }
    if external:
        places["external_pid_file"] = os.path.join(data_directory, external) if mine else ""
    return places


def naming(places: t.Mapping[str, str], given: t.Container[str] = ()) -> list[str]:
    """Return the words that name the ``places``, but for the settings in ``given``."""
    words = []
    for name in _PLACES:
        if name in places and name not in given:
            words += ["-c", f"{name}={places[name]}"]
    return words


def launch(
    words: t.Sequence[str],
    environment: t.Mapping[str, str],
    data_directory: str,
    log_file: str,
    seconds: float,
) -> Launched:
    """Start a server and wait until it accepts connections or has ended, at most ``seconds``; it may still recover."""
    pid = start_detached(words, environment, data_directory, log_file)
    deadline = time.monotonic() + seconds
    while os.path.exists(f"/proc/{pid}/cwd"):
        process = main_process(data_directory)
        ready = process is not None and process.pid == pid and process.status in READY
        if ready or time.monotonic() > deadline:
            return Launched(pid, process if process is not None and process.pid == pid else None)
        time.sleep(0.05)
    return Launched(pid, None)


def check_started(launched: Launched, data_directory: str, login: t.Mapping[str, t.Any]) -> None:
    """Check that what was started is the server of ``data_directory``; stop it when it is not.

    Its working directory must be that directory. Where ``login`` can connect, the server's own answers must agree.
    Raises :class:`BackupError`, code ``other_directory``.
    """
    wrong = _difference(launched, data_directory, login)
    if wrong:
        stop_process(launched.pid)
        raise BackupError(
            f"What was started is not the server of {data_directory}: {wrong}. It was stopped again.",
            code="other_directory",
            hint=f"Check data_directory and the includes in {option('config_file')}.",
        )


def _difference(launched: Launched, data_directory: str, login: t.Mapping[str, t.Any]) -> str:
    try:
        place = os.readlink(f"/proc/{launched.pid}/cwd")
    except OSError:
        return ""
    if not same(identity(f"/proc/{launched.pid}/cwd"), identity(data_directory)):
        return f"process {launched.pid} runs in {place}"
    answer = _asked(data_directory, launched, login)
    if answer is None:
        return ""
    directory, identifier = answer
    if not same(identity(directory), identity(data_directory)):
        return f"SHOW data_directory is {directory}"
    control = read_control(os.path.join(os.fsencode(data_directory), b"global", b"pg_control"))
    if int(identifier) != control.system_identifier:
        return f"its system identifier is {identifier}, that of the directory {control.system_identifier}"
    return ""


def _asked(data_directory: str, launched: Launched, login: t.Mapping[str, t.Any]) -> t.Optional[tuple[str, str]]:
    """Return data directory and system identifier in the server's own words, None when it cannot be asked."""
    if launched.process is None or launched.process.status not in READY:
        return None
    try:
        with open(os.path.join(data_directory, "postmaster.pid"), encoding="utf-8", errors="surrogateescape") as stream:
            lines = stream.read().splitlines()
        own = dict(login, login_host=None, login_unix_socket=lines[4], login_port=int(lines[3]))
        with Connection(own) as connection:
            row = connection.row(
                "SELECT pg_catalog.current_setting('data_directory') AS place, system_identifier::pg_catalog.text"
                " FROM pg_catalog.pg_control_system()"
            )
            # Another server may have taken over the socket.
            if parent_of(connection.claimed_pid) != launched.pid:
                return None
    except (BackupError, OSError, ValueError, IndexError):
        return None
    return row["place"], row["system_identifier"]


def stop_process(pid: int) -> None:
    """Stop a server that was just started: first fast, then immediately."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + _STOP_SECONDS
        while os.path.exists(f"/proc/{pid}/cwd"):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return
