# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directory trees: removed without following links."""

from __future__ import annotations

import os
import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import trees as _trees


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """A tree with a link to a directory outside."""
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "b" / "file").write_text("12345")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("kept")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "other")
    return tmp_path / "tree"


def test_walked(tree: pathlib.Path) -> None:
    top = os.fsencode(tree)
    found = list(_trees.walk(top))
    assert found == [(top, []), (top + b"/a", []), (top + b"/a/b", [(top + b"/a/b/file", 5)])]
    assert list(_trees.walk(top + b"/absent")) == []


def test_flushed(tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file and directory once; a link's target is not part of the tree."""
    log = tree.parent / "log"

    def note(path: bytes) -> None:
        with log.open("ab") as stream:
            stream.write(path + b"\n")

    monkeypatch.setattr(_trees, "sync_path", note)
    _trees.sync_tree(os.fsencode(tree), jobs=1, check=lambda: None)
    places = [str(tree / "a/b/file"), str(tree / "a/b"), str(tree / "a"), str(tree)]
    assert log.read_text().splitlines() == places


def test_removed(tree: pathlib.Path) -> None:
    _trees.remove(str(tree / "link"))
    assert not os.path.lexists(tree / "link")
    (tree / "link").symlink_to(tree.parent / "other")
    _trees.remove(os.fsencode(tree))
    assert not tree.exists()
    assert (tree.parent / "other" / "file").read_text() == "kept"
    _trees.remove(str(tree))
    _trees.discard(str(tree))
    _trees.remove(str(tree.parent / "other" / "file"))
    assert os.listdir(tree.parent / "other") == []
