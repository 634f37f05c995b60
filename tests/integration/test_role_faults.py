# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults while the role runs: archive, files, session, controller, and another play at the same time."""

from __future__ import annotations

import os
import pathlib
import signal

import pytest

from tests.harness.checks import verifybackup
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_file
from tests.integration.helpers.files import content
from tests.integration.helpers.leftovers import all_is_well
from tests.integration.helpers.plays import RoleHosts, held_copy, message, told


@pytest.fixture
def fleet(sandbox: Sandbox) -> RoleHosts:
    """A repository, without hosts yet."""
    return RoleHosts(sandbox)


def events(play_events: list[dict[str, object]], module: str) -> dict[str, object]:
    """Return the result of the only task that ran ``module``."""
    (event,) = [one for one in play_events if str(one["action"]).endswith(module) and one["outcome"] != "skipped"]
    result = event["result"]
    assert isinstance(result, dict)
    return result


def inodes(backup: pathlib.Path) -> dict[pathlib.Path, int]:
    """Return the files of the copy with the attributes that change if they are rewritten."""
    data = backup / "data"
    return {path.relative_to(data): path.stat().st_ino for path in data.rglob("*") if path.is_file()}


@pytest.mark.majors(15, 18)
def test_archive_and_files_fail_on_some_hosts(sandbox: Sandbox, fleet: RoleHosts, major: int) -> None:
    """Each failure names host, backup, task and cause; the third host continues; the next run repairs everything."""
    servers = [sandbox.primary(major, name=name) for name in ("late", "unreadable", "good")]
    late, unreadable = servers[:2]
    assert late.archive is not None
    mark = late.archive.with_suffix(".broken")
    hook = fleet.tasks("break", {"ansible.builtin.file": {"path": str(mark), "state": "touch", "mode": "0600"}})
    secret = own_file(unreadable.data / "base/1/not_for_you", "x", mode=0)
    hosts = {server.name: fleet.host(server) for server in servers}
    hosts["late"].update(pg_backup_hook_before_stop=hook, pg_backup_archive_timeout=3)
    play = fleet.run(hosts)
    assert play.rc != 0
    (kept,) = fleet.unfinished("late")
    text = message(play, "late")
    assert f"late: the backup {kept.name} of the cluster late failed at" in text
    assert "Wait until the WAL is archived" in text
    assert content(kept)["required_wal"][-1] in text
    assert "was not archived within 3 s" in text
    assert "It is stopped and kept; the next run continues it." in text
    assert content(kept)["state"] == "stopped"
    text = message(play, "unreadable")
    assert "unreadable: the backup 2" in text
    assert "Copy the files" in text
    assert "base/1/not_for_you" in text
    assert "ermission denied" in text
    assert "was given up" in text
    assert fleet.published("unreadable") == fleet.unfinished("unreadable") == []
    assert fleet.one("good")
    assert "not_for_you" not in message(play, "late")

    late.break_archive(False)
    secret.unlink()
    hosts["late"]["pg_backup_hook_before_stop"] = ""
    again = fleet.run(hosts).ok()
    assert fleet.one("late").name == kept.name
    assert fleet.one("unreadable")
    assert again.stats["good"]["changed"] == 0
    all_is_well(sandbox, fleet.repository, *servers)


@pytest.mark.parametrize("victim", ["controller", "group", "group and copy"])
def test_controller_is_killed(sandbox: Sandbox, fleet: RoleHosts, primary: Server, victim: str) -> None:
    """The same play again finishes the same backup with the files copied so far."""
    with held_copy(fleet, "db", primary) as copying:
        copied = inodes(copying.backup)
        copying.play.signal(signal.SIGKILL, group=victim != "controller")
        if victim.endswith("copy"):
            os.killpg(copying.process, signal.SIGKILL)
        copying.play.process.wait()
        copying.go_on()
        again = fleet.run({"db": fleet.host(primary)}).ok()
    start = events(again.of("db"), "backup_start")
    assert (start["resumed"], start["backup_id"]) == (True, copying.backup.name)
    backup = fleet.one("db")
    assert backup.name == copying.backup.name
    if victim.endswith("copy"):
        assert events(again.of("db"), "backup_copy")["reused_files"]
    assert len(copied.items() & inodes(backup).items()) >= len(copied) // 2
    all_is_well(sandbox, fleet.repository, primary)
    assert primary.archive is not None
    verifybackup(backup / "data", primary.major, primary.archive)


def test_session_is_killed(sandbox: Sandbox, fleet: RoleHosts, primary: Server) -> None:
    """The play fails and reports it; the files are kept for inspection but are not a backup; the next run takes one."""
    with held_copy(fleet, "db", primary, keep_failed=True) as copying:
        os.kill(copying.keeper, signal.SIGKILL)
        copying.go_on()
        play = copying.play.wait()
    assert play.rc != 0
    text = message(play, "db")
    assert f"db: the backup {copying.backup.name} of the cluster db failed at" in text
    assert "Copy the files" in text
    assert "The session process ended without recording a result" in text
    assert content(copying.backup)["state"] == "failed"
    fleet.run({"db": fleet.host(primary)}).ok()
    (backup,) = fleet.published("db")
    assert backup.name != copying.backup.name
    all_is_well(sandbox, fleet.repository, primary, unfinished=[copying.backup.name])


def test_two_plays_at_once(sandbox: Sandbox, fleet: RoleHosts, primary: Server) -> None:
    """The other play takes none and reports the first's run, start and progress, or fails with them, or takes one."""
    with held_copy(fleet, "first", primary, cluster="main", owner="alice@laptop", takeover_after=60) as copying:
        hosts = {
            rule: fleet.host(primary, cluster="main", concurrent=rule, takeover_after=60)
            for rule in ("skip", "fail", "allow")
        }
        play = fleet.run(hosts)
        assert play.stats["skip"]["changed"] == play.stats["skip"]["failures"] == 0
        for text in (told(play, "skip"), message(play, "fail")):
            assert "alice@laptop run " in text
            assert f"has been working on the backup {copying.backup.name} since 20" in text
            assert "% copied" in text
        assert "no backup is started" in told(play, "skip")
        assert play.stats["allow"]["failures"] == 0
        (other,) = fleet.published("main")
        assert other.name != copying.backup.name
        assert [path.name for path in fleet.unfinished("main")] == [copying.backup.name]
        copying.go_on()
        copying.play.wait().ok()
    assert {path.name for path in fleet.published("main")} == {other.name, copying.backup.name}
    all_is_well(sandbox, fleet.repository, primary)
    wait_until(lambda: not fleet.unfinished("main"), "nothing is unfinished")
