# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of the values of a JSON record that are PostgreSQL's names and positions, as those of ``_host/fields.py``.

Private to pgfleet.basebackup. Room ``_wal``: names, records and archives of WAL; it knows no server and no backup.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import fields as _fields
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import (
    is_history_name,
    is_segment_name,
    parse_lsn,
)

_IDENTIFIER = re.compile(r"[0-9]{1,20}\Z")
_OID = re.compile(r"[1-9][0-9]{0,9}\Z")

timeline = _fields.integer(1, 0xFFFFFFFF)


def lsn(value: t.Any) -> int:
    """Check for the text of an LSN, and return it as the number of the byte."""
    try:
        return parse_lsn(_fields.text(17)(value))
    except (_fields.Wrong, ValueError) as exc:
        raise _fields.not_a(value, "an LSN") from exc


def wal_name(value: t.Any) -> str:
    """Check for the name of a WAL segment or of a timeline's history."""
    if not isinstance(value, str) or not (is_segment_name(value) or is_history_name(value)):
        raise _fields.not_a(value, "the name of a WAL segment or a timeline history file")
    return value


def oid(value: t.Any) -> int:
    """Check for the digits of an oid, the name of a tablespace's directory."""
    if not isinstance(value, str) or not _OID.match(value) or int(value) > 0xFFFFFFFF:
        raise _fields.not_a(value, "an oid")
    return int(value)


def system_identifier(value: t.Any) -> str:
    """Check for the digits of a system identifier."""
    if not isinstance(value, str) or not _IDENTIFIER.match(value) or int(value) >= 1 << 64:
        raise _fields.not_a(value, "a system identifier")
    return value
