# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of README.md and docs/restore.md, word for word, on Debian hosts with systemd.

The servers must survive each of them: `world` asks before and after every test. A test that runs alone first brings
about what those before it have left.
"""

from __future__ import annotations

import dataclasses
import typing as t

import pytest

from tests.hosts.helpers import pages
from tests.hosts.helpers.clusters import PROGRAMS, Cluster
from tests.hosts.helpers.world import World

DATABASES = ("pg1", "pg2", "pg3", "pg3rpm")
ARCHIVE = "pgfleet.basebackup.archive"
DRILL = "pgfleet.basebackup.drill"
RESTORE = "pgfleet.basebackup.restore"
COPY = "A copy beside the live server"

both_layouts = pytest.mark.parametrize("name", ["pg3", "pg3rpm"])


@pytest.fixture
def archived(world: World) -> World:
    """The fleet with WAL archiving."""
    world.once("archive", lambda: world.play(*pages.of_readme(ARCHIVE)).ok())
    return world


@pytest.fixture
def backed_up(archived: World) -> World:
    """The fleet with a backup of each server."""
    archived.once("backup", lambda: archived.play(*pages.of_readme("backup.yml")).ok())
    return archived


def moment(cluster: Cluster) -> str:
    """Return the present time of a server."""
    return cluster.sql("SELECT clock_timestamp()")


def dropped(cluster: Cluster) -> str:
    """Create a table and drop it, archive both, and return the time between."""
    cluster.sql("DROP TABLE IF EXISTS orders, later")
    cluster.sql("CREATE TABLE orders AS SELECT 42 AS number")
    between = moment(cluster)
    cluster.sql("DROP TABLE orders; CREATE TABLE later ()")
    last = cluster.sql("SELECT pg_walfile_name(pg_switch_wal())")
    cluster.archived(last)
    return between


def test_archive_with_restarts(world: World) -> None:
    """The README's first command restarts each server and leaves all of them up; the second time it changes nothing."""
    starts = world.starts()
    play = world.play(*pages.of_readme(ARCHIVE))
    world.healthy()
    play.ok()
    now = world.starts()
    assert all(now[name] != starts[name] for name in DATABASES)
    world.once("archive", lambda: None)
    again = world.play(*pages.of_readme(ARCHIVE)).ok()
    assert [again.stats[name]["changed"] for name in DATABASES] == [0, 0, 0, 0]
    assert world.starts() == now


def test_backup(archived: World) -> None:
    """Check mode finds nothing that would stop it; it backs up and verifies; then it changes nothing."""
    archived.play(*pages.of_readme("backup.yml", check=True)).ok()
    archived.play(*pages.of_readme("backup.yml")).ok()
    archived.once("backup", lambda: None)
    assert [len(archived.backups(name)) for name in DATABASES] == [1, 1, 1, 1]
    again = archived.play(*pages.of_readme("backup.yml")).ok()
    assert [again.stats[name]["changed"] for name in DATABASES] == [0, 0, 0, 0]


def test_drill(backed_up: World) -> None:
    """Every backup is proven beside the live servers, and nothing of the drills remains."""
    backed_up.play(*pages.of_readme(DRILL)).ok()
    for host in backed_up.hosts():
        assert host.sh("ls -A /srv/drills") == ""


@both_layouts
def test_dropped_table(backed_up: World, name: str) -> None:
    """The README's last command recovers a primary to the moment before the drop."""
    cluster = backed_up.cluster(name)
    between = dropped(cluster)
    starts = backed_up.starts()
    words = [word.replace("db1", name).replace(pages.TIME, between) for word in pages.of_readme(RESTORE)]
    backed_up.play(*words, "--check").ok()
    assert backed_up.starts() == starts
    backed_up.play(*words).ok()
    assert cluster.sql("SELECT number FROM orders") == "42"
    assert cluster.sql("SELECT to_regclass('later')") == ""


@both_layouts
def test_lost_data_directory(backed_up: World, name: str) -> None:
    """After ``rm -rf`` of the data directory the server is back with its last archived transaction."""
    cluster = backed_up.cluster(name)
    cluster.sql("CREATE TABLE IF NOT EXISTS last (); SELECT pg_switch_wal()")
    cluster.systemctl("stop")
    cluster.host.sh(f"rm -rf {cluster.data}")
    backed_up.play(*pages.restore(name, [])).ok()
    assert cluster.sql("SELECT to_regclass('last')") == "last"


