# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All of it over ssh, with the README's own commands: archive, back up, verify, drill, recover a dropped table.

The login user is ansible, sudo allows postgres only. The controller is killed in the middle of the restore.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import typing as t

import pytest
import yaml

from tests.harness import binaries, fleet
from tests.harness.fleet import Fleet, HostServer
from tests.harness.playbook import RunningPlay, start_playbook
from tests.harness.sandbox import Sandbox
from tests.harness.servers import wait_until
from tests.integration.helpers.files import read_json
from tests.integration.helpers.ssh_hosts import BIG, SshHosts, readme, result

DRILLS: t.Final = "/srv/drills"


def commands() -> dict[str, list[str]]:
    """Return the README's calls of ansible-playbook: ``{playbook: arguments}``, the last one of each playbook."""
    lines = readme("sh").replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return {one[1]: one[2:] for one in words if one[0] == "ansible-playbook"}


class Site(SshHosts):
    """One database host that does not archive its WAL yet."""

    def __init__(self, sandbox: Sandbox, hosts: Fleet) -> None:
        """Set up db1 as before the first run: a server, the role ``backup``, two directories."""
        self.sandbox = sandbox
        self.fleet = hosts
        self.plays: list[RunningPlay] = []
        (self.db1,) = hosts.hosts.values()
        self.db1.give_psycopg2()
        self.db1.run(["install", "-d", "-o", "postgres", "-g", "postgres", "-m", "0700", DRILLS])
        self.primary = HostServer(self.db1, binaries.NEWEST).make_primary("for-replication")
        self.primary.conf(archive_mode=False, archive_command="")
        self.primary.tool("pg_ctl", "restart", "-D", self.primary.data, "-l", self.primary.log_file, "-s", "-w")
        # Where the roles search for programs installed by packages.
        packaged = f"/usr/lib/postgresql/{binaries.NEWEST}"
        self.db1.run(["rm", "-rf", packaged])
        self.db1.run(["mkdir", "-p", packaged])
        self.db1.run(["ln", "-s", binaries.prefix(binaries.NEWEST) / "bin", packaged])
        for command in filter(str.strip, re.sub(r"--.*", "", readme("sql")).split(";")):
            self.primary.sql(command)
        self.primary.pgbench_init()

    def run(self, name: str, *args: str, pipelining: bool = True, check: bool = True) -> RunningPlay:
        """Start one of the README's playbooks with the README's arguments, if needed without --check, and ``args``."""
        quick = {"pg_recover_progress_interval": 1, "pg_recover_interval": 0.1, "pg_drill_interval": 0.1}
        variables = {**self.fleet.host_vars(self.db1, pipelining=pipelining), "pg_backup_fast": True, **quick}
        play = start_playbook(
            yaml.safe_load(readme("yaml")) if name == "backup.yml" else name,
            {"db1": variables},
            directory=self.sandbox.root,
            groups={"databases": ["db1"]},
            args=[*(one for one in commands()[name] if check or one != "--check"), *args],
        )
        self.plays.append(play)
        return play

    def hold_restore(self, play: RunningPlay) -> int:
        """Stop the process of the restore in the middle, and return its process group."""
        record = self.primary.data / "pgfleet_restore" / "progress.json"

        def running() -> t.Any:
            assert play.process.poll() is None, play.stdout
            progress = read_json(record)
            return progress.get("total_bytes") and int(progress["pid"])

        pid = wait_until(running, "the restore is under way", timeout=90, interval=0.005)
        group = os.getpgid(self.db1.outside(pid))
        os.killpg(group, signal.SIGSTOP)
        assert read_json(record)["state"] == "running"
        return group


@pytest.fixture
def site() -> t.Iterator[Site]:
    """The site; plays that run after a failed test are ended."""
    if reason := fleet.obstacle():
        pytest.skip(reason)
    with Sandbox() as sandbox, Fleet(sandbox.root / "fleet", "db1") as hosts:
        site = Site(sandbox, hosts)
        try:
            yield site
        finally:
            for play in site.plays:
                if play.process.poll() is None:
                    site.kill(play)


def test_from_archive_to_restore(site: Site) -> None:
    """Each command of the README does what the README says, with and without pipelining."""
    db1, primary = site.db1, site.primary
    archived = site.run("pgfleet.basebackup.archive").wait().ok()
    assert archived.stats["db1"]["changed"]
    assert primary.value("SHOW archive_mode") == "on"

    # The server loses it later, so that a restore has something to copy.
    big = f"{primary.data}/{BIG}".removeprefix(str(db1.path("")))
    db1.run(["truncate", "--size=256M", big], user="postgres")
    backup = site.published(db1, site.run("backup.yml").wait())
    db1.run(["rm", big])
    assert (backup / "data" / BIG).stat().st_size == 256 << 20

    drilled = site.run("pgfleet.basebackup.drill").wait().ok()
    assert drilled.stats["db1"]["changed"]
    (drill,) = read_json(backup / "backup.json")["drills"]
    assert drill["ok"], drill
    assert {one["name"] for one in drill["checks"] if one["ok"]} >= {"pg_amcheck", "pg_checksums"}
    assert not list(db1.path(DRILLS).iterdir())

    moment = str(primary.value("SELECT clock_timestamp()"))
    primary.sql("DROP TABLE pgbench_accounts")
    primary.sql("CREATE TABLE later ()")
    target = ("-e", json.dumps({"pg_recover_recovery_target_time": moment}))
    planned = site.run("pgfleet.basebackup.restore", *target).wait().ok()
    assert "What would stop it: nothing" in planned.stdout
    assert primary.sql("SELECT * FROM later") == []

    play = site.run("pgfleet.basebackup.restore", *target, pipelining=False, check=False)
    group = site.hold_restore(play)
    try:
        wait_until(lambda: f"[db1] {backup.name}: " in play.stdout, "progress is shown", interval=0.1)
        site.kill(play)
        assert not (primary.data / "global/pg_control").exists()
    finally:
        os.killpg(group, signal.SIGCONT)
    again = site.run("pgfleet.basebackup.restore", *target, check=False).wait().ok()
    assert result(again, db1, "backup_restore")["backup_id"] == backup.name
    assert re.search(r"promoted at \S+ on timeline 2", again.stdout), again.stdout
    assert primary.value("SELECT count(*) FROM pgbench_accounts") == 100_000
    assert not primary.sql("SELECT 1 FROM pg_class WHERE relname = 'later'")
