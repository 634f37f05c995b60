# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files of a backup are restored, and damage found before anything is touched."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

from tests.unit.helpers.restores import Case


def test_corrupt_file(case: Case) -> None:
    place = case.published.path / "data/base/5/2600"
    place.write_bytes(b"y" * 10000)
    with pytest.raises(BackupError) as caught:
        case.restore()
    assert (caught.value.code, caught.value.details["file"]) == ("corrupt_file", "base/5/2600")
    assert "base/5/2600" in caught.value.msg
    assert not case.startable
    assert not (case.data / "base/5/2600").exists()
    place.write_bytes(b"z" * 9)
    assert case.refusals() == ["damaged_backup"]
    place.write_bytes(b"x" * 10000)
    result = case.restore()
    case.is_restored()
    assert result["plan"]["keep_files"] + result["plan"]["copy_files"] == 6


def test_corrupt_small_file(case: Case) -> None:
    """Files that are read, not copied, are verified before anything is touched."""
    place = case.published.path / "data/global/pg_control"
    place.write_bytes(place.read_bytes()[:-1] + b"\xff")
    plan = case.plan()
    assert [(one.code, one.details["file"]) for one in plan.refusals] == [("corrupt_file", "global/pg_control")]
    assert not case.data.exists()
