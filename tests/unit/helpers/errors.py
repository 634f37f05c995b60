# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The error that a call raises."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError


def code_of(work: t.Callable[[], t.Any]) -> str:
    """Return the code of the BackupError that ``work`` raises."""
    with pytest.raises(BackupError) as caught:
        work()
    return caught.value.code
