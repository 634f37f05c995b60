# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Four hosts as users have them, the README's commands on them, and the question whether all servers are well.

pg1 is a primary and pg2 its standby, pg3 another primary, all by Debian's packages. On pg3 runs a second cluster as
PostgreSQL's RPMs would run it; the inventory calls it pg3rpm. pg4 has the packages and no cluster.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
import subprocess
import typing as t

from tests.harness.debian import MAJOR
from tests.harness.playbook import Play, run_playbook
from tests.harness.sandbox import Sandbox
from tests.harness.servers import wait_until
from tests.harness.systemd import SystemdFleet, SystemdHost
from tests.harness.user import me, run
from tests.hosts.helpers import pages
from tests.hosts.helpers.clusters import REPLICATION, Cluster, complaints

RPM_PORT: t.Final = 5433


class World:
    """The hosts, their clusters, and plays on them."""

    def __init__(self, sandbox: Sandbox, fleet: SystemdFleet) -> None:
        """Create the clusters on booted hosts."""
        self.sandbox = sandbox
        self.fleet = fleet
        self._done: set[str] = set()
        for name in ("pg1", "pg2", "pg3", "pg4"):
            fleet[name].allow(*self.sudo())
        self.pg1 = Cluster(fleet["pg1"])
        self.pg2 = Cluster(fleet["pg2"], upstream=self.pg1)
        self.pg3 = Cluster(fleet["pg3"])
        self.pg3rpm = Cluster(
            fleet["pg3"],
            f"postgresql-{MAJOR}.service",
            f"/var/lib/pgsql/{MAJOR}/data",
            f"/var/lib/pgsql/{MAJOR}/data",
            RPM_PORT,
        )
        self.pg4 = Cluster(fleet["pg4"])
        self.clusters = [self.pg1, self.pg2, self.pg3, self.pg3rpm]
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            first = pool.submit(self.pg1.create)
            others = [pool.submit(self.pg3.create), pool.submit(self.pg3rpm.create)]
            first.result()
            pool.submit(self.pg2.create_standby).result()
            for one in others:
                one.result()
        for cluster in (self.pg1, self.pg3, self.pg3rpm):
            cluster.sql(pages.block("sql"))
        for host in self.hosts():
            host.sh("install -d -m 0700 -o postgres -g postgres /srv/drills")
            host.write("/var/lib/postgresql/.pgpass", f"*:*:*:replicator:{REPLICATION}\n", "postgres", 0o600)
        self.healthy()

    @staticmethod
    def sudo(units: t.Iterable[str] = (f"postgresql@{MAJOR}-main.service", f"postgresql-{MAJOR}.service")) -> list[str]:
        """Return sudo's lines for the login user: all as postgres, and as root to stop, start and restart units."""
        lines = ["(postgres) NOPASSWD: ALL"]
        for unit in units:
            verbs = ", ".join(f"/usr/bin/systemctl {verb} {unit}" for verb in ("stop", "start", "restart"))
            lines.append(f"(root) NOPASSWD: {verbs}")
        return lines

    def hosts(self) -> list[SystemdHost]:
        """Return the four hosts."""
        return [self.fleet[name] for name in self.fleet.hosts]

    def cluster(self, name: str) -> Cluster:
        """Return the cluster that the inventory calls ``name``."""
        found: Cluster = getattr(self, name)
        return found

    def once(self, name: str, make: t.Callable[[], t.Any]) -> None:
        """Bring about what several tests need, the first time."""
        if name not in self._done:
            make()
            self._done.add(name)

    def starts(self) -> dict[str, str]:
        """Return when each server was started."""
        query = "SELECT pg_postmaster_start_time()"
        return {name: self.cluster(name).sql(query) for name in ("pg1", "pg2", "pg3", "pg3rpm")}

    def settings(self) -> dict[str, str]:
        """Return what ALTER SYSTEM has set on each server."""
        query = "SELECT pg_read_file('postgresql.auto.conf')"
        return {name: self.cluster(name).sql(query) for name in ("pg1", "pg2", "pg3", "pg3rpm")}

    def inventory(self, pipelining: bool = True) -> dict[str, dict[str, t.Any]]:
        """Return the variables of all hosts."""
        hosts: dict[str, SystemdHost] = {name: self.fleet[name] for name in ("pg1", "pg2", "pg3", "pg4")}
        hosts["pg3rpm"] = self.fleet["pg3"]
        found = {name: self.fleet.host_vars(host, pipelining=pipelining) for name, host in hosts.items()}
        for role in ("pg_archive", "pg_backup", "pg_recover"):
            found["pg3rpm"][f"{role}_login_port"] = RPM_PORT
        # A standby archives nothing: docs/fleet.md.
        for role in ("pg_drill", "pg_recover"):
            found["pg2"][f"{role}_archive_directory"] = "/srv/backups/pg1/wal"
        return found

    def play(self, *args: str, timeout: float = 300, **variables: t.Any) -> Play:
        """Run ansible-playbook with the words of a command line; the README's backup.yml is there.

        ``variables`` become extra variables.
        """
        playbook: t.Any = args[0]
        if playbook == "backup.yml":
            playbook = pages.backup_playbook()
        return run_playbook(
            playbook,
            self.inventory(),
            directory=self.sandbox.root,
            groups={"databases": ["pg1", "pg2", "pg3", "pg3rpm"]},
            args=args[1:],
            extra_vars=variables,
            timeout=timeout,
        )

    def ssh(self, host: SystemdHost, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the login user, over ssh."""
        variables = self.fleet.host_vars(host, pipelining=True)
        words = [variables["ansible_ssh_executable"], *variables["ansible_ssh_common_args"].split()]
        return run([*words, f"ansible@{host.address}", command], user=me(), check=False)

    def healthy(self, guests: t.Collection[str] = (), timeout: float = 20) -> None:
        """Require that all servers are up, under their units, on their own directories, and streaming.

        A standby that has lost its primary looks for it every five seconds.
        """
        found: list[str] = []

        def well() -> bool:
            found[:] = complaints(self.clusters, guests)
            return not found

        try:
            wait_until(well, "all servers are well", timeout, interval=0.3)
        except AssertionError:
            raise AssertionError("\n".join(found)) from None

    def backups(self, cluster: str) -> list[pathlib.Path]:
        """Return the published backups of a cluster, oldest first."""
        return sorted(self.fleet["pg1"].path(f"/srv/backups/{cluster}/backups").glob("*"))
