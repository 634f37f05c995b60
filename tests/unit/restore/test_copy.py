# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying: what is kept and what is reused."""

from __future__ import annotations

import os
import stat

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import copy as _restore_copy
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.report import result_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.restore import Restore

from tests.unit.helpers.made_up_wal import segment_name
from tests.unit.helpers.restores import Case


def test_delta_keeps_what_is_right(case: Case) -> None:
    case.old_cluster()
    kept = {path: (case.data / path).stat().st_ino for path in ("base/5/2600", "PG_VERSION")}
    plan = case.plan(delta=True)
    assert plan.layout is not None
    equal = _restore_copy.equal_files(plan.contents.files, plan.layout, plan.survey.existing, 1)
    guess = result_of(plan)["plan"]
    assert result_of(plan, equal)["plan"] == {
        **guess, "keep_files": 5, "replace_files": 1, "copy_files": 1, "copy_bytes": 8192,
        "estimated_seconds": 585.1, "keep_bytes": guess["bytes"] - 8192,
    }  # fmt: skip
    result = case.restore(delta=True)
    assert {path: (case.data / path).stat().st_ino for path in kept} == kept
    numbers = result["plan"]
    assert (numbers["keep_files"], numbers["copy_files"], numbers["replace_files"]) == (5, 1, 1)
    assert numbers["used_wal"] == [segment_name(33), segment_name(34)]
    assert (case.data / "log/yesterday").read_bytes() == b"why it died"
    assert not (case.data / "base/99").exists()
    assert not (case.data / "standby.signal").exists()


def test_modes(case: Case) -> None:
    case.old_cluster()
    for path in (case.data / "base/5", case.data):
        path.chmod(0o755)
    (case.data / "PG_VERSION").chmod(0o444)
    case.restore(delta=True, allow_group_access=True)
    for path in (case.data, *case.data.rglob("*")):
        if not path.is_symlink() and "log" not in (path.name, path.parent.name):
            wanted = 0o750 if path.is_dir() else 0o640
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_hard_link_is_replaced(case: Case) -> None:
    """Otherwise the file in the other tree would change with the server's."""
    case.old_cluster()
    other = case.folder / "other"
    os.link(case.data / "base/5/2600", other)
    case.restore(delta=True)
    assert (case.data / "base/5/2600").stat().st_nlink == 1


@pytest.mark.parametrize("same_boot", [True, False])
def test_journal(case: Case, monkeypatch: pytest.MonkeyPatch, same_boot: bool) -> None:
    """Copied files are not read again, unless a crash of the machine may have lost data not yet flushed."""

    def dies(_self: Restore) -> None:
        raise BackupError("Killed.", code="copy_killed")

    with monkeypatch.context() as patch:
        patch.setattr(Restore, "_write_wal", dies)
        with pytest.raises(BackupError):
            case.restore()
    if not same_boot:
        (case.data / "base/5/2600").write_bytes(b"?" * 10000)
        monkeypatch.setattr(_restore_copy, "_header", lambda: b"another boot\n")
    assert case.restore()["reused_files"] == (6 if same_boot else 0)
    case.is_restored()
