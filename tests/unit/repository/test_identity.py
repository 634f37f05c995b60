# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies among the backups and is not ours: named, and never touched."""

from __future__ import annotations

import os
import pathlib
import subprocess
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import activity_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.resume import Rules, find_unfinished
from ansible_collections.pgfleet.basebackup.plugins.module_utils._catalogue.listing import catalogue
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup, Cluster

from tests.unit.helpers.backups import FILES, files_below, make_backup, make_cluster
from tests.unit.helpers.errors import code_of

ROOT: t.Final = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount, or give a file to another user")


class Scene:
    """A cluster, and a live data directory next to the repository."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.cluster: Cluster = make_cluster(folder)
        self.live = folder / "live"
        (self.live / "global").mkdir(parents=True)
        (self.live / "global" / "pg_control").write_text("live")
        (self.live / "PG_VERSION").write_text("18")
        self.place = pathlib.Path(self.cluster.in_progress, "evil")

    def mark(self) -> None:
        """Give the live directory our mark, as an attacker can who may write somewhere in it."""
        make_backup(self.cluster, "b0")
        os.rename(pathlib.Path(self.cluster.in_progress, "b0", "backup.json"), self.live / "backup.json")
        subprocess.run(["rm", "-r", str(pathlib.Path(self.cluster.in_progress, "b0"))], check=True)


@pytest.fixture
def scene(tmp_path: pathlib.Path) -> Scene:
    return Scene(tmp_path)


def _link(scene: Scene) -> None:
    scene.mark()
    scene.place.symlink_to(scene.live)


def _file(scene: Scene) -> None:
    scene.place.write_text("")


def _no_mark(scene: Scene) -> None:
    subprocess.run(["cp", "-a", scene.live, scene.place], check=True)


def _linked(name: str) -> t.Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        backup = make_backup(scene.cluster, "evil")
        subprocess.run(["rm", "-rf", backup.file(name)], check=True)
        (scene.place / name).symlink_to(scene.live / ("" if name in ("session", "copy") else "standby.signal"))

    return make


def _owned(name: str) -> t.Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        make_backup(scene.cluster, "evil")
        os.lchown(scene.place / name, 65534, 65534)

    return make


def _writable(name: str) -> t.Callable[[Scene], None]:
    def make(scene: Scene) -> None:
        make_backup(scene.cluster, "evil")
        (scene.place / name).chmod(0o770)

    return make


def _mounted(scene: Scene) -> None:
    scene.mark()
    scene.place.mkdir(mode=0o700)
    subprocess.run(["mount", "--bind", scene.live, scene.place], check=True)


CASES: t.Final = {
    "link": (_link, "is a symbolic link"),
    "file": (_file, "not a directory"),
    "no mark": (_no_mark, "has no backup.json"),
    "writable": (_writable(""), "writable for other users"),
    "writable session": (_writable("session"), "session is writable"),
    "lock": (_linked("lock"), "lock is not a file"),
    "owner.json": (_linked("owner.json"), "owner.json is not a file"),
    "backup.json": (_linked("backup.json"), "backup.json is not a file"),
    "session": (_linked("session"), "session is not a directory"),
    "copy": (_linked("copy"), "copy is not a directory"),
    "another's": (_owned(""), "belongs to the user"),
    "another's record": (_owned("backup.json"), "backup.json belongs to the user"),
    "mount": (_mounted, "mount point"),
}


@pytest.mark.parametrize("name", [pytest.param(one, marks=ROOT if "another" in one or one == "mount" else ())
                                  for one in CASES])  # fmt: skip
def test_untouched(scene: Scene, name: str) -> None:
    """No step takes it for a backup, and removing it by name is refused."""
    make, reason = CASES[name]
    make(scene)
    try:
        before = files_below(scene.live), files_below(scene.place)
        assert scene.cluster.unfinished() == []
        found = find_unfinished(scene.cluster, Rules(resume=True))
        assert (found.backup, found.busy, list(found.dead)) == (None, None, [])
        assert len(found.warnings) == 1
        assert reason in found.warnings[0]
        entry = catalogue(scene.cluster.repository, "main", None, None)[0]
        assert [one["directory"] for one in entry["not_ours"]] == [str(scene.place)]
        for work in (lambda: scene.cluster.get("evil"), Backup(scene.cluster, "evil", published=False).remove):
            assert code_of(work) == "not_ours"
        assert (files_below(scene.live), files_below(scene.place)) == before
        assert not (scene.live / "standby.signal").exists()
    finally:
        if name == "mount":
            subprocess.run(["umount", scene.place], check=True)


def test_exchanged_for_a_link(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of the name after the backup was judged, the link's target stays."""
    backup = make_backup(scene.cluster, "evil")
    scene.mark()
    real, turns = os.open, iter(range(1000))

    def exchange(path: t.Any, *args: t.Any, **more: t.Any) -> int:
        # Right before each step that opens something, the last moment at which a name can be exchanged.
        if path == "evil" and not scene.place.is_symlink() and next(turns) == 1:
            os.rename(scene.place, scene.place.parent / "moved")
            scene.place.symlink_to(scene.live)
        return real(path, *args, **more)

    before = files_below(scene.live)
    monkeypatch.setattr(os, "open", exchange)
    with pytest.raises(OSError, match=r"evil|[Dd]irectory"):
        backup.remove()
    assert scene.place.is_symlink()
    assert files_below(scene.live) == before


