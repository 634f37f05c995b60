# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The records in WAL segments: where recovery can stop, and how far the WAL goes.

Recovery stops at the end of a transaction, at a restore point or at an LSN (documentation, section "Recovery Target").
Commits, aborts and restore points are therefore reported with their times; other records are only noted as present.
Formats: xlog_internal.h (pages), xlogrecord.h (records), xact.h (``ParseCommitRecord`` of xactdesc.c) of PostgreSQL
14 to 18, 64-bit little-endian. The CRC of records is not computed. The other checks of recovery are made: page
addresses, lengths and the link to the previous record. A torn record is therefore noticed at the first one after it.

Private to pgfleet.basebackup. Room ``_wal``: names, records and archives of WAL; it knows no server and no backup.
"""

from __future__ import annotations

import struct
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import parse_segment_header

COMMIT, ABORT, RESTORE_POINT = "commit", "abort", "restore_point"

# XLogPageHeaderData: magic, flags, timeline, page address, bytes that a record from an earlier page still has.
_PAGE = struct.Struct("<HHIQI")
_SHORT_HEADER, _LONG_HEADER = 24, 40
_CONTINUES, _IS_LONG, _OVERWRITES = 0x0001, 0x0002, 0x0008

# XLOG_PAGE_MAGIC: the high byte, the same in 14 to 18.
_MAGIC_HIGH_BYTE = 0xD1

# XLOG_PAGE_MAGIC of version 18, whose dropped statistics have 16 bytes instead of 12.
_MAGIC_18 = 0xD118

# XLogRecord: length, transaction, previous record, info, resource manager.
_RECORD = struct.Struct("<IIQBB")
_RECORD_HEADER = 24
_INT32 = struct.Struct("<I")
_INT64 = struct.Struct("<q")
_XLOG, _XACT = 0, 1
_XLOG_SWITCH, _XLOG_RESTORE_POINT = 0x40, 0x70

# Operations of a transaction record, with "prepared" or not.
_XACT_ENDS = {0x00: (COMMIT, False), 0x20: (ABORT, False), 0x30: (COMMIT, True), 0x40: (ABORT, True)}
_HAS_DATABASE = 0x0001

# Length of the origin and of the top transaction, with their marker.
_SMALL_PARTS = {253: 3, 252: 5}

# PostgreSQL counts microseconds from 2000.
_EPOCH_US = 946684800 * 1000000


class Event(t.NamedTuple):
    """A record at which recovery can stop.

    ``lsn`` is its first byte and ``end`` the byte after its last one; ``kind`` is ``commit``, ``abort`` or
    ``restore_point``; ``xid`` is the transaction, for ``COMMIT PREPARED`` the prepared one, for a restore point 0;
    ``time_us`` is in microseconds since 1970 in UTC; ``name`` is the restore point's.
    """

    lsn: int
    end: int
    kind: str
    xid: int
    time_us: int
    name: bytes


class SegmentScan(t.NamedTuple):
    """What one segment adds. A record that crosses into a segment counts there, where it is complete.

    ``last_lsn`` and ``last_end`` are start and end of the last complete record, None when no record is completed here.
    ``stops_at`` is the LSN from which nothing can be read (zeros, or damage), None when the WAL continues in the next
    segment.
    """

    segment: int
    events: list[Event]
    last_lsn: t.Optional[int]
    last_end: t.Optional[int]
    stops_at: t.Optional[int]


def scan_segments(segments: t.Iterable[tuple[int, bytes]], size: int) -> t.Iterator[SegmentScan]:
    """Yield what each of consecutive whole segments (number, content) of ``size`` bytes holds, in their order.

    The last one is the segment in which the WAL ends. A record that began before the first segment is not reported.
    Raises :class:`BackupError`, code ``bad_segment``, when a segment does not begin with a header.
    """
    scanner = _Scanner(size)
    for segment, content in segments:
        scan = scanner.scan(segment, content)
        yield scan
        if scan.stops_at is not None:
            return


class _Run(t.NamedTuple):
    """The payload of pages that follow each other, the first of them at ``address``."""

    address: int
    header: int
    block: int
    flags: int
    remaining: int
    payload: bytes

    def lsn(self, at: int) -> int:
        """Return the LSN of the payload's byte ``at``."""
        pages = (at + self.header - _SHORT_HEADER) // (self.block - _SHORT_HEADER)
        return self.address + self.header + pages * _SHORT_HEADER + at

    def end(self, at: int) -> int:
        """Return the LSN after the byte before ``at``; at the end of a page it lies before the next page's header."""
        return self.lsn(at - 1) + 1 if at else self.address


