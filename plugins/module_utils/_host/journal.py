# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file to which lines are added during work.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import unwritable


def open_journal(journal: bytes) -> t.BinaryIO:
    """Open a journal to append to, made with mode 0600; the caller closes it. Raises BackupError as unwritable, also
    for a link."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return t.cast(t.BinaryIO, os.fdopen(os.open(journal, flags, 0o600), "ab", buffering=0))
    except OSError as exc:
        raise unwritable(journal, exc) from exc


def append(log: t.BinaryIO, lines: bytes, journal: bytes) -> None:
    """Write ``lines`` to ``log``, the open journal. Raises BackupError as unwritable."""
    try:
        while lines:
            lines = lines[log.write(lines) :]
    except OSError as exc:
        raise unwritable(journal, exc) from exc
