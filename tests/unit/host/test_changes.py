# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user can remove; with root's rights only attributes and mounts are in the way."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import changes as _changes


def test_nothing_is_in_the_way(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/link").symlink_to("/")
    place = os.fsencode(tmp_path)
    assert _changes.closed(place) is None
    assert list(_changes.obstacles(place)) == []
    assert list(_changes.obstacles(place + b"/absent")) == []


def test_a_directory_without_the_right_to_write(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named with what cures it: the owner's mode, or the owner."""
    inner = tmp_path / "it's"
    inner.mkdir(mode=0o500)
    (inner / "file").touch()
    monkeypatch.setattr(os, "access", lambda path, *_arguments, **_options: path == os.fsencode(tmp_path))
    (found,) = _changes.obstacles(os.fsencode(tmp_path))
    assert (found.path, found.why) == (os.fsencode(inner), f"has the mode {inner.stat().st_mode & 0o7777:04o}")
    assert found.cure == f"""chmod u+rwx '{tmp_path}/it'"'"'s'"""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    (found,) = _changes.obstacles(os.fsencode(tmp_path))
    assert found.why == f"belongs to the user {inner.stat().st_uid}, not 4711"


def test_sticky(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sticky directory of another user only the owner's files can be removed."""
    (tmp_path / "file").touch()
    tmp_path.chmod(0o1777)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(os, "access", lambda *_arguments, **_options: True)
    (found,) = _changes.obstacles(os.fsencode(tmp_path))
    assert found.path == os.fsencode(tmp_path / "file")


@pytest.mark.parametrize("flag, why", [("i", "is immutable"), ("a", "is append-only")])
def test_attributes(tmp_path: pathlib.Path, flag: str, why: str) -> None:
    place = tmp_path / "file"
    place.touch()
    try:
        subprocess.run(["chattr", f"+{flag}", place], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user or this file system cannot set attributes")
    try:
        (found,) = _changes.obstacles(os.fsencode(tmp_path))
    finally:
        subprocess.run(["chattr", f"-{flag}", place], check=True)
    assert (found.why, found.cure) == (why, f"chattr -{flag} {place}")
    assert list(_changes.obstacles(os.fsencode(tmp_path))) == []
