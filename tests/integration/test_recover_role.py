# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role pg_recover: plan, stop, restore, start, wait, check; refusals before anything is touched."""

from __future__ import annotations

import pathlib
import typing as t

import pytest

from tests.harness.sandbox import Sandbox, free_port
from tests.harness.servers import Server, wait_until
from tests.harness.user import run
from tests.integration.helpers.files import listing
from tests.integration.helpers.growing_primary import GrowingPrimary
from tests.integration.helpers.plays import message, reached, told


class Site:
    """A growing primary and new servers that plays restore into."""

    def __init__(self, sandbox: Sandbox, primary: Server) -> None:
        self.world = GrowingPrimary(sandbox, primary)
        self.sandbox = sandbox
        self.primary = primary

    def place(self, name: str) -> Server:
        """Return a server without a data directory."""
        server = Server(self.primary.major, name, self.sandbox.directory(name), free_port())
        self.sandbox.servers.append(server)
        return server

    def host(self, server: Server, **variables: t.Any) -> dict[str, t.Any]:
        """Return the variables of a host that restores into ``server``, on the source's machine."""
        common = {
            "data_directory": str(server.data),
            "tablespace_directory": str(server.directory / "spaces"),
            "restore_as": "copy",
            "port": server.port,
            "settings": {"unix_socket_directories": str(server.socket_directory)},
            "login_unix_socket": str(server.socket_directory),
            "log_file": str(server.log_file),
            "sync": False,
        }
        return self.world.host("pg_recover", **{**common, **variables})


@pytest.fixture
def site(sandbox: Sandbox, primary: Server) -> Site:
    """A primary with a backup of the numbers 1 to 3, then 4 to 6, with a restore point ``five`` after 5."""
    site = Site(sandbox, primary)
    primary.sql("CREATE ROLE watcher LOGIN IN ROLE pg_monitor")
    site.world.write(1, 2, 3)
    site.world.back_up("one")
    site.world.write(4, 5)
    primary.sql("SELECT pg_create_restore_point('five')")
    site.world.write(6)
    site.world.archive_all()
    return site


def numbers(server: Server) -> list[int]:
    """Return the rows of the table."""
    return [row[0] for row in server.sql("SELECT i FROM numbers ORDER BY i")]


@pytest.mark.majors(15, 18)
def test_restore_to_a_point(site: Site) -> None:
    """Plan, restore, repeat the restore, then restore to another point over the running server."""
    server = site.place("restored")
    checks = [{"name": "five", "query": "SELECT max(i) FROM numbers", "expected": 5}]
    host = site.host(server, recovery_target_name="five", checks=checks)
    before = listing(site.world.repository)
    planned = site.world.run("restore", {"db": host}, check=True).ok()
    assert planned.stats["db"]["changed"] == 1
    plan = told(planned, "db")
    for words in ("Backup: one of main", "Server there: does not run, would be started by pg_ctl", "stop it: nothing"):
        assert words in plan
    assert not server.data.exists()

    first = site.world.run("restore", {"db": host}).ok()
    assert numbers(server) == [1, 2, 3, 4, 5]
    assert server.value("SELECT count(*) FROM in_extra") == 1000
    assert "restored in" in told(first, "db")
    assert "promoted at" in told(first, "db")
    assert "on timeline 2" in told(first, "db")
    assert "recovery_target" not in (server.data / "postgresql.auto.conf").read_text()
    assert listing(site.world.repository) == before

    server.sql("INSERT INTO numbers VALUES (100)")
    pid = server.pid
    second = site.world.run("restore", {"db": {**host, "pg_recover_checks": []}}).ok()
    assert second.stats["db"]["changed"] == 0, [one["task"] for one in second.of("db", "ok") if one["changed"]]
    assert (server.pid, numbers(server)[-1]) == (pid, 100)
    back = {**host, "pg_recover_recovery_target_name": "", "pg_recover_recovery_target": "immediate"}
    back["pg_recover_checks"] = [{"query": "SELECT count(*) FROM numbers", "expected": 3}]
    planned = site.world.run("restore", {"db": {**back, "pg_recover_delta": True}}, check=True).ok()
    assert "Server there: runs, would be stopped by pg_ctl, would be started by pg_ctl" in told(planned, "db")
    assert planned.stats["db"]["changed"] == 1
    site.world.run("restore", {"db": {**back, "pg_recover_delta": "true"}}).ok()
    assert numbers(server) == [1, 2, 3]


