# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attacks through a repository that others could once write to: each ends in a refusal, and the live server lives."""

from __future__ import annotations

import os
import pathlib
import shlex
import subprocess
import typing as t

import pytest

from tests.harness.modules import Modules
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.harness.user import ServerUser, own_directory, own_file, run
from tests.integration.helpers.files import untouched
from tests.integration.helpers.leftovers import all_is_well, command_line, processes
from tests.integration.helpers.source import Source
from tests.integration.helpers.steps import Steps

ROOT: t.Final = pytest.mark.skipif(os.geteuid() != 0, reason="needs a second account")
# Another member of the repository's group.
OTHER: t.Final = ServerUser("", 65533, 65533)


class Scene:
    """A repository with one backup, and the attacker's means."""

    def __init__(self, sandbox: Sandbox, primary: Server, modules: Modules, repository: pathlib.Path) -> None:
        self.sandbox = sandbox
        self.primary = primary
        self.modules = modules
        self.repository = repository
        self.cluster = repository / "main"

    def steps(self, name: str) -> Steps:
        """Return the steps of a backup."""
        return Steps(self.modules, self.primary, name)

    def alive(self) -> None:
        """Require that the live server has its files and answers."""
        assert self.primary.value("SELECT count(*) FROM pg_class") > 0
        self.primary.sql("CHECKPOINT")
        for name in ("PG_VERSION", "global/pg_control", "base", "pg_wal"):
            assert (self.primary.data / name).exists(), name
        assert not (self.primary.data / "standby.signal").exists()


@pytest.fixture
def scene(sandbox: Sandbox, primary: Server, modules: Modules, repository: pathlib.Path) -> t.Iterator[Scene]:
    """The scene after one backup; the live server must have survived the attack."""
    scene = Scene(sandbox, primary, modules, repository)
    scene.steps("first").whole()
    yield scene
    scene.alive()


def test_link_to_the_live_data_directory(scene: Scene) -> None:
    """The next backup and backup_abort leave it alone, even when the target carries a record like ours."""
    evil = scene.cluster / "in_progress" / "evil"
    record = (scene.cluster / "backups" / "first" / "backup.json").read_text()
    for text in (None, "{", record.replace('"first"', '"evil"').replace('"complete"', '"started"')):
        mark = scene.primary.data / "backup.json"
        if text is not None:
            mark.write_text(text)
        evil.symlink_to(scene.primary.data)
        before = set(os.listdir(scene.primary.data))
        for check in (True, False):
            refused = scene.modules.fails("backup_abort", backup_id="evil", check=check)
            assert (refused["code"], str(evil) in refused["msg"]) == ("not_ours", True)
        for keep in (True, False):
            assert scene.modules.fails("backup_abort", backup_id="evil", keep=keep)["code"] == "not_ours"
        for name in ("backup_start", "backup_copy", "backup_stop", "backup_publish", "backup_verify"):
            arguments = {"proof": {}} if name == "backup_publish" else {}
            assert scene.modules.fails(name, backup_id="evil", **arguments)["code"] == "not_ours", name
        started = scene.modules.ok("backup_start", fast=True, resume=True, owner="me", concurrent="allow")
        assert any("evil" in str(text) for text in started["warnings"])
        assert scene.modules.ok("backup_abort", backup_id=started["backup_id"])["changed"]
        info = scene.modules.ok("backup_info")["clusters"][0]
        assert ([one["directory"] for one in info["not_ours"]], info["unfinished"]) == ([str(evil)], [])
        assert set(os.listdir(scene.primary.data)) == before
        scene.alive()
        evil.unlink()
        mark.unlink(missing_ok=True)
    all_is_well(scene.sandbox, scene.repository, scene.primary)


@pytest.mark.parametrize("name", ["lock", "owner.json", "session", "copy", "data"])
def test_links_in_an_unfinished_backup(scene: Scene, name: str) -> None:
    """A lock that is a link made a standby.signal, and a data that is a link lost its files to a resumed copy."""
    steps = scene.steps("second")
    steps.start()
    steps.ok("backup_copy")
    place = steps.work / name
    moved = scene.sandbox.root / "moved"
    place.rename(moved) if place.exists() else None
    live = scene.primary.data
    place.symlink_to(live / "standby.signal" if name in ("lock", "owner.json") else live)
    before = set(os.listdir(live))
    for module in ("backup_copy", "backup_stop"):
        refused = scene.modules.run(module, backup_id="second")
        assert refused.get("failed") or not refused["changed"], (module, refused)
    scene.modules.run("backup_start", fast=True, resume=True, owner="me", takeover_after="1s")
    assert set(os.listdir(live)) == before
    scene.alive()
    place.unlink()
    moved.rename(place) if moved.exists() else None
    for one in scene.modules.ok("backup_info")["clusters"][0]["unfinished"]:
        scene.modules.ok("backup_abort", backup_id=one["backup_id"])
    assert set(os.listdir(live)) == before


