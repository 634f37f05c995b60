# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout of a plain backup: where each path is, and what it contains."""

from __future__ import annotations

import os
import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.tree import Tablespace
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.plain import PlainLayout, external


@pytest.mark.parametrize(
    "path, expected",
    [
        (b"base/5/1259", b"/b1/data/base/5/1259"),
        (b"pg_tblspc", b"/b1/data/pg_tblspc"),
        (b"pg_tblspc/16384", b"/b1/tablespaces/16384"),
        (b"pg_tblspc/16384/PG_18_1/5/1", b"/b1/tablespaces/16384/PG_18_1/5/1"),
        (b"pg_tblspc/163840/PG_18_1/5/1", b"/b1/data/pg_tblspc/163840/PG_18_1/5/1"),
        (b"pg_tblspc/16386/PG_18_1/5/1", b"/b1/data/pg_tblspc/16386/PG_18_1/5/1"),
        (b"sub/pg_tblspc/16384/x", b"/b1/data/sub/pg_tblspc/16384/x"),
    ],
)
def test_place(path: bytes, expected: bytes) -> None:
    spaces = [Tablespace(16384, b"/a", False), Tablespace(16386, b"/data/pg_tblspc/16386", True)]
    assert PlainLayout(b"/b1", external(spaces)).place(path) == expected


@pytest.fixture
def layout(tmp_path: pathlib.Path) -> PlainLayout:
    """A backup with a file in each kind of place."""
    found = PlainLayout(os.fsencode(tmp_path), [16384])
    for place in (found.data + b"/base/5", found.data + b"/pg_tblspc/16386/5", found.tablespace(16384) + b"/5"):
        os.makedirs(place)
    os.symlink(found.link_target(16384), found.link(16384))
    for number, path in enumerate((b"base/5/1259", b"pg_tblspc/16386/5/1", b"pg_tblspc/16384/5/2")):
        pathlib.Path(os.fsdecode(found.place(path))).write_bytes(bytes(number))
    return found


def test_link(layout: PlainLayout) -> None:
    """The link leads to the tablespace wherever the backup is."""
    assert os.path.samefile(layout.link(16384), layout.tablespace(16384))
    assert not os.path.isabs(os.readlink(layout.link(16384)))


def test_walks(layout: PlainLayout) -> None:
    """Links are not followed and count as neither files nor directories."""
    assert set(layout.files()) == {
        (path, layout.place(path), size)
        for size, path in enumerate((b"base/5/1259", b"pg_tblspc/16386/5/1", b"pg_tblspc/16384/5/2"))
    }
    tops = [b"base", b"base/5", b"pg_tblspc"]
    assert layout.directories() == [
        *tops,
        *(b"pg_tblspc/%s" % name for name in (b"16384", b"16384/5", b"16386", b"16386/5")),
    ]
    assert b"pg_tblspc/16384" in [path for path, entry in layout.entries() if entry.is_symlink()]


def test_nothing_is_empty(tmp_path: pathlib.Path) -> None:
    assert list(PlainLayout(os.fsencode(tmp_path / "none")).entries()) == []


def test_unreadable(layout: PlainLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable directory must not pass for empty if there is no callback to report it."""
    real = os.scandir

    def scandir(path: bytes) -> object:
        if path.endswith(b"/16386"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(BackupError) as caught:
        list(layout.files())
    assert caught.value.code == "unreadable"
    errors: list[bytes] = []
    assert b"base/5/1259" in [path for path, _entry in layout.entries(lambda path, _exc: errors.append(path))]
    assert errors == [b"pg_tblspc/16386"]


def test_lost(layout: PlainLayout) -> None:
    pathlib.Path(os.fsdecode(layout.place(b"PG_VERSION"))).touch()
    assert layout.lost([b"base/5/1259", b"base/5/1"]) == [
        *(b"backup_label", b"backup_manifest", b"global/pg_control", b"base/5/1"),
    ]
