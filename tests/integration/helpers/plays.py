# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays of the role pg_backup on hosts that share a repository, and their reports."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import typing as t

from tests.harness.playbook import Play, RunningPlay, host_vars, run_playbook, start_playbook
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_file
from tests.integration.helpers.files import read_json
from tests.integration.helpers.steps import BIG_FILE

PLAYBOOK: t.Final = "playbooks/backup.yml"
HANDLER: t.Final = "pg_backup : Switch WAL on the primary"
OURS: t.Final = "pgfleet.basebackup."
Inventory = t.Mapping[str, t.Mapping[str, t.Any]]


class RoleHosts:
    """Hosts that share one repository, and the playbook for them.

    Their variables make tests fast: an immediate checkpoint, short waits.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.repository = sandbox.directory("repository")

    def host(self, server: Server, *, tcp: bool = False, **variables: t.Any) -> dict[str, t.Any]:
        """Return the variables of a host; ``variables`` are the role's, without the prefix ``pg_backup_``."""
        common = {
            "repository": str(self.repository),
            "fast": True,
            "archive_interval": 0.1,
            "archive_timeout": 20,
            "takeover_after": 2,
            **variables,
        }
        return {**host_vars(server, tcp=tcp), **{f"pg_backup_{name}": value for name, value in common.items()}}

    def run(self, hosts: Inventory, playbook: str | list[dict[str, t.Any]] = PLAYBOOK, **options: t.Any) -> Play:
        """Run the playbook, or another one, to its end; ``options`` are those of `run_playbook`."""
        options["extra_vars"] = {"pg_backup_hosts": "all", **(options.get("extra_vars") or {})}
        return run_playbook(playbook, hosts, directory=self.sandbox.root, **options)

    def start(self, hosts: Inventory, **options: t.Any) -> RunningPlay:
        """Start the playbook."""
        options["extra_vars"] = {"pg_backup_hosts": "all", **(options.get("extra_vars") or {})}
        return start_playbook(PLAYBOOK, hosts, directory=self.sandbox.root, **options)

    def tasks(self, name: str, *tasks: dict[str, t.Any]) -> str:
        """Write a file of tasks for a hook and return its path."""
        return str(own_file(self.sandbox.root / f"{name}.yml", json.dumps(list(tasks)), mode=0o644))

    def published(self, cluster: str) -> list[pathlib.Path]:
        """Return the directories of a cluster's published backups, oldest first."""
        return _entries(self.repository / cluster / "backups")

    def unfinished(self, cluster: str) -> list[pathlib.Path]:
        """Return the directories of a cluster's unfinished backups."""
        return _entries(self.repository / cluster / "in_progress")

    def one(self, cluster: str) -> pathlib.Path:
        """Require that a cluster has one backup, a published one, and return it."""
        assert self.unfinished(cluster) == []
        (backup,) = self.published(cluster)
        return backup


def _entries(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def reached(play: Play, host: str) -> list[str]:
    """Return the tasks with the collection's modules that ran for ``host``, delegated ones included."""
    return [
        event["task"] for event in play.of(host) if event["action"].startswith(OURS) and event["outcome"] != "skipped"
    ]


def switches(play: Play, *hosts: str) -> list[bool]:
    """Return for each run of the handler whether it switched WAL."""
    return [event["changed"] for host in hosts for event in play.of(host) if event["task"].endswith(HANDLER)]


def message(play: Play, host: str) -> str:
    """Return the message of the last failure of ``host``, in which the role reports what failed."""
    failures = play.of(host, "failed")
    assert failures, f"{host} did not fail: {play.stdout[-6000:]}"
    return str(failures[-1]["result"]["msg"])


def told(play: Play, host: str) -> str:
    """Return all messages of a host's tasks and of their loop iterations, as one text."""
    results = [event["result"] for event in play.of(host) if event["outcome"] != "skipped"]
    turns = [turn for result in results for turn in [result, *result.get("results", [])]]
    return "\n".join(json.dumps(turn["msg"]) for turn in turns if "msg" in turn)


def segment(server: Server) -> int:
    """Return the number of the WAL segment that a primary writes to."""
    return int(server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")[8:], 16)


class Copying:
    """A play whose copy is stopped in the middle of a sparse file that the server no longer has."""

    def __init__(self, play: RunningPlay, backup: pathlib.Path, process: int) -> None:
        self.play = play
        self.backup = backup
        self.process = process
        self.keeper = int(read_json(backup / "session" / "state.json")["pid"])

    def go_on(self) -> None:
        """Let the copy continue."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGCONT)


@contextlib.contextmanager
def held_copy(fleet: RoleHosts, host: str, server: Server, **variables: t.Any) -> t.Iterator[Copying]:
    """Start the play for ``host``; yield it after SIGSTOP has stopped its copy and the play has shown progress."""
    big = own_file(server.data / BIG_FILE, "")
    os.truncate(big, 2 << 30)
    play = fleet.start({host: fleet.host(server, progress_interval=1, **variables)})
    try:
        (backup,) = wait_until(
            lambda: fleet.unfinished(variables.get("cluster", host)), "a backup is begun", interval=0.005
        )
        record = backup / "copy" / "progress.json"
        wait_until(lambda: read_json(record).get("done_files"), "the copy is under way", interval=0.002)
        copying = Copying(play, backup, os.getpgid(read_json(record)["pid"]))
        os.killpg(copying.process, signal.SIGSTOP)
        try:
            wait_until(lambda: f"[{host}] {backup.name}: " in play.stdout, f"progress is shown: {play.stdout}")
            big.unlink()
            yield copying
        finally:
            copying.go_on()
    finally:
        big.unlink(missing_ok=True)
        with contextlib.suppress(ProcessLookupError):
            play.signal(group=True)
        play.process.wait()
