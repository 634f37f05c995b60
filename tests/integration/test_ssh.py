# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role on hosts reached by ssh: login user ansible, sudo to postgres, the README's playbook and SQL.

db1 is a primary, db2 its standby; each has its own repository. db3 has no psycopg2.
"""

from __future__ import annotations

import re
import typing as t

import pytest

from tests.harness import binaries, fleet
from tests.harness.checks import data_checksum, restore_and_check
from tests.harness.fleet import Fleet
from tests.harness.sandbox import Sandbox
from tests.harness.servers import wait_until
from tests.harness.user import me, run, server_user
from tests.integration.helpers.files import read_json
from tests.integration.helpers.ssh_hosts import PASSWORD, REPOSITORY, SshHosts, result


@pytest.fixture(scope="module")
def three_hosts() -> t.Iterator[SshHosts]:
    """The hosts, created once."""
    if reason := fleet.obstacle():
        pytest.skip(reason)
    with Sandbox() as sandbox, Fleet(sandbox.root / "fleet", "db1", "db2", "db3") as hosts:
        yield SshHosts(sandbox, hosts)


@pytest.fixture
def world(three_hosts: SshHosts) -> t.Iterator[SshHosts]:
    """The hosts with empty repositories; they must be in order after the test."""
    for host in (three_hosts.db1, three_hosts.db2):
        host.run(["find", REPOSITORY, "-mindepth", "1", "-delete"])
    try:
        yield three_hosts
    finally:
        for play in three_hosts.plays:
            # Only after a failed test.
            if play.process.poll() is None:
                three_hosts.kill(play)
    three_hosts.is_well()


def test_play_of_the_readme(world: SshHosts) -> None:
    """It publishes on primary and standby; the second run changes nothing; a host without psycopg2 gets an error."""
    play = world.start(pipelining=False).wait()
    assert play.rc == 2, play.stdout
    world.published(world.db1, play)
    world.published(world.db2, play)
    # Changed or not: the backup of db1 switches WAL too.
    assert not result(play, world.db2, "wal_switch").get("failed")
    failed = play.of("db3", "failed")[-1]
    for word in (fleet.PYTHON, "python3-psycopg2", "db3"):
        assert word in failed["result"]["msg"]

    again = world.start("db1,db2").wait().ok()
    for host in ("db1", "db2"):
        assert again.stats[host]["changed"] == 0
        ours = [one["action"] for one in again.of(host, "ok") if one["action"].startswith("pgfleet.")]
        # Two tasks of the role, which find that there is nothing to do.
        assert ours[2:] == ["pgfleet.basebackup.backup_verify"]


def test_standby_alone_asks_its_upstream(world: SshHosts) -> None:
    """Its primary is found over libpq, progress is shown, the password is not; it restores with db1's archive."""
    play = world.start("db2", ["-vvv"], pg_backup_login_password=PASSWORD, pg_backup_progress_interval=1)
    with world.held_copy(world.standby, play) as backup:
        wait_until(lambda: f"[db2] {backup.name}: " in play.stdout or world.leaks(), "progress is shown", interval=0.2)
        assert not world.leaks()
        assert not world.files_with_password(play)
    wait_until(lambda: world.leaks() or play.process.poll() is not None, "the play ends", interval=0.2)
    assert not world.leaks()
    assert not world.files_with_password(play)
    done = play.wait().ok()
    assert re.search(rf"\[db2\] {backup.name}: \d+ %, .* of 1\.\d GiB", done.stdout)
    (found,) = [one["result"]["primary"] for one in done.of("db2") if "primary" in one["result"]]
    assert found["login_host"] == "db1"
    backup = world.published(world.db2, done)

    last = world.primary.value("SELECT pg_walfile_name(pg_create_restore_point('end'))")
    world.primary.sql("SELECT pg_switch_wal()")
    assert world.primary.archive
    wait_until((world.primary.archive / last).exists, f"{last} is archived")
    archive = world.sandbox.root / "wal"
    run(["cp", "-r", world.primary.archive, archive], user=me())
    run(["chown", "-R", f"{server_user().uid}:{server_user().gid}", archive], user=me())
    expected = data_checksum(world.primary)

    def same(server: t.Any) -> None:
        assert data_checksum(server) == expected

    restore_and_check(world.sandbox, backup, archive, binaries.NEWEST, same)


def test_killed_controller(world: SshHosts) -> None:
    """The same play continues the backup whose controller was killed; pg_backup_primary is queried over ssh."""
    variables = {"pg_backup_primary": "db1", "pg_backup_takeover_after": 2, "pg_backup_progress_interval": 1}
    play = world.start("db2", pipelining=False, **variables)
    with world.held_copy(world.standby, play) as backup:
        world.kill(play)
    again = world.start("db2", **variables).wait().ok()
    assert result(again, world.db2, "backup_start")["resumed"]
    assert world.published(world.db2, again).name == backup.name
    assert not result(again, world.db2, "wal_switch").get("failed")


def test_cut_connection(world: SshHosts) -> None:
    """The host counts as unreachable, session and copy survive, and the next run publishes that backup."""
    variables = {"pg_backup_takeover_after": 2, "pg_backup_progress_interval": 1}
    play = world.start("db1", **variables)
    with world.held_copy(world.primary, play) as backup:
        world.fleet.cut(world.db1)
        cut = play.wait()
        world.fleet.cut(world.db1, False)
    assert cut.rc == 4, cut.stdout
    assert cut.stats["db1"]["unreachable"] == 1
    wait_until(
        lambda: read_json(backup / "copy" / "progress.json")["state"] == "done", "the copy is done with no controller"
    )
    again = world.start("db1", **variables).wait().ok()
    assert result(again, world.db1, "backup_start")["resumed"]
    assert world.published(world.db1, again).name == backup.name
