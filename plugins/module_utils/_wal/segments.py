# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arithmetic of the write-ahead log: positions, segments, timelines.

An LSN is an int, a byte position in the log. A segment is an int too: the LSN divided by ``size``, the segment size in
bytes (``pg_control_init().bytes_per_wal_segment``). ``pg_walfile_name`` is not used: it fails in recovery, and its rule
for a position on a boundary changed in version 17 (documentation, section "Backup Control Functions").

Private to pgfleet.basebackup. Room ``_wal``: names, records and archives of WAL; it knows no server and no backup.
"""

from __future__ import annotations

import re
import struct
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

_LSN = re.compile(r"([0-9A-Fa-f]+)/([0-9A-Fa-f]+)")
_SEGMENT_NAME = re.compile(r"[0-9A-F]{24}")
_HISTORY_NAME = re.compile(r"[0-9A-F]{8}\.history")

# XLogLongPageHeaderData: magic, flags, timeline, page address, remaining length, system identifier, segment size,
# WAL block size.
_LONG_HEADER = struct.Struct("<HHIQI4xQII")
_LONG_HEADER_FLAG = 0x0002

# XLOG_PAGE_MAGIC changes with the major version; this is the high byte, the same in 14 to 18.
_MAGIC_HIGH_BYTE = 0xD1


class SegmentHeader(t.NamedTuple):
    """The header on the first page of a WAL segment; ``address`` is the LSN of the segment's first byte."""

    timeline: int
    address: int
    system_identifier: int
    segment_size: int
    block_size: int


def parse_lsn(text: str) -> int:
    """Return the LSN that ``text``, like ``2/30000A8`` or ``2/030000A8``, stands for.

    Raises ValueError for anything else.
    """
    match = _LSN.fullmatch(text)
    high, low = (int(half, 16) for half in match.groups()) if match else (-1, -1)
    if not (0 <= high <= 0xFFFFFFFF and 0 <= low <= 0xFFFFFFFF):
        raise ValueError(f"not an LSN: {text!r}")
    return high << 32 | low


def format_lsn(lsn: int) -> str:
    """Return an LSN as servers up to version 18 print it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def segment_of(lsn: int, size: int) -> int:
    """Return the segment in which WAL that starts at ``lsn`` begins."""
    return lsn // size


def last_segment_of(lsn: int, size: int) -> int:
    """Return the last segment needed to reach ``lsn``; on a boundary that is the one before."""
    return (lsn - 1) // size


def segment_name(timeline: int, segment: int, size: int) -> str:
    """Return the file name of a segment."""
    per_log = 0x100000000 // size
    return f"{timeline:08X}{segment // per_log:08X}{segment % per_log:08X}"


def parse_segment_name(name: str, size: int) -> tuple[int, int]:
    """Return ``(timeline, segment)`` of a segment's file name.

    Raises ValueError for other names, and for a name that cannot exist with segments of this size.
    """
    per_log = 0x100000000 // size
    if not is_segment_name(name) or int(name[16:], 16) >= per_log or int(name[:8], 16) == 0:
        raise ValueError(f"not the name of a WAL segment of {size} bytes: {name!r}")
    return int(name[:8], 16), int(name[8:16], 16) * per_log + int(name[16:], 16)


def is_segment_name(name: str) -> bool:
    """Return whether ``name`` is the file name of a complete WAL segment."""
    return _SEGMENT_NAME.fullmatch(name) is not None


def history_name(timeline: int) -> str:
    """Return the file name of a timeline's history."""
    return f"{timeline:08X}.history"


def is_history_name(name: str) -> bool:
    """Return whether ``name`` is the file name of a timeline's history."""
    return _HISTORY_NAME.fullmatch(name) is not None


def parse_segment_header(first_bytes: bytes) -> SegmentHeader:
    """Return the header of a WAL segment from its first 40 bytes or more.

    Raises BackupError, code ``bad_segment``, when they are not such a header.
    """
    if len(first_bytes) < _LONG_HEADER.size:
        raise BackupError(
            f"The file has only {len(first_bytes)} bytes, a header needs {_LONG_HEADER.size}.", code="bad_segment"
        )
    magic, flags, timeline, address, _remaining, system_identifier, segment_size, block_size = _LONG_HEADER.unpack_from(
        first_bytes
    )
    if magic >> 8 != _MAGIC_HIGH_BYTE or not flags & _LONG_HEADER_FLAG:
        raise BackupError(
            "The file does not begin with the header of a WAL segment (is it compressed?).", code="bad_segment"
        )
    return SegmentHeader(timeline, address, system_identifier, segment_size, block_size)


def check_segment(first_bytes: bytes, name: str, size: int, system_identifier: int) -> None:
    """Check that a file with these first bytes is the WAL segment ``name`` of this cluster.

    Raises BackupError, code ``bad_segment``, saying which field is wrong. The header may name an older timeline than
    the file: a new timeline's first segment begins as a copy of its parent's.
    """
    try:
        timeline, segment = parse_segment_name(name, size)
        header = parse_segment_header(first_bytes)
    except (ValueError, BackupError) as exc:
        raise BackupError(f"WAL segment {name}: {exc}", code="bad_segment") from exc
    problem = ""
    if header.system_identifier != system_identifier:
        problem = f"system identifier {header.system_identifier} instead of {system_identifier}: another cluster's WAL"
    elif header.segment_size != size:
        problem = f"segment size {header.segment_size} instead of {size} bytes"
    elif header.address != segment * size:
        problem = f"page address {format_lsn(header.address)} instead of {format_lsn(segment * size)}"
    elif not 0 < header.timeline <= timeline:
        problem = f"timeline {header.timeline} in the file of timeline {timeline}"
    if problem:
        raise BackupError(f"WAL segment {name} has {problem}.", code="bad_segment")


def is_segment(name: str, size: int) -> bool:
    """Return whether ``name`` is the file name of a segment of ``size`` bytes."""
    try:
        parse_segment_name(name, size)
    except ValueError:
        return False
    return True


def segment_numbers(names: t.Iterable[str], size: int) -> dict[int, set[int]]:
    """Return the numbers of the segments among ``names`` by their timelines."""
    numbers: dict[int, set[int]] = {}
    for name in names:
        if is_segment_name(name):
            timeline, number = parse_segment_name(name, size)
            numbers.setdefault(timeline, set()).add(number)
    return numbers
