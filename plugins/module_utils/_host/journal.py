# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file to which lines are added during work.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import unwritable


def open_journal(journal: bytes) -> t.BinaryIO:
    """Open a journal to append to; the caller closes it. Raises BackupError as unwritable."""
    try:
        return t.cast(t.BinaryIO, open(journal, "ab", buffering=0))
    except OSError as exc:
        raise unwritable(journal, exc) from exc


def append(log: t.BinaryIO, lines: bytes, journal: bytes) -> None:
    """Write ``lines`` to ``log``, the open journal. Raises BackupError as unwritable."""
    try:
        while lines:
            lines = lines[log.write(lines) :]
    except OSError as exc:
        raise unwritable(journal, exc) from exc