@ROOT
def test_bind_mount_of_the_live_data_directory(scene: Scene) -> None:
    """A bind mount has the device of the live directory, its owner and mode: only the mount's number differs."""
    evil = own_directory(scene.cluster / "in_progress" / "evil")
    (scene.primary.data / "backup.json").write_text("{}")
    subprocess.run(["mount", "--bind", scene.primary.data, evil], check=True)
    try:
        assert scene.modules.fails("backup_abort", backup_id="evil")["code"] == "not_ours"
        scene.steps("second").whole(resume=True, owner="me")
        scene.alive()
    finally:
        subprocess.run(["umount", evil], check=True)


@ROOT
@pytest.mark.parametrize("name", ["", "main", "main/in_progress", "main/backups", "main/wal"])
def test_group_member_in_the_repository(scene: Scene, name: str) -> None:
    """Everything that another member of the group can write to, or has made, is refused with a command."""
    place = scene.repository / name
    place.mkdir(exist_ok=True)
    owner = scene.repository.stat()
    os.chown(place, owner.st_uid, OTHER.gid)
    place.chmod(0o770)
    with untouched(scene.repository):
        for check in (True, False):
            for module, more in (("backup_start", {}), ("backup_verify", {"backup_id": "first"})):
                refused = scene.modules.fails(module, check=check, **more)
                assert (refused["code"], refused["hint"]) == ("unsafe_directory", f"chmod go-w {place}")
    run(shlex.split(refused["hint"]), user=ServerUser("", 0, 0))
    if name:
        os.chown(place, OTHER.uid, OTHER.gid)
        refused = scene.modules.fails("backup_start")
        assert (refused["code"], str(place) in refused["hint"]) == ("unsafe_directory", True)
        os.chown(place, owner.st_uid, owner.st_gid)
    scene.steps("second").whole()


@ROOT
def test_parent_of_the_repository(scene: Scene) -> None:
    """Who can rename the repository can put another in its place."""
    refused_by = scene.repository.parent
    refused_by.chmod(0o777)
    refused = scene.modules.fails("backup_start")
    assert (refused["code"], refused["hint"]) == ("unsafe_directory", f"chmod go-w {refused_by}")
    refused_by.chmod(0o700)


def test_no_code_from_the_repository(scene: Scene) -> None:
    """The session's program is not in the repository, and no process runs a file of it; its folder only names it."""
    steps = scene.steps("second")
    steps.start()
    line = command_line(steps.keeper)
    assert str(steps.work / "session") in line
    assert not list(scene.repository.rglob("*.py"))
    for pid in processes():
        for word in command_line(pid).split():
            assert not (word.startswith(str(scene.repository)) and os.path.isfile(word)), command_line(pid)
    scene.modules.ok("backup_abort", backup_id="second")


@pytest.mark.parametrize("content", ["{", "newer"])
def test_damaged_unfinished_record(scene: Scene, content: str) -> None:
    """It is neither continued nor removed by the next run; backup_abort removes it."""
    steps = scene.steps("second")
    steps.start()
    steps.ok("backup_copy")
    record = steps.work / "backup.json"
    record.write_text(record.read_text().replace('"schema": 2', '"schema": 99') if content == "newer" else content)
    files = sorted((steps.work / "data").rglob("*"))
    third = scene.modules.ok("backup_start", fast=True, resume=True, owner="me", takeover_after="1s")
    assert (third["changed"], third["resumed"]) == (True, False)
    assert any("second" in str(text) and "backup_abort" in str(text) for text in third["warnings"])
    assert sorted((steps.work / "data").rglob("*")) == files
    for name in ("second", third["backup_id"]):
        assert scene.modules.ok("backup_abort", backup_id=name)["state"] == "absent"
    assert not steps.work.exists()


# -- a copy that is restored from it ----------------------------------------------------------------------------


@pytest.fixture
def source(sandbox: Sandbox, major: int) -> Source:
    """A primary with a published backup, in a repository like that of the role."""
    source = Source(sandbox, major)
    source.backup()
    source.archived()
    return source


