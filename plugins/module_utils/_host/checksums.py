# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums of files.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import hashlib
import sys
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option

try:
    import crc32c
except ImportError:
    crc32c = None


ALGORITHMS = ("SHA256", "SHA224", "SHA384", "SHA512", "CRC32C", "NONE")


class Hash(t.Protocol):
    """The part of ``hashlib``'s objects that a copy needs."""

    def update(self, data: t.Any) -> None: ...

    def hexdigest(self) -> str: ...


class _Crc32c:
    """CRC-32C, its digits those of the bytes of the little-endian value."""

    def __init__(self) -> None:
        self._hash = crc32c.CRC32CHash()

    def update(self, data: t.Any) -> None:
        self._hash.update(data)

    def hexdigest(self) -> str:
        return self._hash.digest()[::-1].hex()


def new_hash(algorithm: str) -> t.Optional[Hash]:
    """Return a fresh hash object for one of ALGORITHMS, None for ``NONE``.

    Raises BackupError, code ``missing_library``, for CRC32C when the library for it is not installed.
    """
    if algorithm not in ALGORITHMS:
        raise BackupError(
            f"Unknown checksum algorithm {algorithm!r}; known are {', '.join(ALGORITHMS)}.", code="bad_algorithm"
        )
    if algorithm == "NONE":
        return None
    if algorithm != "CRC32C":
        return t.cast(Hash, hashlib.new(algorithm.lower()))
    if crc32c is None:
        raise BackupError(
            f"CRC32C needs the Python package crc32c, which {sys.executable} does not have.",
            code="missing_library",
            hint=f"Set {option('checksum_algorithm')}=SHA256, or install it: {sys.executable} -m pip install crc32c",
        )
    return _Crc32c()
