# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The scratch directory of a drill: other files stay, and the next run removes the remains of a crash."""

from __future__ import annotations

import os
import pathlib
import stat
import tempfile
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._drill import scratch as _drill_scratch
from ansible_collections.pgfleet.basebackup.plugins.module_utils._drill.scratch import MARKER, Scratch
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

from tests.unit.helpers.backups import files_below
from tests.unit.helpers.crashes import crashes
from tests.unit.helpers.processes import held_by_another_process


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: the tests crash processes, not machines."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def sockets() -> t.Iterator[pathlib.Path]:
    """A directory with a short path: a test's own may be too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="pgd-", dir="/tmp") as path:
        yield pathlib.Path(path)


def restored(scratch: Scratch) -> None:
    """Fill the directory as a restore does; the tablespace of the source is outside."""
    for name in ("data/global", "data/pg_tblspc", "tablespaces/16385"):
        pathlib.Path(scratch.file(*name.split("/"))).mkdir(parents=True)
    for name in ("data/global/pg_control", "data/tablespace_map", "tablespaces/16385/1"):
        pathlib.Path(scratch.file(*name.split("/"))).write_text("x")
    live = pathlib.Path(scratch.path).parent / "live"
    live.mkdir()
    (live / "rows").write_text("live")
    os.symlink(live, scratch.file("data", "pg_tblspc", "16386"))


def test_made_sealed_and_removed(tmp_path: pathlib.Path, sockets: pathlib.Path) -> None:
    scratch = Scratch(str(tmp_path), "main")
    socket = pathlib.Path(scratch.make("mine", "me", str(sockets)))
    assert socket.parent == sockets
    for directory in (socket, pathlib.Path(scratch.path)):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert all(os.path.isfile(scratch.places()[name]) for name in ("config_file", "hba_file", "ident_file"))
    restored(scratch)
    assert (scratch.seal(), scratch.seal()) == (True, False)
    assert not os.path.exists(scratch.file("data", "tablespace_map"))
    assert stat.S_IMODE(os.stat(scratch.file("data", "pg_tblspc")).st_mode) == 0o500

    before = files_below(tmp_path)
    assert scratch.remove("another") is False
    assert scratch.remove("mine", check_mode=True) is True
    assert files_below(tmp_path) == before
    assert scratch.remove("mine") is True
    assert files_below(tmp_path) == {"live/rows"}
    assert list(sockets.iterdir()) == []
    assert scratch.remove("mine") is scratch.remove(None) is False


def test_a_later_run_takes_over(tmp_path: pathlib.Path, sockets: pathlib.Path) -> None:
    scratch = Scratch(str(tmp_path), "main")
    scratch.make("first", "me", str(sockets))
    restored(scratch)
    scratch.make("second", "me", str(sockets))
    assert not os.path.exists(scratch.data)
    assert len(list(sockets.iterdir())) == 1
    # If the first run resumes, it leaves the directory alone.
    assert scratch.remove("first") is False
    assert scratch.remove("second") is True


@pytest.mark.parametrize("what", ["file", "link", "no marker", "damaged marker", "list"])
def test_not_ours(tmp_path: pathlib.Path, sockets: pathlib.Path, what: str) -> None:
    scratch = Scratch(str(tmp_path), "main")
    place = pathlib.Path(scratch.path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("x")
    if what == "file":
        place.write_text("x")
    elif what == "link":
        (other / MARKER).write_text('{"run": "mine"}')
        place.symlink_to(other)
    else:
        place.mkdir()
        (place / "precious").write_text("x")
        if what != "no marker":
            (place / MARKER).write_text("{" if what == "damaged marker" else "[]")
    before = files_below(tmp_path)
    for work in (lambda: scratch.make("mine", "me", str(sockets)), lambda: scratch.remove("mine")):
        with pytest.raises(BackupError) as caught:
            work()
        assert caught.value.code == "not_a_drill"
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("socket", ["precious", "pgdrill.precious"])
def test_a_socket_directory_that_is_not_ours(tmp_path: pathlib.Path, sockets: pathlib.Path, socket: str) -> None:
    """Another user may have taken the name, or there may be a link."""
    scratch = Scratch(str(tmp_path), "main")
    scratch.make("mine", "me", str(sockets))
    other = tmp_path / "other"
    other.mkdir()
    (other / "rows").write_text("x")
    (sockets / socket).symlink_to(other)
    marker = pathlib.Path(scratch.file(MARKER))
    marker.write_text(marker.read_text().replace(next(sockets.glob("pgdrill.????????")).name, socket))
    assert scratch.remove("mine") is True
    assert (other / "rows").exists()


def test_a_running_restore_is_ended(tmp_path: pathlib.Path, sockets: pathlib.Path) -> None:
    """The restore's process outlives the run and would write into the directory during its removal."""
    scratch = Scratch(str(tmp_path), "main")
    scratch.make("first", "me", str(sockets))
    work = pathlib.Path(scratch.file("data", "pgfleet_restore"))
    work.mkdir(parents=True)
    with held_by_another_process(work / "lock") as pid:
        scratch.make("second", "me", str(sockets))
        assert pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    assert not os.path.exists(scratch.data)


