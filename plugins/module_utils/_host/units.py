# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes and durations in the units that people read and write.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import re

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option

# PostgreSQL's units, and the usual short and long names of them.
_UNITS = {"ms": 0.001, "s": 1.0, "sec": 1.0, "second": 1.0}
_UNITS.update(m=60.0, min=60.0, minute=60.0, h=3600.0, hour=3600.0, d=86400.0, day=86400.0, w=604800.0, week=604800.0)
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*\Z")

# Longer ones overflow clocks and limits.
_LONGEST = 100 * 366 * 86400.0


def readable_bytes(number: float) -> str:
    """Return bytes with a binary unit, for example ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def seconds(text: object, name: str) -> float:
    """Return the seconds in the value of the option ``name``: ``90``, ``15 min``, ``20 hours``, ``2d``.

    Raises :class:`BackupError`, code ``bad_duration``.
    """
    match = _DURATION.match(str(text).lower())
    unit = match.group(2) if match else ""
    factor = _UNITS.get(unit or "s") or _UNITS.get(unit[:-1] if unit.endswith("s") else unit)
    if match is None or factor is None or float(match.group(1)) * factor > _LONGEST:
        raise BackupError(
            f"{option(name)} cannot be {str(text)!r}: it is a duration.",
            code="bad_duration",
            hint="Write it like 90 (seconds), 15 min, 20 hours or 2d.",
        )
    return float(match.group(1)) * factor
