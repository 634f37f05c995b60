# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Times as text, always in UTC.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import calendar
import datetime
import time
import typing as t

_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def utc(seconds: t.Optional[float] = None) -> str:
    """Return seconds since the epoch, the present ones by default, like ``2026-11-22T11:32:00Z``."""
    return time.strftime(_FORMAT, time.gmtime(seconds))


def utc_microseconds(microseconds: int) -> str:
    """Return microseconds since the epoch like ``2026-11-22T11:32:00.000001Z``."""
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=microseconds)
    return moment.isoformat(timespec="microseconds") + "Z"


def utc_sentence(seconds: float) -> str:
    """Return seconds since the epoch for a sentence, like ``2026-11-22 11:32:00 UTC``."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def utc_name() -> str:
    """Return the present time as part of a file name, like ``20261122T113200Z``."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())


def parse_utc(text: str) -> float:
    """Return the seconds since the epoch of what :func:`utc` returned. Raises ValueError for anything else."""
    return float(calendar.timegm(time.strptime(text, _FORMAT)))
