# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A primary whose table grows, its backups, and plays that restore or drill them."""

from __future__ import annotations

import json
import pathlib
import typing as t

from tests.harness import binaries
from tests.harness.modules import Modules
from tests.harness.playbook import Play, RunningPlay, host_vars, start_playbook
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_file
from tests.integration.helpers.steps import Steps


class GrowingPrimary:
    """A primary whose table ``numbers`` grows, the repository of its backups, and the cluster ``main`` in it."""

    def __init__(self, sandbox: Sandbox, primary: Server) -> None:
        self.sandbox = sandbox
        self.primary = primary
        self.repository = sandbox.directory("repository")
        self.modules = Modules(primary, as_server=True, repository=str(self.repository), cluster="main")
        primary.sql("CREATE TABLE numbers (i int PRIMARY KEY)")

    def write(self, *numbers: int) -> str:
        """Commit each number and return the LSN after the last one."""
        for number in numbers:
            self.primary.sql("INSERT INTO numbers VALUES (%s)", [number])
        return str(self.primary.value("SELECT pg_current_wal_insert_lsn()"))

    def back_up(self, backup_id: str) -> pathlib.Path:
        """Take a backup and return its directory."""
        steps = Steps(self.modules, self.primary, backup_id)
        steps.whole()
        return steps.published

    def archive_all(self) -> None:
        """Switch the WAL segment and wait for the archiver."""
        archive = self.primary.archive
        assert archive is not None
        segment = self.primary.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
        self.primary.switch_wal()
        wait_until((archive / segment).exists, f"{segment} is archived")

    def record(self, backup_id: str) -> dict[str, t.Any]:
        """Return what backup_info reports about a backup."""
        (cluster,) = self.modules.ok("backup_info", proven_max_age="1h")["clusters"]
        (found,) = [one for one in cluster["backups"] if one["backup_id"] == backup_id]
        return t.cast("dict[str, t.Any]", found)

    def host(self, role: str, **variables: t.Any) -> dict[str, t.Any]:
        """Return the variables of a host for ``pg_recover`` or ``pg_drill``; ``variables`` are the role's own."""
        inherited = host_vars(self.primary)
        ways = ("pg_backup_become", "pg_backup_become_user")
        common = {
            "repository": str(self.repository),
            "cluster": "main",
            "archive_directory": str(self.primary.archive),
            "bin_directory": str(binaries.prefix(self.primary.major) / "bin"),
            "interval": 0.1,
            **{name[len("pg_backup_") :]: inherited[name] for name in ways if name in inherited},
            **variables,
        }
        ansible = {name: value for name, value in inherited.items() if name.startswith("ansible_")}
        return {**ansible, **{f"{role}_{name}": value for name, value in common.items()}}

    def run(self, playbook: str, hosts: t.Mapping[str, dict[str, t.Any]], **options: t.Any) -> Play:
        """Run one of the collection's playbooks to its end."""
        return self.start(playbook, hosts, **options).wait(180)

    def start(self, playbook: str, hosts: t.Mapping[str, dict[str, t.Any]], **options: t.Any) -> RunningPlay:
        """Start one of the collection's playbooks."""
        # The playbooks require that the hosts are named.
        options["extra_vars"] = {
            "pg_recover_hosts": "all",
            "pg_drill_hosts": "all",
            **(options.get("extra_vars") or {}),
        }
        return start_playbook(f"playbooks/{playbook}.yml", hosts, directory=self.sandbox.root, **options)

    def tasks(self, name: str, *tasks: dict[str, t.Any]) -> str:
        """Write a file of tasks for a hook and return its path."""
        return str(own_file(self.sandbox.root / f"{name}.yml", json.dumps(list(tasks)), mode=0o644))