def test_links_in_a_backup(scene: Scene) -> None:
    """Its own links are removed, and what they lead to stays."""
    backup = make_backup(scene.cluster, "evil")
    (scene.place / "data" / "base" / "link").symlink_to(scene.live)
    subprocess.run(["rm", "-r", scene.place / "tablespaces"], check=True)
    (scene.place / "tablespaces").symlink_to(scene.live)
    before = files_below(scene.live)
    backup.remove()
    assert not scene.place.exists()
    assert files_below(scene.live) == before


@ROOT
def test_mount_in_a_backup(scene: Scene) -> None:
    """Nothing is removed when something is mounted below, not even what lies beside it."""
    backup = make_backup(scene.cluster, "evil")
    place = scene.place / "data" / "base"
    subprocess.run(["mount", "--bind", scene.live, place], check=True)
    try:
        before = files_below(scene.place)
        assert code_of(backup.remove) == "not_ours"
        assert files_below(scene.place) == before
    finally:
        subprocess.run(["umount", place], check=True)
    backup.remove()


@pytest.mark.parametrize("content", ["{", '{"schema": 99}', '{"schema": 1}'], ids=["torn", "newer", "older"])
def test_unreadable_record(scene: Scene, content: str) -> None:
    """It may be another version's work, or whole but for a byte: a later run neither continues nor removes it."""
    backup = make_backup(scene.cluster, "evil")
    (scene.place / "backup.json").write_text(content)
    assert activity_of(backup).damaged
    found = find_unfinished(scene.cluster, Rules(resume=True))
    assert (found.backup, found.busy, list(found.dead)) == (None, None, [])
    assert "backup_abort" in found.warnings[0]
    assert files_below(scene.place) >= FILES
    backup.remove()
    assert not scene.place.exists()


def test_what_a_crash_left(scene: Scene) -> None:
    """Without a record it is a backup only when nothing else is in it."""
    scene.place.mkdir(mode=0o700)
    (scene.place / "backup.json.0123456789abcdef.tmp").touch()
    (scene.place / "lock").touch()
    found = find_unfinished(scene.cluster, Rules(resume=True))
    assert [backup.id for backup, _activity in found.dead] == ["evil"]
    found.dead[0][0].remove()
    assert not scene.place.exists()


def test_published(scene: Scene) -> None:
    make_backup(scene.cluster, "good", state="complete").publish()
    pathlib.Path(scene.cluster.backups, "evil").symlink_to("good")
    assert [one.id for one in scene.cluster.published()] == ["good"]
    assert code_of(lambda: scene.cluster.get("evil")) == "not_ours"
    os.chmod(pathlib.Path(scene.cluster.backups, "good", "backup.json"), 0o660)
    assert code_of(scene.cluster.get("good").load) == "damaged_backup"
