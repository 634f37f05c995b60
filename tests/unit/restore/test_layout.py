# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout of a restored cluster: where each path is, and what a survey finds."""

from __future__ import annotations

import os
import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import (
    Layout,
    Space,
    is_empty,
    remove,
    wal_directory,
)

VERSION = b"PG_18_202506291"


@pytest.fixture
def layout(tmp_path: pathlib.Path) -> Layout:
    data, space, wal = (os.fsencode(tmp_path / name) for name in ("data", "space", "wal"))
    for path in (data + b"/pg_tblspc", space + b"/" + VERSION, wal):
        os.makedirs(path)
    return Layout(data, VERSION, [Space(16385, b"/srv/a", space, space)], wal, frozenset(), False)


def test_places(layout: Layout) -> None:
    (space,) = layout.spaces
    assert layout.place(b"base/5/1259") == layout.data + b"/base/5/1259"
    assert layout.place(b"pg_tblspc/16385/" + VERSION + b"/5/9") == space.real + b"/" + VERSION + b"/5/9"
    assert layout.place(b"pg_tblspc/16385") == space.real
    # One inside the data directory.
    assert layout.place(b"pg_tblspc/16390/x") == layout.data + b"/pg_tblspc/16390/x"
    assert layout.place(b"pg_wal/archive_status") == layout.wal_root + b"/archive_status"
    assert layout.place(b"pg_walther") == layout.data + b"/pg_walther"
    assert layout.roots == [layout.data, space.real + b"/" + VERSION, layout.waldir]
    assert layout.wal_root == layout.waldir


def test_modes(layout: Layout) -> None:
    assert (layout.directory_mode, layout.file_mode) == (0o700, 0o600)
    shared = Layout(layout.data, VERSION, [], None, frozenset(), True)
    assert (shared.directory_mode, shared.file_mode, shared.wal_root) == (0o750, 0o640, layout.data)


def test_survey(layout: Layout, tmp_path: pathlib.Path) -> None:
    data = tmp_path / "data"
    for path in ("base/5", "base/6", "log", "mnt/below", "pgfleet_restore", "pg_wal", "global"):
        (data / path).mkdir(parents=True)
    files = {"base/5/1": b"12", "base/5/2": b"", "base/6/1": b"", "log/a": b"", "mnt/below/x": b"", "pg_wal/x": b"",
             "global/pg_control": b"", "pgfleet_restore/x": b""}  # fmt: skip
    for path, content in files.items():
        (data / path).write_bytes(content)
    os.link(data / "base/5/2", tmp_path / "another name")
    (data / "linked").symlink_to(tmp_path)
    (data / "known").symlink_to(tmp_path)
    (data / "pg_tblspc/16385").symlink_to(tmp_path / "space")
    (data / "pg_tblspc/16390").symlink_to(tmp_path / "space")
    (tmp_path / "space" / os.fsdecode(VERSION) / "9").write_bytes(b"9")
    layout.mounts = frozenset([os.fsencode(data / "mnt/below")])
    found = layout.survey(
        {b"base/5/1", b"base/5/2", b"pg_tblspc/16385/" + VERSION + b"/9"},
        {b"base", b"base/5", b"pg_tblspc", b"global"},
        {b"known"},
    )
    assert {path: (one.size, one.alone) for path, one in found.existing.items()} == {
        b"base/5/1": (2, True),
        b"base/5/2": (0, False),
        b"pg_tblspc/16385/" + VERSION + b"/9": (1, True),
    }
    surplus = {os.path.relpath(os.fsdecode(path), data): is_directory for path, is_directory in found.surplus}
    assert surplus == {"base/6": True, "linked": False, "pg_tblspc/16390": False}


def test_a_link_in_the_place_of_a_directory(layout: Layout, tmp_path: pathlib.Path) -> None:
    """The link is removed, never its target."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    place = layout.data + b"/base"
    os.symlink(outside, place)
    layout.make_directory(place)
    assert os.path.isdir(place)
    assert not os.path.islink(place)
    os.rmdir(place)
    os.symlink(outside, place)
    remove(place, is_directory=False)
    assert (outside / "file").exists()
    remove(place, is_directory=False)
    layout.make_link(place, b"/srv/a")
    layout.make_link(place, b"/srv/b")
    assert os.readlink(place) == b"/srv/b"


def test_what_cannot_be_removed(layout: Layout) -> None:
    place = layout.data + b"/file"
    pathlib.Path(os.fsdecode(place)).write_text("x")
    with pytest.raises(BackupError) as caught:
        remove(place + b"/x", is_directory=False)
    assert caught.value.code == "unwritable"


def test_empty_directories(tmp_path: pathlib.Path) -> None:
    place = os.fsencode(tmp_path)
    for name in ("lost+found", "replaced-20260101T000000Z"):
        (tmp_path / name).mkdir()
    assert is_empty(place)
    assert is_empty(place + b"/absent")
    (tmp_path / "x").write_text("")
    assert not is_empty(place)
    assert not is_empty(place + b"/x")
    assert is_empty(place, b"x")


def test_where_pg_wal_is(tmp_path: pathlib.Path) -> None:
    data = os.fsencode(tmp_path / "data")
    assert wal_directory(data) is None
    (tmp_path / "data").mkdir()
    (tmp_path / "wal").mkdir()
    (tmp_path / "data/pg_wal").symlink_to(tmp_path / "wal")
    assert wal_directory(data) == os.fsencode(tmp_path / "wal")


def test_a_link_that_became_a_directory_is_not_removed(tmp_path: pathlib.Path) -> None:
    place = tmp_path / "linked"
    place.mkdir()
    (place / "file").touch()
    with pytest.raises(BackupError) as caught:
        remove(os.fsencode(place), is_directory=False)
    assert caught.value.code == "unwritable"
    assert (place / "file").exists()
