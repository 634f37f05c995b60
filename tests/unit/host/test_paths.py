# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which paths are the same directory, which path contains which, where mounts are."""

from __future__ import annotations

import os
import pathlib

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import paths as _paths


def test_the_same_directory(tmp_path: pathlib.Path) -> None:
    """Any path to a directory is the same; a path that cannot be read equals none, not even itself."""
    (tmp_path / "link").symlink_to(tmp_path)
    here = _paths.identity(str(tmp_path))
    assert _paths.same(here, _paths.identity(os.fsencode(tmp_path / "link")))
    assert not _paths.same(here, _paths.identity(str(tmp_path.parent)))
    unknown = _paths.identity(str(tmp_path / "absent"))
    assert unknown is None
    assert not _paths.same(unknown, unknown)
    assert not _paths.same(here, unknown)
    assert not _paths.same(unknown, here)


def test_inside() -> None:
    assert _paths.inside(b"/a/b", b"/a")
    assert _paths.inside(b"/a", b"/a")
    assert _paths.inside(b"/a", b"/")
    assert not _paths.inside(b"/ab", b"/a")


def test_nearest(tmp_path: pathlib.Path) -> None:
    place = os.fsencode(tmp_path)
    assert _paths.nearest(place + b"/x/y") == place
    assert _paths.nearest(place) == place


def test_mounts() -> None:
    assert b"/proc" in _paths.mounts_below(b"/")
    assert _paths.mounts_below(b"/proc/self/nothing") == set()


def test_the_spot_of_a_directory(tmp_path: pathlib.Path) -> None:
    """A link, and a directory that does not exist yet, have the spot of what they lead to."""
    place = os.fsencode(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    here, below = _paths.spot_of(place), _paths.spot_of(place + b"/link/absent/x")
    assert here is not None
    assert below == _paths.Spot(here.device, here.path.rstrip(b"/") + b"/absent/x")
    assert _paths.overlap(here, below)
    assert _paths.overlap(below, here)
    assert not _paths.overlap(below, _paths.spot_of(place + b"/absent/y"))
    assert _paths.spot_of(b"/proc") != _paths.spot_of(b"/")
    assert not _paths.overlap(_paths.spot_of(b"/proc"), _paths.spot_of(b"/"))
    assert not _paths.overlap(None, None)


def test_a_path_in_another_root(tmp_path: pathlib.Path) -> None:
    """Absolute links stay in that root, and circles end."""
    root = os.fsencode(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/up").symlink_to("/b/../c")
    (tmp_path / "round").symlink_to("round")
    assert _paths.within(root, b"/a/up/x") == root + b"/c/x"
    assert _paths.within(root, b"/../../a/./x") == root + b"/a/x"
    assert _paths.within(root, b"/round/x").startswith(root)
