# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of a session, as its process records and answers it: parsed once into checked values.

Private to pgfleet.basebackup. Room ``_session``: the session process, starting and asking it; it knows no repository.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import fields as _fields

STATES = ("connecting", "starting", "running", "stopping", "stopped", "failed")
LARGEST = 64 << 20  # bytes; a tablespace takes up to nine kilobytes
_LSN = re.compile(r"[0-9A-F]{1,8}/[0-9A-F]{1,8}\Z")
_CODE = re.compile(r"[a-z0-9_]{1,100}\Z")
_SQLSTATE = re.compile(r"[0-9A-Z]{5}\Z")
_SLOT = re.compile(r"[a-z0-9_]{1,63}\Z")
_LONGEST_PID = 1 << 31


class Tablespace(t.TypedDict):
    """A tablespace of the server; ``name`` and ``location`` are bytes in hexadecimal digits."""

    oid: int
    name: str
    location: str


class State(t.TypedDict, total=False):
    """What a session has recorded so far; an absent value is not known yet, or has no meaning in this state."""

    state: str  # one of STATES
    pid: int
    created_at: float  # seconds since the epoch, as the other times
    backend_pid: int
    slot: t.Optional[str]
    tablespaces: t.List[Tablespace]  # before the start
    start_lsn: str
    start_timeline: int
    from_standby: bool
    started_at: float
    stop_lsn: str
    label_file: str  # bytes in hexadecimal digits
    map_file: str
    stopped_at: float
    min_recovery_end_timeline: int
    tablespaces_after: t.List[Tablespace]
    error: str
    code: str
    sqlstate: t.Optional[str]
    failed_in: t.Optional[str]
    seconds_left: float  # until the deadline
    idle_seconds: float


def parse_state(content: t.Any) -> State:
    """Return the checked state. Raises :class:`_fields.Wrong`, which names the field."""
    span = _fields.number(-_fields.MOST_SECONDS, _fields.MOST_SECONDS)
    lsn, timeline = _fields.matching(_LSN, "an LSN"), _fields.integer(0, 0xFFFFFFFF)
    found = _fields.known(
        content,
        pid=_fields.integer(1, _LONGEST_PID),
        created_at=_fields.timestamp,
        backend_pid=_fields.integer(1, _LONGEST_PID),
        slot=_fields.matching(_SLOT, "a replication slot"),
        tablespaces=_tablespaces,
        start_lsn=lsn,
        start_timeline=timeline,
        from_standby=_fields.boolean,
        started_at=_fields.timestamp,
        stop_lsn=lsn,
        label_file=_fields.hexadecimal,
        map_file=_fields.hexadecimal,
        stopped_at=_fields.timestamp,
        min_recovery_end_timeline=timeline,
        tablespaces_after=_tablespaces,
        error=_fields.text(),
        code=_fields.matching(_CODE, "a code"),
        sqlstate=_fields.matching(_SQLSTATE, "an SQLSTATE"),
        failed_in=_fields.one_of(*STATES),
        seconds_left=span,
        idle_seconds=span,
    )
    found["state"] = _fields.field(content, "state", _fields.one_of(*STATES))
    return t.cast(State, found)


def _tablespaces(value: t.Any) -> t.List[Tablespace]:
    return list(_fields.list_of(_tablespace)(value))


def _tablespace(content: t.Any) -> Tablespace:
    return Tablespace(
        oid=_fields.field(content, "oid", _fields.integer(1, 0xFFFFFFFF)),
        name=_fields.field(content, "name", _fields.hexadecimal),
        location=_fields.field(content, "location", _fields.hexadecimal),
    )
