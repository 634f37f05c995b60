# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays of the role pg_archive on hosts that share a repository, and their results."""

from __future__ import annotations

import typing as t

from tests.harness import binaries
from tests.harness.playbook import Play, host_vars, run_playbook
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server


class Archives:
    """Hosts that share one repository, and the role for them."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.repository = sandbox.directory("repository")

    def host(self, server: Server, **variables: t.Any) -> dict[str, t.Any]:
        """Return the variables of a host; ``variables`` are the role's, without the prefix ``pg_archive_``."""
        # For a library the server starts its archiver anew, but not within ten seconds of its last start; then it may
        # take a minute.
        common = {"repository": str(self.repository), "timeout": "80 s", **variables}
        common.setdefault("script_directory", str(self.sandbox.root / "scripts" / server.name))
        theirs = host_vars(server)
        ours = {name.replace("pg_backup_", "pg_archive_"): value for name, value in theirs.items()}
        # Needed by the programs of this server for the restart.
        ours["environment_of_server"] = binaries.environment(server.major)
        return {**ours, **{f"pg_archive_{name}": value for name, value in common.items()}}

    def run(self, hosts: dict[str, dict[str, t.Any]], **options: t.Any) -> Play:
        """Run the role on all ``hosts``."""
        play = {
            "hosts": "all",
            "gather_facts": False,
            "environment": "{{ environment_of_server }}",
            "tasks": [
                {"ansible.builtin.include_role": {"name": "pgfleet.basebackup.pg_archive"}},
                {"name": "result", "ansible.builtin.debug": {"var": "pg_archive_result"}},
            ],
        }
        return run_playbook([play], hosts, directory=self.sandbox.root, **options)


def result(play: Play, host: str) -> dict[str, t.Any]:
    """Return ``pg_archive_result`` of a host."""
    (found,) = [one["result"]["pg_archive_result"] for one in play.of(host) if one["task"].endswith("result")]
    return t.cast("dict[str, t.Any]", found)


def changes(play: Play, host: str) -> list[str]:
    """Return the tasks that changed something."""
    return [event["task"].rpartition("| ")[2] for event in play.of(host) if event["changed"]]
