# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive's directory and its script: planned, made, and left alone when they are as they should be."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.place import Place, unusable

SCRIPT = pathlib.Path(__file__).resolve().parents[3] / "plugins/module_utils/_wal/pgfleet_wal.py"


def mode(path: pathlib.Path) -> int:
    return path.stat().st_mode & 0o7777


def test_made_once(tmp_path: pathlib.Path) -> None:
    home = tmp_path / "main"
    planned = Place(str(home), str(home / "wal"))
    assert list(planned.changes) == [str(home), str(home / "wal"), str(home / "pgfleet_wal.py")]
    assert not home.exists()
    first, _second, script = planned.diff()
    assert (first["before"], first["after"]) == ("absent\n", "mode 0700\n")
    assert script["after"] == "mode 0700\n" + SCRIPT.read_text()
    planned.make()
    assert [mode(home), mode(home / "wal"), mode(home / "pgfleet_wal.py")] == [0o700] * 3
    assert (home / "pgfleet_wal.py").read_text() == SCRIPT.read_text()
    assert Place(str(home), str(home / "wal")).changes == {}


def test_only_what_differs(tmp_path: pathlib.Path) -> None:
    """An older script is replaced, a mode corrected; that of an existing archive is its owner's decision."""
    home, archive = tmp_path / "main", tmp_path / "far" / "wal"
    Place(str(home), str(archive)).make()
    archive.chmod(0o770)
    assert Place(str(home), str(archive)).changes == {}
    (home / "pgfleet_wal.py").write_text("old\n")
    (change,) = Place(str(home), str(archive)).diff()
    assert change["before"] == "mode 0700\nold\n"
    home.chmod(0o755)
    again = Place(str(home), str(archive))
    assert list(again.changes) == [str(home), str(home / "pgfleet_wal.py")]
    again.make()
    assert Place(str(home), str(archive)).changes == {}
    assert mode(archive) == 0o770


@pytest.mark.parametrize("link", [False, True])
def test_no_mode_of_a_file(tmp_path: pathlib.Path, link: bool) -> None:
    """A file in the place of the archive, or a link to one, keeps its mode."""
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o640)
    archive = file
    if link:
        archive = tmp_path / "wal"
        archive.symlink_to(file)
    with pytest.raises(FileExistsError):
        Place(str(tmp_path / "main"), str(archive)).make()
    assert mode(file) == 0o640


def test_a_link_to_a_directory(tmp_path: pathlib.Path) -> None:
    far, home = tmp_path / "far", tmp_path / "main"
    far.mkdir(0o755)
    home.symlink_to(far)
    Place(str(home), str(home / "wal")).make()
    assert mode(far) == 0o700


def test_unusable(tmp_path: pathlib.Path) -> None:
    assert unusable(str(tmp_path)) is unusable(str(tmp_path / "absent")) is None
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o640)
    reason = unusable(str(file))
    assert reason is not None
    assert "mode 0640" in reason
    assert "cannot be entered" in str(unusable(str(file / "below")))
