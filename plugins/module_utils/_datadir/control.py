# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control file, ``global/pg_control``.

Layout: PostgreSQL's pg_control.h, for 64-bit little-endian servers. The server writes the file while we read it, so
a copy is only good when its CRC matches.

Private to pgfleet.basebackup. Room ``_datadir``: a data directory and the formats of its files; it knows no server.
"""

from __future__ import annotations

import os
import struct
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

CONTROL_FILE_SIZE = 8192

# pg_control_version to the offset of the CRC: PostgreSQL 13 to 16, 17, 18.
_CRC_OFFSETS = {1300: 288, 1700: 288, 1800: 292}

# The same in all of them: checkPointCopy.ThisTimeLineID; minRecoveryPoint and its timeline; wal_level; MaxConnections
# and the next four settings; data_checksum_version.
_CHECKPOINT_TIMELINE = struct.Struct("<48xI")
_MIN_RECOVERY_POINT = struct.Struct("<136xQI")
_SETTINGS = struct.Struct("<172xi4x5i")
_CHECKSUM_VERSION = struct.Struct("<252xI")

# DBState of pg_control.h: DB_SHUTDOWNED_IN_RECOVERY, which a recovery leaves whose target's action is "shutdown", and
# DB_IN_ARCHIVE_RECOVERY.
SHUT_DOWN_IN_RECOVERY = 2
_IN_RECOVERY = (SHUT_DOWN_IN_RECOVERY, 5)


class ControlFile(t.NamedTuple):
    """The fields of a control file that we use, and its bytes.

    ``state`` is the number of the DBState: 4 is crash recovery, 5 archive recovery, 6 in production.
    ``checkpoint_timeline`` is that of the last checkpoint. ``min_recovery_point`` is the LSN that recovery must reach
    before the server is consistent, and ``min_recovery_timeline`` its timeline, both 0 outside recovery. ``wal_level``
    is 0 for minimal, 1 for replica, 2 for logical; it and the five settings after it are those of the server that wrote
    the WAL. ``data_checksum_version`` is 0 when data checksums are off.
    """

    system_identifier: int
    control_version: int
    catalog_version: int
    state: int
    checkpoint_timeline: int
    min_recovery_point: int
    min_recovery_timeline: int
    wal_level: int
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_xacts: int
    max_locks_per_xact: int
    data_checksum_version: int
    raw: bytes

    @property
    def in_recovery(self) -> bool:
        """Whether the file is that of a standby, or of another server in archive recovery, running or shut down."""
        return self.state in _IN_RECOVERY


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _bit in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of a few bytes, in pure Python: some megabytes per second."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def parse_control(raw: bytes) -> ControlFile:
    """Return the fields of a control file.

    Raises BackupError: code ``unsupported_control`` for an unknown version, ``bad_control`` for a wrong size or CRC.
    """
    if len(raw) != CONTROL_FILE_SIZE:
        raise BackupError(f"pg_control has {len(raw)} bytes instead of {CONTROL_FILE_SIZE}.", code="bad_control")
    system_identifier, control_version, catalog_version, state = struct.unpack_from("<QIII", raw)
    crc_offset = _CRC_OFFSETS.get(control_version)
    if crc_offset is None:
        raise BackupError(
            f"pg_control has version {control_version}; known are {', '.join(map(str, _CRC_OFFSETS))}.",
            code="unsupported_control",
        )
    (expected,) = struct.unpack_from("<I", raw, crc_offset)
    crc = crc32c(raw[:crc_offset])
    if crc != expected:
        raise BackupError(f"pg_control has CRC {crc:08x} but says {expected:08x}.", code="bad_control")
    layouts = (_CHECKPOINT_TIMELINE, _MIN_RECOVERY_POINT, _SETTINGS, _CHECKSUM_VERSION)
    numbers = [number for layout in layouts for number in layout.unpack_from(raw)]
    return ControlFile._make([system_identifier, control_version, catalog_version, state, *numbers, raw])


def read_control(path: bytes, attempts: int = 50, delay: float = 0.02) -> ControlFile:
    """Read a control file that its server may be writing, every ``delay`` seconds until its CRC matches.

    Raises BackupError: code ``unreadable`` when it cannot be read, otherwise as parse_control after ``attempts``.
    """
    while True:
        attempts -= 1
        try:
            with open(path, "rb") as control:
                raw = control.read(CONTROL_FILE_SIZE + 1)
        except OSError as exc:
            raise BackupError(f"Cannot read {os.fsdecode(path)!r}: {exc.strerror}.", code="unreadable") from exc
        try:
            return parse_control(raw)
        except BackupError:
            # In a torn read any field can be wrong, the version too.
            if attempts <= 0:
                raise
        time.sleep(delay)
