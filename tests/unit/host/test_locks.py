# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks: held by a living process, or by none."""

from __future__ import annotations

import os
import pathlib

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import locks as _locks

from tests.unit.helpers.processes import held_by_another_process


def test_no_lock_file_is_no_lock(tmp_path: pathlib.Path) -> None:
    assert not _locks.is_locked(str(tmp_path / "none"))


def test_taken(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "lock")
    with held_by_another_process(path) as process:
        assert _locks.is_locked(path)
        assert _locks.take_lock(path, 0) is None
        os.kill(process, 9)
        handle = _locks.take_lock(path, 5)
    assert handle is not None
    assert not os.get_inheritable(handle)
    os.close(handle)
    assert not _locks.is_locked(path)
