# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Times as text: in UTC, whatever the host's time zone."""

from __future__ import annotations

import time

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import clock as _clock


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()


def test_texts() -> None:
    assert _clock.utc(1795348694.9) == "2026-11-22T11:58:14Z"
    assert _clock.utc_sentence(1795348694.9) == "2026-11-22 11:58:14 UTC"
    assert _clock.utc_microseconds(1) == "1970-01-01T00:00:00.000001Z"
    assert _clock.utc_microseconds(1795348694000000) == "2026-11-22T11:58:14.000000Z"


def test_now() -> None:
    assert abs(_clock.parse_utc(_clock.utc()) - time.time()) < 60
    assert _clock.utc_name()[:8] == _clock.utc().replace("-", "")[:8]


@pytest.mark.parametrize("text", ["", "now", "2026-11-22 11:32:00", "2026-11-22T11:32:00", "2026-13-22T11:32:00Z"])
def test_not_a_time(text: str) -> None:
    with pytest.raises(ValueError):
        _clock.parse_utc(text)