@pytest.mark.parametrize(("directory", "cluster"), [("relative", "main"), ("/no/where", "main"), ("/tmp", "../etc")])
def test_bad_place(directory: str, cluster: str) -> None:
    with pytest.raises(BackupError) as caught:
        Scratch(directory, cluster)
    assert caught.value.code in ("bad_path", "bad_name")


def test_path_too_long_for_a_socket(tmp_path: pathlib.Path) -> None:
    scratch = Scratch(str(tmp_path), "main")
    with pytest.raises(BackupError) as caught:
        scratch.make("mine", "me", "/tmp/" + "x" * 80)
    assert caught.value.code == "bad_path"
    assert not os.path.exists(scratch.path)


def test_crash_while_making(tmp_path: pathlib.Path, sockets: pathlib.Path) -> None:
    def prepare(folder: pathlib.Path) -> Scratch:
        (sockets / folder.name).mkdir()
        return Scratch(str(folder), "main")

    def parent(scratch: Scratch) -> pathlib.Path:
        return sockets / pathlib.Path(scratch.path).parent.name

    for where, scratch in crashes(tmp_path, prepare, lambda scratch: scratch.make("first", "me", str(parent(scratch)))):
        scratch.make("second", "me", str(parent(scratch)))
        assert scratch.remove("second") is True, where
        assert list(parent(scratch).iterdir()) == [], where


def test_crash_while_removing(tmp_path: pathlib.Path, sockets: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No server runs here, and each look for one reads all of /proc.
    monkeypatch.setattr(_drill_scratch._pg_ctl, "stop", lambda *_: None)

    def prepare(folder: pathlib.Path) -> Scratch:
        scratch = Scratch(str(folder), "main")
        scratch.make("first", "me", str(sockets))
        restored(scratch)
        return scratch

    for where, scratch in crashes(tmp_path, prepare, lambda scratch: scratch.remove("first")):
        scratch.remove(None)
        assert not os.path.exists(scratch.path), where
        assert list(sockets.iterdir()) == [], where
        assert files_below(pathlib.Path(scratch.path).parent) == {"live/rows"}, where


def test_directories_that_are_not_a_drills(tmp_path: pathlib.Path, sockets: pathlib.Path) -> None:
    """A link in it could lead to a live server, which the removal would stop; others must not exchange it."""
    scratch = Scratch(str(tmp_path), "main")
    scratch.make("first", "me", str(sockets))
    live = tmp_path / "live"
    live.mkdir()
    os.symlink(live, scratch.data)
    with pytest.raises(BackupError) as caught:
        scratch.remove("first")
    assert caught.value.code == "not_a_drill"
    os.unlink(scratch.data)
    marker = pathlib.Path(scratch.file(MARKER))
    good = marker.read_text()
    for content in ("{", "[]", '{"run": 1, "by": "x", "socket_directory": "/tmp"}', '{"run": "first"}'):
        marker.write_text(content)
        with pytest.raises(BackupError) as caught:
            scratch.remove("first")
        assert caught.value.code == "not_a_drill", content
    marker.write_text(good)
    tmp_path.chmod(0o770)
    with pytest.raises(BackupError) as caught:
        Scratch(str(tmp_path), "main")
    assert caught.value.code == "unsafe_directory"
    tmp_path.chmod(0o700)
    assert scratch.remove("first")
