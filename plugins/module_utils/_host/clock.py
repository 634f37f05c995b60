# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Times as text, always in UTC.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import calendar
import datetime
import time
import typing as t

_ISO = "%Y-%m-%dT%H:%M:%SZ"


def utc(seconds: float) -> str:
    """Return seconds since 1970 as ISO 8601, for example ``2026-11-22T03:14:00Z``."""
    return time.strftime(_ISO, time.gmtime(seconds))


def utc_us(microseconds: int) -> str:
    """Return microseconds since 1970 as ISO 8601 with six decimals; also for years that ``time`` does not know."""
    epoch = datetime.datetime(1970, 1, 1)
    return (epoch + datetime.timedelta(microseconds=microseconds)).isoformat(timespec="microseconds") + "Z"


def parse_utc(text: str) -> float:
    """Return seconds since 1970 of what :func:`utc` made. Raises ValueError."""
    return float(calendar.timegm(time.strptime(text, _ISO)))


def stamp(seconds: t.Optional[float] = None) -> str:
    """Return a time, by default now, as part of a file name: ``20261122T031400Z``."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))