def _runs(content: bytes, address: int, block: int) -> t.Iterator[_Run]:
    """Yield the pages of a segment up to its end: one run, or several where a crash left a record unfinished.

    Pages that were never written are zeros, or have the address of the segment whose file was recycled.
    """
    view = memoryview(content)
    first: tuple[int, int, int, int] = (0, 0, 0, 0)
    pieces: list[memoryview] = []
    for offset in range(0, len(content) - block + 1, block):
        magic, flags, _timeline, page_address, remaining = _PAGE.unpack_from(content, offset)
        if magic >> 8 != _MAGIC_HIGH_BYTE or page_address != address + offset:
            break
        header = _LONG_HEADER if flags & _IS_LONG else _SHORT_HEADER
        if pieces and flags & _OVERWRITES:
            yield _Run(first[0], first[1], block, first[2], first[3], b"".join(pieces))
            pieces = []
        if not pieces:
            first = (page_address, header, flags, remaining)
        pieces.append(view[offset + header : offset + block])
    if pieces:
        yield _Run(first[0], first[1], block, first[2], first[3], b"".join(pieces))


def payload_pieces(content: bytes, address: int) -> t.Iterator[tuple[bytes, t.Callable[[int], int]]]:
    """Yield the payload of a segment that begins at ``address``, without page headers, in large pieces.

    With each comes a function from an offset in it to the LSN. Raises :class:`BackupError` as scan_segments does.
    """
    for run in _runs(content, address, parse_segment_header(content).block_size):
        yield run.payload, run.lsn


class _Unfinished(t.NamedTuple):
    """A record of which ``have`` bytes were read; ``data`` holds its header, and the rest where it matters."""

    lsn: int
    have: int
    data: bytes

    def length(self) -> int:
        """Return the record's whole length."""
        return int(_INT32.unpack_from(self.data)[0])

    def more(self, piece: bytes) -> _Unfinished:
        """Return the same with the bytes that follow."""
        matters = len(self.data) < _RECORD_HEADER or _kind(self.data[16], self.data[17])
        return _Unfinished(self.lsn, self.have + len(piece), self.data + piece if matters else self.data)


