# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program that keeps running when the module has ended; no shell reads its arguments.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY


def start_detached(words: t.Sequence[str], environment: t.Mapping[str, str], directory: str, log_file: str) -> int:
    """Start a program, leader of a session of its own and no child of this process, and return its process id.

    What it prints is appended to ``log_file``, made with mode 0600. Raises :class:`BackupError`, code ``unwritable``
    for the log and ``programs_missing`` when the program cannot be run.
    """
    try:
        output = os.open(log_file, _APPEND, 0o600)
    except OSError as exc:
        raise BackupError(f"The log {log_file} cannot be written: {exc.strerror}.", code="unwritable") from exc
    reader, writer = os.pipe()
    first = os.fork()
    if first == 0:
        try:
            # The parent of the program ends, so it is never a zombie of this process.
            if os.fork() == 0:
                _become(words, environment, directory, output, writer)
        finally:
            os._exit(0)
    os.close(writer)
    os.close(output)
    os.waitpid(first, 0)
    with os.fdopen(reader, "rb") as pipe:
        pid, _newline, error = pipe.read().partition(b"\n")
    if error or not pid:
        raise BackupError(f"{words[0]} cannot be run: {error.decode('utf-8', 'replace')}.", code="programs_missing")
    return int(pid)


def _become(
    words: t.Sequence[str], environment: t.Mapping[str, str], directory: str, output: int, writer: int
) -> t.NoReturn:
    """Become the program. The pipe ``writer`` closes when it runs, else it gets the error."""
    try:
        os.setsid()
        os.write(writer, b"%d\n" % os.getpid())
        os.chdir(directory)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        close_descriptors(writer)
        # Python ignores these, and what is ignored stays so in the program.
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # The program comes from the caller, and no shell is meant to read its arguments.
        os.execve(words[0], list(words), dict(environment))  # noqa: S606
    except (OSError, ValueError) as exc:
        os.write(writer, os.fsencode(str(exc)))
    finally:
        os._exit(1)


def close_descriptors(keep: int) -> None:
    """Close all descriptors of this process but the standard ones and ``keep``."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            with contextlib.suppress(OSError):
                os.close(int(name))
