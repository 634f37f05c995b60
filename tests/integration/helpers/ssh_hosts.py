# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts reached by ssh, set up as the README describes, and plays on them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import typing as t

import yaml

from tests.harness import binaries
from tests.harness.fleet import Fleet, Host, HostServer
from tests.harness.modules import CLONE
from tests.harness.playbook import Play, RunningPlay, start_playbook
from tests.harness.sandbox import Sandbox
from tests.harness.servers import wait_until
from tests.harness.user import me, run
from tests.integration.helpers.files import read_json
from tests.integration.helpers.leftovers import sessions

REPOSITORY: t.Final = "/srv/backups"
PASSWORD: t.Final = "h0lly-Wood:tail"
BIG: t.Final = "base/1/99999999"


def readme(language: str) -> str:
    """Return the first block in ``language`` of the README."""
    found = re.search(rf"^```{language}\n(.*?)^```", (CLONE / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


class SshHosts:
    """The fleet, its servers, and plays on them."""

    def __init__(self, sandbox: Sandbox, hosts: Fleet) -> None:
        """Set up db1 and db2 as database hosts as the README describes."""
        self.sandbox = sandbox
        self.fleet = hosts
        self.plays: list[RunningPlay] = []
        self.db1, self.db2, self.db3 = hosts.hosts.values()
        self.db1.give_psycopg2()
        self.db2.give_psycopg2()
        self.db3.take_psycopg2()
        self.primary = HostServer(self.db1, binaries.NEWEST).make_primary("for-replication")
        for command in filter(str.strip, re.sub(r"--.*", "", readme("sql")).split(";")):
            self.primary.sql(command)
        self.primary.sql("ALTER ROLE backup PASSWORD %s", [PASSWORD])
        self.primary.pgbench_init()
        self.standby = HostServer(self.db2, binaries.NEWEST, self.primary).make_standby("for-replication")

    def start(
        self, limit: str = "all", args: t.Sequence[str] = (), *, pipelining: bool = True, **variables: t.Any
    ) -> RunningPlay:
        """Start the README's playbook, with more ``variables`` in the inventory."""
        inventory = {
            host.name: {**self.fleet.host_vars(host, pipelining=pipelining), **variables}
            for host in self.fleet.hosts.values()
        }
        play = start_playbook(
            yaml.safe_load(readme("yaml")),
            inventory,
            directory=self.sandbox.root,
            groups={"databases": list(inventory)},
            args=["--limit", limit, *args],
        )
        self.plays.append(play)
        return play

    def backups(self, host: Host, state: str = "backups") -> list[pathlib.Path]:
        """Return a host's published backups, or those ``in_progress``."""
        return list(host.path(f"{REPOSITORY}/{host.name}/{state}").glob("*"))

    def published(self, host: Host, play: Play) -> pathlib.Path:
        """Require that a play has published one backup of ``host``, its only one, and return it."""
        assert play.stats[host.name]["failures"] == play.stats[host.name]["unreachable"] == 0, play.stdout[-8000:]
        (backup,) = self.backups(host)
        assert result(play, host, "backup_publish")["backup_id"] == backup.name
        return backup

    @contextlib.contextmanager
    def held_copy(self, server: HostServer, play: RunningPlay) -> t.Iterator[pathlib.Path]:
        """Stop the copy that ``play`` makes of ``server`` in the middle, and yield the unfinished backup."""

        def running() -> tuple[pathlib.Path, int] | None:
            assert play.process.poll() is None, play.stdout
            for backup in self.backups(server.host, "in_progress"):
                record = read_json(backup / "copy" / "progress.json")
                if record.get("total_bytes"):
                    return backup, int(record["pid"])
            return None

        big = f"{server.data}/{BIG}".removeprefix(str(server.host.path("")))
        server.host.run(["truncate", "--size=1G", big], user="postgres")
        try:
            backup, pid = wait_until(running, "the copy is under way", timeout=90, interval=0.01)
            group = os.getpgid(server.host.outside(pid))
            os.killpg(group, signal.SIGSTOP)
            try:
                assert read_json(backup / "copy" / "progress.json")["state"] == "running"
                yield backup
                assert sessions(server), "the session lives"
                folder = f"/in_progress/{backup.name}/session"
                assert any(folder in line for line in server.host.processes().values())
            finally:
                os.killpg(group, signal.SIGCONT)
        finally:
            server.host.run(["rm", big])

    def kill(self, play: RunningPlay) -> None:
        """End the controller as a power failure would: ansible-playbook, its workers and every ssh."""
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(play.directory).encode() in (folder / "cmdline").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
        for pid in self.fleet.ssh_processes():
            os.kill(pid, signal.SIGKILL)
        assert play.process.wait() == -signal.SIGKILL
        wait_until(lambda: not self.fleet.ssh_processes(), "no ssh is left")

    def leaks(self) -> str:
        """Return the command line of a process with the password in it or in its environment, '' if there is none."""
        for part in (self.db1, self.db2, self.fleet.controller):
            for pid, line in part.processes().items():
                with contextlib.suppress(OSError):
                    if PASSWORD in line or PASSWORD.encode() in pathlib.Path(f"/proc/{pid}/environ").read_bytes():
                        return line
        return ""

    def files_with_password(self, play: RunningPlay) -> str:
        """Return the files of the hosts, and the output and results of ``play``, that hold the password."""
        places = [self.db1.upper, self.db2.upper, play.output, play.directory / "events.jsonl"]
        done = run(["grep", "-rlF", PASSWORD, *places], user=me(), check=False)
        # Status 2: a file vanished during the search.
        assert done.returncode in (1, 2) or done.stdout
        return done.stdout

    def is_well(self) -> None:
        """Require that hosts, servers and repositories are as a backup must leave them, whether it succeeds or not."""
        for server in (self.primary, self.standby):
            host = server.host
            # mypy infers no type for a lambda with a default, which binds the loop's variable.
            wait_until(lambda server=server: not sessions(server), f"no session on {host.name}", timeout=10)  # type: ignore[misc]
            wait_until(
                # mypy infers no type for a lambda with a default, which binds the loop's variable.
                lambda host=host: not [line for line in host.processes().values() if "python" in line],  # type: ignore[misc]
                f"no process on {host.name}: {host.processes()}", timeout=20,
            )  # fmt: skip
            assert not (server.data / "backup_label").exists()
            assert not self.backups(host, "in_progress")
            for backup in self.backups(host):
                assert read_json(backup / "backup.json")["state"] == "complete"
                assert (backup / "data" / "backup_label").is_file()
        self.primary.sql("CHECKPOINT")
        self.standby.catch_up()


def result(play: Play, host: Host, module: str) -> dict[str, t.Any]:
    """Return the result of the only task that ran ``module`` for ``host``."""
    (event,) = [
        one for one in play.of(host.name) if one["action"].endswith(f".{module}") and one["outcome"] != "skipped"
    ]
    found: dict[str, t.Any] = event["result"]
    return found
