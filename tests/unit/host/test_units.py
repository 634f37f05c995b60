# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes and durations as text."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.units import readable_bytes, seconds


@pytest.mark.parametrize(
    "number, text",
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1.5 * 1024**3, "1.5 GiB"), (3000 * 1024**4, "3000.0 TiB")],
)
def test_bytes(number: float, text: str) -> None:
    assert readable_bytes(number) == text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("90", 90),
        ("0", 0),
        (" 1.5 h ", 5400),
        ("15m", 900),
        ("15 min", 900),
        ("15 mins", 900),
        ("1 minute", 60),
        ("20 hours", 72000),
        ("20 Hours", 72000),
        ("2d", 172800),
        ("1 week", 604800),
        ("2w", 1209600),
        ("30 seconds", 30),
        ("30s", 30),
        ("200 ms", 0.2),
    ],
)
def test_duration(text: str, expected: float) -> None:
    assert seconds(text, "max_age") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "h",
        "-1h",
        "1 month",
        "1 year",
        "1h 30m",
        "1,5h",
        "inf",
        "1e3",
        "٣h",
        "s s",
        "9" * 400,
        "101 y",
        "40000d",
    ],
)
def test_no_duration(text: str) -> None:
    with pytest.raises(BackupError) as caught:
        seconds(text, "max_age")
    assert (caught.value.code, "max_age" in caught.value.msg) == ("bad_duration", True)