def test_several_ways_at_once(site: Site) -> None:
    """As hosts of one play: paused, shut down, a standby, hooks, not started, a check that fails, no such target."""
    names = ["paused", "down", "standby", "hooks", "files", "wrong", "beyond", "both", "torn"]
    run(["cp", "-a", site.world.repository / "main", site.world.repository / "broken"])
    records = sorted((site.world.repository / "broken" / "backups").glob("*/backup.json"))
    run(["sed", "-i", 's/"cluster": "main"/"cluster": "broken"/', *records])
    bad = site.world.repository / "broken/backups/one/data/global/pg_filenode.map"
    bad.write_bytes(b"\xff" + bad.read_bytes()[1:])
    servers = {name: site.place(name) for name in names}
    notes = site.sandbox.root / "notes"
    pg_ctl = "{{ pg_recover_bin_directory }}/pg_ctl -w -l {{ pg_recover_log_file }} -D {{ pg_recover_data_directory }}"
    start = {"ansible.builtin.shell": f"echo start >> {notes}; {pg_ctl} start", "changed_when": True}
    stop = {"ansible.builtin.shell": f"echo stop >> {notes}; false", "changed_when": True, "name": "Stop it my way"}
    conninfo = f"host={site.primary.socket_directory} port={site.primary.port} user=postgres"
    special: dict[str, dict[str, t.Any]] = {
        "paused": {"recovery_target_name": "five", "recovery_target_action": "pause"},
        "down": {"recovery_target_name": "five", "recovery_target_action": "shutdown"},
        "standby": {"restore_as": "standby", "primary_conninfo": conninfo},
        "hooks": {"hook_start": site.world.tasks("start", start), "hook_stop": site.world.tasks("stop", stop)},
        "files": {"start": False, "login_user": "watcher"},
        "wrong": {"checks": [{"name": "none", "query": "SELECT count(*) FROM numbers", "expected": 0}]},
        "beyond": {"recovery_target_lsn": "F/0"},
        "both": {"recovery_target_lsn": "F/0", "recovery_target": "immediate"},
        "torn": {"cluster": "broken"},
    }
    hosts = {name: site.host(servers[name], **special[name]) for name in names}
    play = site.world.run("restore", hosts)
    failed = {name for name in names if play.stats[name]["failures"]}
    assert failed == {"wrong", "beyond", "both", "torn"}, play.stdout[-6000:]
    assert "paused at" in told(play, "paused")
    assert numbers(servers["paused"]) == [1, 2, 3, 4, 5]
    assert "shutdown at" in told(play, "down")
    assert servers["down"].pid is None
    assert "consistent at" in told(play, "standby")
    site.world.write(7)
    wait_until(lambda: numbers(servers["standby"]) == [1, 2, 3, 4, 5, 6, 7], "the standby follows")
    assert numbers(servers["hooks"]) == [1, 2, 3, 4, 5, 6]
    assert servers["files"].pid is None
    assert (servers["files"].data / "global" / "pg_control").exists()
    text = message(play, "wrong")
    for words in ("wrong: restoring the backup one of the cluster main", "Run the checks", "'6' instead of 0"):
        assert words in text
    assert "The files are restored." in text
    for name in ("beyond", "both"):
        assert "Nothing was changed." in message(play, name)
        assert not servers[name].data.exists()

    assert "global/pg_filenode.map" in message(play, "torn")
    assert "cannot be started by accident" in message(play, "torn")
    assert not (servers["torn"].data / "global" / "pg_control").exists()

    again = {name: hosts[name] for name in ("paused", "down", "hooks", "files")}
    second = site.world.run("restore", again).ok()
    assert {name: second.stats[name]["changed"] for name in again} == dict.fromkeys(again, 0)
    assert notes.read_text().split() == ["start"]
    # A failed stop ends the role before the restore begins; a refused restore does not stop the server.
    other = {"pg_recover_delta": True, "pg_recover_recovery_target": "immediate", "pg_recover_recovery_target_name": ""}
    refused = {**hosts["paused"], **other, "pg_recover_delta": False}
    third = site.world.run(
        "restore",
        {
            "hooks": {**hosts["hooks"], **other},
            "paused": refused,
            "files": {**hosts["files"], "pg_recover_start": True},
        },
    )
    # The next run starts a server that a run did not start, or was killed before starting.
    changed = [event["task"] for event in third.of("files", "ok") if event["changed"]]
    assert [task.rpartition("| ")[2] for task in changed] == ["Start the server"]
    # A check that only a superuser can do is not skipped silently.
    assert "files: the server is restored, but forgetting the recovery target failed: " in told(third, "files")
    assert "forgetting the recovery target failed: " not in told(third, "hooks")
    assert numbers(servers["files"]) == [1, 2, 3, 4, 5, 6]
    assert "is not empty" in message(third, "paused")
    assert "Set pg_recover_delta to keep" in message(third, "paused")
    assert "Nothing was changed." in message(third, "paused")
    assert numbers(servers["paused"]) == [1, 2, 3, 4, 5]
    assert "Stop it my way" in message(third, "hooks")
    assert numbers(servers["hooks"]) == [1, 2, 3, 4, 5, 6]
    assert not [task for task in reached(third, "hooks") if task.endswith("Restore the files")]


@pytest.mark.oldest_core
def test_the_place_of_the_source(site: Site) -> None:
    """Without a data directory the restore goes to the backup's original one; the lost server becomes a new primary."""
    site.primary.sql("CHECKPOINT")
    site.primary.kill()
    (site.primary.data / "global" / "pg_control").unlink()
    host = site.host(
        site.primary, data_directory="", tablespace_directory="", restore_as="primary", port=0, settings={}
    )
    host["pg_recover_login_port"] = site.primary.port
    # A part of the directory's path, which comes from a module's result; that module must not know the password.
    host["pg_recover_login_password"] = site.primary.name
    assert site.primary.name in str(site.primary.data)
    refused = site.world.run("restore", {"db": host}, check=True).ok()
    assert "is not empty" in told(refused, "db")
    assert refused.stats["db"]["changed"] == 0
    site.world.run("restore", {"db": {**host, "pg_recover_delta": True}}).ok()
    assert numbers(site.primary) == [1, 2, 3, 4, 5, 6]
    assert site.primary.value("SHOW archive_mode") == "on"
    archive = site.primary.archive
    assert archive is not None
    wait_until(lambda: list(archive.glob("00000002" + "?" * 16)), "the new timeline's first segment is archived")
    assert pathlib.Path(site.primary.data, "pg_tblspc").is_dir()

    nothing = site.host(site.place("other"), data_directory="", cluster="unknown")
    text = message(site.world.run("restore", {"db": nothing}), "db")
    assert "There is no backup of the cluster unknown" in text
    assert "Set pg_recover_data_directory" in text
