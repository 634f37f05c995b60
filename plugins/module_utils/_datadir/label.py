# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two texts that ``pg_backup_stop`` returns: ``backup_label`` and ``tablespace_map``.

Both are bytes: a tablespace's path has no encoding. The formats are those that the server writes and reads
(PostgreSQL's xlogbackup.c, ``read_backup_label`` and ``read_tablespace_map`` in xlogrecovery.c). More is refused than
by the server, because a text that was damaged on its way must not become part of a backup.

Private to pgfleet.basebackup. Room ``_datadir``: a data directory and the formats of its files; it knows no server.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import parse_lsn

MAX_LABEL_BYTES = 1024
_LSN = rb"[0-9A-F]{1,8}/[0-9A-F]{1,8}"

_LABEL_LINES = tuple(
    re.compile(line)
    for line in (
        rb"START WAL LOCATION: (?P<start_lsn>" + _LSN + rb") \(file (?P<start_wal_file>[0-9A-F]{24})\)",
        rb"CHECKPOINT LOCATION: (?P<checkpoint_lsn>" + _LSN + rb")",
        rb"BACKUP METHOD: (?P<method>streamed)",
        rb"BACKUP FROM: (?P<backup_from>primary|standby)",
        rb"START TIME: (?P<start_time>[ -~]+)",
        rb"LABEL: (?P<label>[^\r]*)",
        rb"START TIMELINE: (?P<start_timeline>[1-9][0-9]{0,9})",
        rb"INCREMENTAL FROM LSN: (?P<incremental_from_lsn>" + _LSN + rb")",
        rb"INCREMENTAL FROM TLI: (?P<incremental_from_timeline>[1-9][0-9]{0,9})",
    )
)

_FULL_LINES = 7
_MAP_LINE = re.compile(rb"([1-9][0-9]{0,9}) ((?:[^\\\r\n\0]|\\[\\\r\n])+)\n")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class BackupLabel(t.NamedTuple):
    """The contents of a ``backup_label``.

    ``backup_from`` is ``primary`` or ``standby``, ``start_time`` is in the server's ``log_timezone`` as it prints it,
    ``label`` the bytes that were given to ``pg_backup_start``. The last two are None unless it is an incremental
    backup.
    """

    start_lsn: int
    start_wal_file: str
    checkpoint_lsn: int
    method: str
    backup_from: str
    start_time: str
    label: bytes
    start_timeline: int
    incremental_from_lsn: t.Optional[int]
    incremental_from_timeline: t.Optional[int]


def parse_backup_label(data: bytes) -> BackupLabel:
    """Return the contents of ``backup_label``.

    Raises BackupError, code ``bad_label``, naming the first line that the server would not write: a byte-order mark, a
    carriage return, a missing or an additional line, a missing final newline.
    """
    lines = data.split(b"\n")
    if lines.pop() != b"":
        raise _damaged("backup_label", "its last line is not complete")
    if len(lines) not in (_FULL_LINES, len(_LABEL_LINES)):
        raise _damaged("backup_label", f"it has {len(lines)} lines")
    fields: dict[str, bytes] = {}
    for pattern, line in zip(_LABEL_LINES, lines):
        match = pattern.fullmatch(line)
        if match is None:
            raise _damaged("backup_label", f"unexpected line {line.decode('utf-8', 'backslashreplace')!r}")
        fields.update(match.groupdict())
    text = {name: value.decode("ascii") for name, value in fields.items() if name != "label"}
    incremental = "incremental_from_lsn" in text
    label = BackupLabel(
        start_lsn=parse_lsn(text["start_lsn"]),
        start_wal_file=text["start_wal_file"],
        checkpoint_lsn=parse_lsn(text["checkpoint_lsn"]),
        method=text["method"],
        backup_from=text["backup_from"],
        start_time=text["start_time"],
        label=fields["label"],
        start_timeline=int(text["start_timeline"]),
        incremental_from_lsn=parse_lsn(text["incremental_from_lsn"]) if incremental else None,
        incremental_from_timeline=int(text["incremental_from_timeline"]) if incremental else None,
    )
    if int(label.start_wal_file[:8], 16) != label.start_timeline:
        raise _damaged("backup_label", f"{label.start_wal_file} is not a file of timeline {label.start_timeline}")
    if label.checkpoint_lsn < label.start_lsn:
        raise _damaged("backup_label", "its checkpoint lies before its start")
    return label


def parse_tablespace_map(data: bytes) -> dict[int, bytes]:
    """Return the locations in ``tablespace_map`` by oid; empty when there are no tablespaces.

    A backslash escapes a newline, a carriage return or a backslash in a location.
    Raises BackupError, code ``bad_label``, for anything that the server would not write.
    """
    spaces: dict[int, bytes] = {}
    position = 0
    while position < len(data):
        match = _MAP_LINE.match(data, position)
        if match is None or int(match.group(1)) in spaces or int(match.group(1)) > 0xFFFFFFFF:
            line = data[position:].partition(b"\n")[0].decode("utf-8", "backslashreplace")
            raise _damaged("tablespace_map", f"unexpected or incomplete line {line!r}")
        spaces[int(match.group(1))] = re.sub(rb"\\(.)", rb"\1", match.group(2), flags=re.DOTALL)
        position = match.end()
    return spaces


def format_tablespace_map(spaces: t.Mapping[int, bytes]) -> bytes:
    """Return the ``tablespace_map`` that lists these locations, as the server would write it."""
    return b"".join(b"%d %s\n" % (oid, re.sub(rb"([\\\r\n])", rb"\\\1", location)) for oid, location in spaces.items())


def check_label_text(label: str) -> None:
    """Refuse a label that the server would refuse, or that would add lines to ``backup_label``.

    Raises BackupError, code ``bad_label_text``, for control characters, for text that cannot be UTF-8, and for more
    than 1024 bytes (the server's MAXPGPATH) of UTF-8.
    """
    if _CONTROL_CHARACTER.search(label):
        raise BackupError(f"The label {label!r} contains control characters.", code="bad_label_text")
    try:
        length = len(label.encode("utf-8"))
    except UnicodeEncodeError as exc:
        raise BackupError(f"The label {label!r} is not valid Unicode.", code="bad_label_text") from exc
    if length > MAX_LABEL_BYTES:
        raise BackupError(f"The label has {length} bytes; PostgreSQL takes {MAX_LABEL_BYTES}.", code="bad_label_text")


def _damaged(file: str, why: str) -> BackupError:
    return BackupError(f"{file} is damaged: {why}", code="bad_label")
