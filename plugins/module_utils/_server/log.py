# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of a server's log.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import os
import re
import typing as t


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


def collector_log(data_directory: str) -> str:
    """Return the file that the logging collector of a server writes to now or wrote to last, "" without one."""
    try:
        with open(os.path.join(data_directory, "current_logfiles"), encoding="utf-8", errors="surrogateescape") as file:
            names = dict(line.rstrip("\n").partition(" ")[::2] for line in file)
    except OSError:
        return ""
    name = names.get("stderr") or names.get("csvlog") or names.get("jsonlog") or ""
    return os.path.join(data_directory, name) if name else ""


def log_since(data_directory: str, log_file: str, since: float) -> str:
    """Return the file with the messages of a start at the time ``since``: the collector's if it has begun to write."""
    collected = collector_log(data_directory)
    try:
        return collected if os.stat(collected).st_mtime >= since else log_file
    except OSError:
        return log_file
