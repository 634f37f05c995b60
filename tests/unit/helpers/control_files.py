# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A control file of PostgreSQL 18."""

from __future__ import annotations

import struct
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import control as _control

from tests.unit.helpers.backups import IDENTIFIER

CATALOG: t.Final = 202506291


def control_file(
    state: int = 6, min_recovery_point: int = 0, identifier: int = int(IDENTIFIER), filler: bytes = b""
) -> bytes:
    """Return a control file with a valid CRC; different ``filler`` bytes make different files."""
    content = bytearray(8192)
    struct.pack_into("<QIII", content, 0, identifier, 1800, CATALOG, state)
    struct.pack_into("<Q", content, 136, min_recovery_point)
    content[100 : 100 + len(filler)] = filler
    struct.pack_into("<I", content, 292, _control.crc32c(bytes(content[:292])))
    return bytes(content)