@pytest.fixture
def beside(backed_up: World) -> t.Iterator[World]:
    """The fleet with a place for a copy beside pg3; the copy is stopped and removed."""
    host = backed_up.fleet["pg3"]
    host.run(pages.below(COPY)[0])
    try:
        yield backed_up
    finally:
        stop = f"{PROGRAMS}/pg_ctl stop -s -m immediate -D /srv/copy/data"
        host.sh(f"! [ -e /srv/copy/data/postmaster.pid ] || {stop}", user="postgres")
        host.sh("rm -rf /srv/copy")


def make_copy(between: str) -> list[str]:
    """Return the arguments of the command of docs/restore.md that makes a copy of pg3 as it was then."""
    return [word.replace("db1", "pg3").replace(pages.TIME, between) for word in pages.below(COPY)[2][1:]]


def test_copy_beside_the_running_server(beside: World) -> None:
    """The dropped table comes back from a copy, while the server that has dropped it runs on."""
    cluster = beside.pg3
    between = dropped(cluster)
    started = cluster.sql("SELECT pg_postmaster_start_time()")
    beside.play(*make_copy(between)).ok()
    beside.healthy(guests=["/srv/copy/data"])
    cluster.host.sh(" ".join(pages.below(COPY)[3]).replace("shop", "postgres"), user="postgres")
    assert cluster.sql("SELECT number FROM orders") == "42"
    assert cluster.sql("SELECT pg_postmaster_start_time()") == started


def test_copy_while_the_server_is_down(beside: World) -> None:
    """The copy runs in its own directory; production stays down, its files untouched, until systemd starts it."""
    cluster = beside.pg3
    between = dropped(cluster)
    cluster.systemctl("stop")
    try:
        files = f"find {cluster.data} -type f -printf '%p %s %T@\n' | sort"
        before = cluster.host.sh(files)
        play = beside.play(*make_copy(between))
        assert cluster.host.sh(files) == before
        play.ok()
        copy = Cluster(cluster.host, data="/srv/copy/data", port=5499)
        assert copy.sql("SHOW data_directory") == copy.data
        assert copy.sql("SELECT number FROM orders") == "42"
    finally:
        cluster.systemctl("start")


def test_failover_and_rebuild(backed_up: World) -> None:
    """The primary crashes, its standby is promoted, and the old primary becomes the standby of the new one."""
    old, new = backed_up.pg1, backed_up.pg2
    old.sql("CREATE TABLE before_the_crash ()")
    new.caught_up()
    old.host.run(["systemctl", "kill", "--signal=KILL", old.unit])
    new.host.run(["pg_ctlcluster", "17", "main", "promote"])
    new.is_writable()
    new.sql("CREATE TABLE after_the_crash ()")
    # From its own backup, without what the page adds for that of another node.
    options = pages.advice("A standby is too far behind")[:-2]
    words = pages.restore("pg1", options, db1="pg2", db2="pg1")
    backed_up.play(*words).ok()
    old.upstream, new.upstream = new, None
    backed_up.healthy()
    assert old.sql("SELECT to_regclass('after_the_crash')") == "after_the_crash"
    # And the fleet is backed up as before.
    backed_up.play(*pages.of_readme("backup.yml")).ok()


@both_layouts
def test_lost_host(backed_up: World, name: str) -> None:
    """An empty host becomes the server; a unit or configuration that it lacks is named before anything is restored."""
    lost = backed_up.cluster(name)
    found = dataclasses.replace(lost, host=backed_up.fleet["pg4"])
    port = {"pg_recover_login_port": lost.port}
    words = pages.restore(name, pages.advice("The host is lost"), db9="pg4")
    lost.systemctl("stop")
    backed_up.clusters.remove(lost)
    try:
        refused = backed_up.play(*words, **port)
        assert refused.rc == 2
        assert found.host.sh(f"pgrep -x postgres || ls {found.data} 2>/dev/null || true") == ""
        message = refused.of("pg4", "failed")[-1]["result"]["msg"]
        assert found.unit in message or found.etc in message
        found.prepare()
        backed_up.clusters.append(found)
        backed_up.play(*words, **port).ok()
        backed_up.healthy()
    finally:
        found.systemctl("stop")
        backed_up.clusters[:] = [one for one in backed_up.clusters if one is not found] + [lost]
        lost.systemctl("start")
