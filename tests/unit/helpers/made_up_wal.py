# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write-ahead log built record by record (xlog_internal.h, xlogrecord.h, xact.h), in segments of 1 MB."""

from __future__ import annotations

import pathlib
import struct
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import DirectoryArchive

from tests.unit.helpers.backups import IDENTIFIER

NUMBER: t.Final = int(IDENTIFIER)
SIZE: t.Final = 1 << 20
PAGE: t.Final = 8192
FIRST: t.Final = 3
NOW_US: t.Final = 1_780_000_000_000_000
EPOCH_US: t.Final = 946684800 * 1000000


class Wal:
    """A log that begins at the segment FIRST and ends at ``at``. Each method that writes returns its record's LSN."""

    def __init__(self, magic: int = 0xD116, timeline: int = 1, first: int = FIRST) -> None:
        self.magic = magic
        self.timeline = timeline
        self.segments: dict[int, bytearray] = {}
        self.at = first * SIZE
        self.previous = 0
        self.now_us = NOW_US

    @property
    def last(self) -> int:
        """The last segment that is not empty."""
        return max(self.segments)

    def segment(self, number: int) -> bytes:
        """Return a whole segment, with zeros after the end."""
        return bytes(self.segments[number])

    def _page(self, remaining: int, flags: int = 0) -> None:
        """Begin a page at the current position."""
        number, offset = divmod(self.at, SIZE)
        content = self.segments.setdefault(number, bytearray(SIZE))
        flags |= (1 if remaining else 0) | (0 if offset else 2)
        header = struct.pack("<HHIQI4x", self.magic, flags, self.timeline, self.at, remaining)
        if not offset:
            header += struct.pack("<QII", int(IDENTIFIER), SIZE, PAGE)
        content[offset : offset + len(header)] = header
        self.at += len(header)

    def _write(self, record: bytes) -> int:
        if self.at % PAGE == 0:
            self._page(0)
        lsn, rest = self.at, record
        while rest:
            if self.at % PAGE == 0:
                self._page(len(rest))
            number, offset = divmod(self.at, SIZE)
            piece, rest = rest[: PAGE - offset % PAGE], rest[PAGE - offset % PAGE :]
            self.segments[number][offset : offset + len(piece)] = piece
            self.at += len(piece)
        self.at += -self.at % 8
        return lsn

    def record(self, manager: int, info: int, xid: int, body: bytes) -> int:
        """Write a record."""
        header = struct.pack("<IIQBB2xI", 24 + len(body), xid, self.previous, info, manager, 0)
        self.previous = self._write(header + body)
        return self.previous

    def _end(self, operation: int, xid: int, prepared: int, parts: bytes, lists: int, padding: int) -> int:
        self.now_us += 1
        stats = 16 if self.magic >= 0xD118 else 12
        flags = 0x80 if prepared or lists or padding else 0
        data = struct.pack("<q", self.now_us - EPOCH_US)
        if flags:
            kinds = [1, 2, 4, 0x100, 8]
            wanted = [kind for bit, kind in enumerate(kinds) if lists >> bit & 1]
            data += struct.pack("<I", sum(wanted) | (0x10 if prepared else 0))
            data += b"\xff" * 8 if 1 in wanted else b""
            for kind, item in ((2, 4), (4, 12), (0x100, stats), (8, 16)):
                if kind in wanted:
                    data += struct.pack("<I", 3) + b"\xff" * (3 * item)
            data += struct.pack("<I", prepared) if prepared else b""
            data += bytes(padding)
        marker = bytes([255, len(data)]) if len(data) < 256 else b"\xfe" + struct.pack("<I", len(data))
        return self.record(1, operation | flags, xid, parts + marker + data)

    def commit(self, xid: int, prepared: int = 0, parts: bytes = b"", lists: int = 0, padding: int = 0) -> int:
        """Commit a transaction, one microsecond after the previous one ended."""
        return self._end(0x30 if prepared else 0x00, xid, prepared, parts, lists, padding)

    def abort(self, xid: int, prepared: int = 0) -> int:
        """Roll a transaction back."""
        return self._end(0x40 if prepared else 0x20, xid, prepared, b"", 0, 0)

    def restore_point(self, name: bytes) -> int:
        """Write a named restore point."""
        self.now_us += 1
        data = struct.pack("<q", self.now_us - EPOCH_US) + name.ljust(64, b"\0")
        return self.record(0, 0x70, 0, bytes([255, len(data)]) + data)

    def other(self, length: int) -> int:
        """Write a record with ``length`` bytes after its header, which a reader must ignore."""
        return self.record(10, 0x00, 3, b"\xa5" * length)

    def switch(self) -> int:
        """Write the record that ends the segment."""
        lsn = self.record(0, 0x40, 0, b"")
        self.at += -self.at % SIZE
        return lsn

    def unfinished(self, xid: int, pages: int) -> int:
        """Write the part of a commit left by a crash after its ``pages``-th page, and what the server writes next."""
        keep = self.previous
        wanted = (self.at // PAGE + pages) * PAGE
        lsn = self.commit(xid, padding=wanted + PAGE - self.at)
        for address in range(wanted, self.at, PAGE):
            number, offset = divmod(address, SIZE)
            self.segments[number][offset : offset + PAGE] = bytes(PAGE)
        self.at, self.previous = wanted, keep
        self._page(0, flags=8)
        self.record(0, 0xD0, 0, bytes([255, 16]) + struct.pack("<Qq", lsn, 0))
        return lsn

    def fill(self, lsn: int) -> None:
        """Write other records exactly up to ``lsn``, a multiple of 8 after a page's header."""
        if self.at % PAGE == 0:
            self._page(0)
        while self.at + 4096 < lsn:
            self.other(1000)
        while self.at < lsn:
            gap = lsn - self.at - self._headers(self.at, lsn)
            length = gap if gap < 64 else 32
            self.other(length - 24)

    @staticmethod
    def _headers(begin: int, end: int) -> int:
        """Return the bytes of page headers between two positions."""
        pages = range(begin + (-begin % PAGE or PAGE), end, PAGE)
        return sum(24 if page % SIZE else 40 for page in pages)


def segment_header(
    timeline: int = 1, address: int = 48 * SIZE, identifier: int = 77, size: int = 16 * SIZE, flags: int = 2
) -> bytes:
    """Return the first 64 bytes of a WAL segment of PostgreSQL 18: its header and zeros."""
    return struct.pack("<HHIQI4xQII", 0xD118, flags, timeline, address, 0, identifier, size, PAGE) + bytes(24)


def empty_segment(number: int, timeline: int = 1, address: int = -1) -> bytes:
    """Return a WAL segment of 1 MB with only its header."""
    return segment_header(timeline, number * SIZE if address < 0 else address, NUMBER, SIZE).ljust(SIZE, b"\0")


def segment_name(number: int, timeline: int = 1) -> str:
    """Return the name of a WAL segment of 1 MB."""
    return f"{timeline:08X}{number >> 12:08X}{number & 0xFFF:08X}"


def put(folder: pathlib.Path, wal: Wal, timeline: int = 1, numbers: t.Iterable[int] | None = None) -> list[str]:
    """Archive the segments of a log; return their names."""
    names = []
    for number in wal.segments if numbers is None else numbers:
        names.append(segment_name(number, timeline))
        (folder / names[-1]).write_bytes(wal.segment(number))
    return names


def directory_archive(folder: pathlib.Path) -> DirectoryArchive:
    """Return the archive in ``folder``."""
    return DirectoryArchive(str(folder), SIZE, NUMBER)