class _Scanner:
    """Reads record after record; keeps the last record and the unfinished one from one segment to the next."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.previous = -1
        self.unfinished: t.Optional[_Unfinished] = None
        self.events: list[Event] = []
        self.last: tuple[t.Optional[int], t.Optional[int]] = (None, None)
        self.switched = False
        self.stats_bytes = 0

    def scan(self, segment: int, content: bytes) -> SegmentScan:
        """Return what the next segment adds."""
        begin = end = segment * self.size
        block = parse_segment_header(content).block_size
        self.stats_bytes = 16 if _PAGE.unpack_from(content)[0] >= _MAGIC_18 else 12
        self.events, self.last, self.switched = [], (None, None), False
        stops_at = None
        for run in _runs(content, begin, block):
            at = self._continue(run)
            if at is None:
                stops_at = self._dead_end(run.address)
            elif not self.switched:
                stops_at = self._records(run, at)
            end = run.end(len(run.payload))
            if stops_at is not None or self.switched:
                break
        if stops_at is None and not self.switched and end < begin + self.size:
            stops_at = self._dead_end(end)
        return SegmentScan(segment, self.events, self.last[0], self.last[1], stops_at)

    def _dead_end(self, lsn: int) -> int:
        return self.unfinished.lsn if self.unfinished else lsn

    def _continue(self, run: _Run) -> t.Optional[int]:
        """Return where the first new record of a run begins; None when the run does not continue the previous one."""
        continued = run.remaining if run.flags & _CONTINUES else 0
        if run.flags & _OVERWRITES:
            self.unfinished = None
        if self.unfinished is None:
            # The first segment may begin within a record that started in an earlier one.
            return _aligned(continued) if self.previous < 0 or not continued else None
        if self.unfinished.have + continued != self.unfinished.length():
            return None
        record = self.unfinished = self.unfinished.more(run.payload[:continued])
        if record.have == record.length():
            if _RECORD.unpack_from(record.data)[2] != self.previous >= 0:
                return None
            if not self._take(record.lsn, run.end(_aligned(continued)), record.data):
                return None
            self.unfinished = None
        return _aligned(continued)

    def _take(self, lsn: int, end: int, record: bytes) -> bool:
        """Note a complete record; False when it is not what its header says."""
        _total, xid, _prev, info, manager = _RECORD.unpack_from(record)
        kind = _kind(info, manager)
        if kind:
            try:
                self.events.append(_event(record, lsn, end, kind, xid, info, self.stats_bytes))
            except (struct.error, IndexError, ValueError):
                return False
        self.switched = manager == _XLOG and info & 0xF0 == _XLOG_SWITCH
        self.previous = lsn
        self.last = (lsn, end)
        return True

    def _records(self, run: _Run, at: int) -> t.Optional[int]:
        """Read the records that begin in a run, from ``at`` on; return where the WAL ends in it, else None."""
        stream, unpack, length = run.payload, _RECORD.unpack_from, len(run.payload)
        # Up to the payload's byte ``limit`` an LSN is ``delta`` more than the offset: run.lsn is slow for each record.
        page, limit, delta = run.block - _SHORT_HEADER, run.block - run.header, run.address + run.header
        previous, last, stops_at = self.previous, -1, None
        while at < length:
            if at >= limit:
                pages = (at - limit) // page + 1
                limit += pages * page
                delta += pages * _SHORT_HEADER
            lsn = at + delta
            if length - at < _RECORD_HEADER:
                # The header continues in the next segment; the length is on this page, since records are aligned.
                if _INT32.unpack_from(stream, at)[0] < _RECORD_HEADER:
                    stops_at = lsn
                else:
                    self.unfinished = _Unfinished(lsn, length - at, stream[at:])
                break
            total, _xid, prev, info, manager = unpack(stream, at)
            if total < _RECORD_HEADER or prev != previous >= 0:
                stops_at = lsn
                break
            after = at + total
            if after > length:
                self.unfinished = _Unfinished(lsn, length - at, stream[at:])
                break
            begin, at = at, (after + 7) & ~7
            if manager < 2 and (_kind(info, manager) or info & 0xF0 == _XLOG_SWITCH):
                if not self._take(lsn, run.end(at), stream[begin:after]):
                    stops_at = lsn
                    break
                if self.switched:
                    # The rest of the segment is zeros.
                    previous, last = lsn, at
                    break
            previous, last = lsn, at
        self.previous = previous
        if last >= 0:
            self.last = (previous, run.end(last))
        return stops_at


def _aligned(length: int) -> int:
    return (length + 7) & ~7


def _kind(info: int, manager: int) -> str:
    """Return the kind of event that a record is, "" for others."""
    if manager == _XACT:
        return _XACT_ENDS.get(info & 0x70, ("", False))[0]
    return RESTORE_POINT if manager == _XLOG and info & 0xF0 == _XLOG_RESTORE_POINT else ""


def _event(record: bytes, lsn: int, end: int, kind: str, xid: int, info: int, stats_bytes: int) -> Event:
    """Return the event in a record. Raises struct.error, IndexError or ValueError for a damaged one."""
    data = _main_data(record)
    time_us = _INT64.unpack_from(data)[0] + _EPOCH_US
    if kind == RESTORE_POINT:
        return Event(lsn, end, kind, 0, time_us, data[8:72].partition(b"\0")[0])
    if _XACT_ENDS[info & 0x70][1]:
        xid = _prepared_xid(data, stats_bytes)
    return Event(lsn, end, kind, xid, time_us, b"")


def _main_data(record: bytes) -> bytes:
    """Return the main data of a record without blocks: it follows the origin and the top transaction."""
    at = _RECORD_HEADER
    while True:
        marker = record[at]
        if marker == 255:
            at, length = at + 2, record[at + 1]
        elif marker == 254:
            at, length = at + 5, _INT32.unpack_from(record, at + 1)[0]
        elif marker in _SMALL_PARTS:
            at += _SMALL_PARTS[marker]
            continue
        else:
            raise ValueError(f"unexpected part {marker} in a record without blocks")
        if at + length != len(record):
            raise ValueError(f"{length} bytes of data in a record of {len(record)}")
        return record[at:]


def _prepared_xid(data: bytes, stats_bytes: int) -> int:
    """Return the transaction that COMMIT PREPARED or ROLLBACK PREPARED ends; parts of any length precede it."""
    (flags,) = _INT32.unpack_from(data, 8)
    at = 12 + (8 if flags & _HAS_DATABASE else 0)
    # Subtransactions, relations to remove, statistics to drop, invalidations.
    for flag, item in ((0x0002, 4), (0x0004, 12), (0x0100, stats_bytes), (0x0008, 16)):
        if flags & flag:
            at += 4 + item * _INT32.unpack_from(data, at)[0]
    return int(_INT32.unpack_from(data, at)[0])