def test_script_beside_the_archive(source: Source) -> None:
    """Whoever put a pgfleet_wal.py there: neither the restore nor the restored server runs it."""
    witness = source.sandbox.root / "witness"
    planted = [folder / "pgfleet_wal.py" for folder in (source.cluster, source.archive.parent, source.archive)]
    for place in planted:
        own_file(place, f"open({str(witness)!r}, 'w').close()\n", 0o755)
    with source.copy() as copy:
        assert copy.value("SELECT count(*) FROM pg_class") > 0
        text = (copy.data / "postgresql.auto.conf").read_text()
        assert not [str(place) for place in planted if str(place) in text]
    assert not witness.exists()


@pytest.mark.parametrize("file", ["backup.json", "pg_control", "cluster.json"])
def test_foreign_backups(source: Source, file: str) -> None:
    """A newer backup of another cluster among ours is named by each look and never taken for the latest one."""
    theirs = source.sandbox.primary(source.major, name="other", initdb=["--wal-segsize=1"])
    foreign = Modules(theirs, as_server=True, repository=str(source.sandbox.directory("elsewhere")), cluster="main")
    steps = Steps(foreign, theirs, "theirs")
    steps.whole()
    moved = source.cluster / "backups" / "theirs"
    run(["cp", "-a", steps.published, moved])
    identifier, other = source.server.system_identifier, theirs.system_identifier
    record = moved / "backup.json"
    if file == "pg_control":
        # Now only pg_control says whose it is.
        record.write_text(record.read_text().replace(other, identifier))
    modules = source.modules()
    info = modules.ok("backup_info", max_age="1h", system_identifier=identifier)["clusters"][0]
    states = {one["backup_id"]: one["state"] for one in info["backups"]}
    assert (states, info["newest"]) == ({"one": "published", "theirs": "damaged"}, "one")
    assert other in next(one["problem"] for one in info["backups"] if one["backup_id"] == "theirs")
    latest = modules.ok("backup_verify")
    assert latest["backup_id"] == "one"
    assert any(other in str(warning) and "passed over" in str(warning) for warning in latest["warnings"])
    named = modules.fails("backup_verify", backup_id="theirs")
    assert (named["code"], other in named["msg"]) == ("damaged_backup", True)
    place = source.place()
    assert source.restored(place, check=True)["backup_id"] == "one"
    source.refused(place, "other_cluster", "damaged_backup", "bad_segment", backup_id="theirs")
    if file == "cluster.json":
        cluster = source.cluster / "cluster.json"
        cluster.write_text(cluster.read_text().replace(identifier, other))
        source.refused(place, "other_cluster", "damaged_backup", backup_id="one")
        assert modules.fails("backup_start", fast=True)["code"] == "other_cluster"
        source.server.stop()
        with untouched(source.server.data):
            source.refused(
                source.server, "other_cluster", "damaged_backup", "no_backup", "bad_segment",
                data_directory=str(source.server.data), delta=True, restore_as="primary", port=None,
            )  # fmt: skip
        source.server.start()


def test_archive_that_others_can_write_to(source: Source) -> None:
    """Who plants WAL there decides what the restored server replays."""
    place = source.place()
    source.archive.chmod(0o770)
    refused = source.refused(place, "unsafe_directory")
    assert f"chmod go-w {source.archive}" in refused["msg"]
    source.archive.chmod(0o700)
    link = source.sandbox.root / "link"
    link.symlink_to(source.archive)
    source.refused(place, "unsafe_directory", archive_directory=str(link))
    source.restored(place)


def test_where_the_script_is_installed(source: Source) -> None:
    """Not in the repository, and not where another user can change what the server will run."""
    open_to_group = source.sandbox.directory("open", 0o770)
    linked = source.sandbox.root / "linked"
    linked.symlink_to(source.sandbox.directory("scripts"))
    for scripts, code in (
        (source.cluster, "bad_script_directory"),
        (source.repository / "scripts", "bad_script_directory"),
        (source.server.data / "scripts", "bad_script_directory"),
        (open_to_group, "unsafe_directory"),
        (open_to_group / "scripts", "unsafe_directory"),
        (linked, "unsafe_directory"),
    ):
        with untouched(source.repository, open_to_group):
            for check in (True, False):
                found = source.modules().run(
                    "wal_archiving", check=check, method="script", script_directory=str(scripts)
                )
                assert [one["code"] for one in found["problems"]] == [code], (scripts, found)
        assert not list(source.sandbox.root.glob("scripts/*"))
