# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Space on the file systems: what counts against which."""

from __future__ import annotations

import os
import pathlib
import types

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.manifest import ManifestFile
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.contents import Contents
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.findings import Findings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import Existing, Layout, Space, Survey
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.old_wal import OldWal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.room import FileSystem, check_room
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.quick import Found

MB = 1 << 20
VERSION = b"PG_18_202506291"


def found(path: bytes, size: int) -> Found:
    return Found(ManifestFile(path, size, 0, None, None), b"")


@pytest.fixture
def layout(tmp_path: pathlib.Path) -> Layout:
    space = os.fsencode(tmp_path / "space")
    return Layout(os.fsencode(tmp_path / "data"), VERSION, [Space(1, space, space, space)], None, frozenset(), False)


def test_one_file_system(layout: Layout, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overwritten files free space; WAL moved within the file system needs none."""
    monkeypatch.setattr(os, "statvfs", lambda _place: types.SimpleNamespace(f_bavail=5, f_frsize=MB))
    files = (found(b"a", 3 * MB), found(b"pg_tblspc/1/" + VERSION + b"/b", 2 * MB), found(b"pg_wal/c", MB))
    survey = Survey({b"a": Existing(MB, 0o600, True)}, [])
    wal = OldWal(("x", "y"), os.fsencode(tmp_path / "saved"), (), ((b"/old", "x"),))
    findings = Findings()
    assert check_room(findings, layout, Contents(files), survey, wal, MB) == (
        FileSystem(os.fsencode(tmp_path), 6 * MB, 5 * MB),
    )
    assert [(one.code, one.details) for one in findings.refusals] == [("disk_full", {"needed": 6 * MB, "free": 5 * MB})]
    findings = Findings()
    check_room(findings, layout, Contents(files), survey, wal._replace(used=()), MB)
    assert findings.refusals == []


def test_saved_wal_on_another_file_system(layout: Layout) -> None:
    wal = OldWal(("x", "y"), b"/dev/shm/saved")
    if os.stat("/dev/shm").st_dev == os.stat(os.path.dirname(layout.data)).st_dev:
        pytest.skip("/dev/shm is not a separate file system here")
    systems = check_room(Findings(), layout, Contents(), Survey({}, []), wal, MB)
    assert [(one.directory, one.needed) for one in systems][1:] == [(b"/dev/shm", 2 * MB)]
