# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restores of a small backup: killed at every step and continued, what is kept and removed."""

from __future__ import annotations

import os
import pathlib
import shutil

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import paths as _paths

from tests.unit.helpers.backups import files_below
from tests.unit.helpers.published import Published
from tests.unit.helpers.restores import VERSION, Case, killed


def contents(root: pathlib.Path) -> dict[str, bytes]:
    return {path: (root / path).read_bytes() for path in files_below(root) if (root / path).is_file()}


def saved(case: Case) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for folder in case.folder.glob("data.*"):
        top = folder / "pg_wal" if ".replaced-" in folder.name else folder
        found.update({path.name: path.read_bytes() for path in top.glob("0*")})
    return found


@pytest.mark.parametrize("way", ["empty", "delta", "replace"])
def test_killed_at_every_step(tmp_path: pathlib.Path, published: Published, way: str) -> None:
    """After a kill it is unchanged or cannot start; the same call continues the restore, and no WAL is lost."""
    root = tmp_path / "crashes"
    root.mkdir()
    wal: dict[str, bytes] = {}
    options = {} if way == "empty" else {way: True}

    def begin(folder: pathlib.Path) -> Case:
        case = Case(folder, published, **options)
        if way != "empty":
            wal.update(case.old_cluster())
        return case

    (tmp_path / "before").mkdir()
    before = contents(begin(tmp_path / "before").folder)
    count = 0
    for case in killed(root, begin):
        count += 1
        if case.startable and not case.done:
            now = contents(case.folder)
            assert {path: now.get(path) for path in before if "space" not in path} == {
                path: content for path, content in before.items() if "space" not in path
            }
        result = case.restore()
        case.is_restored()
        assert result["plan"]["files"] == 6
        if wal:
            assert set(saved(case)) >= set(wal)
            assert {path: saved(case)[path] for path in wal} == wal
            assert all((case.data / "pg_wal" / path).read_bytes() == wal[path] for path in wal)
        if way == "replace":
            # The old cluster is whole.
            (old,) = case.folder.glob("data.replaced-*")
            assert (old / "global/pg_control").exists()
            assert (old / "pg_tblspc/16385" / VERSION / "5/10").read_bytes() == b"surplus"
    assert count > 40


def test_links_are_not_followed(case: Case) -> None:
    """Links are followed neither for writing nor for removing."""
    case.old_cluster()
    outside = case.folder / "outside"
    (outside / "5").mkdir(parents=True)
    (outside / "5/1259").write_bytes(b"somebody else's")
    (outside / "precious").write_bytes(b"somebody else's")
    for name_of in ("pg_tblspc", "pgfleet_restore"):
        (outside / name_of).mkdir()
    (outside / "pg_tblspc/4711").symlink_to(case.folder / "late")
    (case.folder / "late" / VERSION).mkdir(parents=True)
    (case.folder / "late" / VERSION / "file").write_bytes(b"somebody else's")
    os.rename(case.data / "pg_tblspc", case.folder / "pg_tblspc")
    for name_of in ("pg_tblspc", "pgfleet_restore"):
        (case.data / name_of).symlink_to(outside / name_of)
    shutil.rmtree(case.space)
    os.rename(case.data / "base", case.folder / "base")
    (case.data / "base").symlink_to(outside)
    (case.data / "global/linked").symlink_to(outside)
    (case.data / "global/0000").symlink_to(outside / "precious")
    before = contents(outside)
    case.restore(delta=True)
    assert contents(outside) == before
    assert (case.folder / "late" / VERSION / "file").exists()
    assert os.readlink(outside / "pg_tblspc/4711") == str(case.folder / "late")
    assert not (case.data / "base").is_symlink()


def test_source_has_links_that_the_backup_lacks(case: Case) -> None:
    case.old_cluster()
    outside = case.folder / "postgresql.conf"
    outside.write_text("")
    (case.data / "postgresql.conf").symlink_to(outside)
    case.published.content["copy"]["special_files"] = [{"path": "postgresql.conf", "kind": "symlink", "target": "x"}]
    case.published.save()
    case.restore(delta=True)
    assert (case.data / "postgresql.conf").is_symlink()


def test_nested_mounts_are_left_alone(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.old_cluster()
    mount = case.data / "mnt"
    mount.mkdir()
    (mount / "file").write_bytes(b"on another disk")
    monkeypatch.setattr(
        _paths, "mounts_below", lambda path: {os.fsencode(mount)} if path == os.fsencode(case.data) else set()
    )
    assert case.refusals(replace=True) == ["cannot_move_aside"]
    case.restore(delta=True)
    assert (mount / "file").read_bytes() == b"on another disk"
    monkeypatch.setattr(
        _paths, "mounts_below", lambda path: {path + b"/base"} if path == os.fsencode(case.data) else set()
    )
    assert case.refusals(delta=True, force=True) == ["nested_mount"]


def test_saved_wal_goes_where_it_is_wanted(case: Case) -> None:
    wal = case.old_cluster()
    wanted = case.folder / "saved"
    result = case.restore(delta=True, save_wal_to=str(wanted), restore_as="copy")
    assert {path.name: path.read_bytes() for path in wanted.iterdir()} == wal
    assert (result["plan"]["saved_wal"], result["plan"]["used_wal"]) == (str(wanted), [])
    assert not list((case.data / "pg_wal").glob("0*"))
