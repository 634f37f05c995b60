# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive's directory and its script: planned, made, and left alone when they are as they should be."""

from __future__ import annotations

import os
import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.place import Place, refuse_scripts, unusable

from tests.unit.helpers.errors import code_of

SCRIPT = pathlib.Path(__file__).resolve().parents[3] / "plugins/module_utils/_wal/pgfleet_wal.py"


def mode(path: pathlib.Path) -> int:
    return path.stat().st_mode & 0o7777


def test_made_once(tmp_path: pathlib.Path) -> None:
    home = tmp_path / "main"
    planned = Place(str(home), str(home / "wal"), str(tmp_path / "scripts"))
    scripts = tmp_path / "scripts"
    assert list(planned.changes) == [str(home), str(scripts), str(home / "wal"), str(scripts / "pgfleet_wal.py")]
    assert not home.exists()
    first, *_others, script = planned.diff()
    assert (first["before"], first["after"]) == ("absent\n", "mode 0700\n")
    assert script["after"] == "mode 0700\n" + SCRIPT.read_text()
    planned.make()
    made = [home, home / "wal", scripts, scripts / "pgfleet_wal.py"]
    assert [mode(path) for path in made] == [0o700] * 4
    assert (scripts / "pgfleet_wal.py").read_text() == SCRIPT.read_text()
    assert Place(str(home), str(home / "wal"), str(tmp_path / "scripts")).changes == {}


def test_only_what_differs(tmp_path: pathlib.Path) -> None:
    """An older script is replaced, a mode corrected; that of an existing archive is its owner's decision."""
    home, archive = tmp_path / "main", tmp_path / "far" / "wal"
    Place(str(home), str(archive), str(tmp_path / "scripts")).make()
    archive.chmod(0o770)
    assert Place(str(home), str(archive), str(tmp_path / "scripts")).changes == {}
    script = tmp_path / "scripts" / "pgfleet_wal.py"
    script.write_text("old\n")
    (change,) = Place(str(home), str(archive), str(tmp_path / "scripts")).diff()
    assert change["before"] == "mode 0700\nold\n"
    home.chmod(0o755)
    again = Place(str(home), str(archive), str(tmp_path / "scripts"))
    assert list(again.changes) == [str(home), str(script)]
    again.make()
    assert Place(str(home), str(archive), str(tmp_path / "scripts")).changes == {}
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
        Place(str(tmp_path / "main"), str(archive), str(tmp_path / "scripts")).make()
    assert mode(file) == 0o640


def test_a_link_to_a_directory(tmp_path: pathlib.Path) -> None:
    far, home = tmp_path / "far", tmp_path / "main"
    far.mkdir(0o755)
    home.symlink_to(far)
    Place(str(home), str(home / "wal"), str(tmp_path / "scripts")).make()
    assert mode(far) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_script_of_another_user(tmp_path: pathlib.Path) -> None:
    """With the right content and mode its owner could still change it."""
    place = Place(str(tmp_path / "main"), str(tmp_path / "wal"), str(tmp_path / "scripts"))
    place.make()
    os.chown(place.script, 65534, 65534)
    again = Place(str(tmp_path / "main"), str(tmp_path / "wal"), str(tmp_path / "scripts"))
    assert list(again.changes) == [place.script]
    again.make()
    assert os.stat(place.script).st_uid == 0


def test_where_the_script_may_be(tmp_path: pathlib.Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir(mode=0o700)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o770)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(repository)
    for scripts, code in (
        ("", "bad_script_directory"),
        ("scripts", "bad_script_directory"),
        (f"{repository}", "bad_script_directory"),
        (f"{repository}/main", "bad_script_directory"),
        (f"{tmp_path}/link/main", "bad_script_directory"),
        (f"{tmp_path}/link", "unsafe_directory"),
        (f"{tmp_path}/open", "unsafe_directory"),
        (f"{tmp_path}/open/scripts", "unsafe_directory"),
        (f"{tmp_path}/file", "bad_script_directory"),
    ):
        assert code_of(lambda: refuse_scripts(scripts, [str(repository)])) == code, scripts  # noqa: B023  # called now
    refuse_scripts(f"{tmp_path}/a/b", [str(repository)])


def test_unusable(tmp_path: pathlib.Path) -> None:
    assert unusable(str(tmp_path)) is unusable(str(tmp_path / "absent")) is None
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o640)
    reason = unusable(str(file))
    assert reason is not None
    assert "mode 0640" in reason
    assert "cannot be entered" in str(unusable(str(file / "below")))
