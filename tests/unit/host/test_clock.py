# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Times as text, in UTC."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import clock as _clock

AT = 1795348694


def test_times() -> None:
    assert _clock.utc_us(1) == "1970-01-01T00:00:00.000001Z"
    assert _clock.utc_us(1795348694000000) == "2026-11-22T11:58:14.000000Z"
    assert _clock.utc(AT) == "2026-11-22T11:58:14Z"
    assert _clock.parse_utc(_clock.utc(AT)) == AT
    assert _clock.stamp(AT) == "20261122T115814Z"
    assert _clock.stamp() > _clock.stamp(AT)


@pytest.mark.parametrize("text", ["", "2026-11-22", "2026-11-22T11:58:14", "2026-13-22T11:58:14Z"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="does not match"):
        _clock.parse_utc(text)
