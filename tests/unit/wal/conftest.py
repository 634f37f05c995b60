# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the tests of WAL archives."""

from __future__ import annotations

import pytest

from tests.unit.helpers.made_up_wal import Wal


@pytest.fixture
def wal() -> Wal:
    """Three segments with a transaction at the start of each, and one record in a fourth."""
    made = Wal()
    for number in range(3):
        made.commit(number + 1)
        made.switch()
    made.other(10)
    return made
