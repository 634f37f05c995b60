# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role on hosts that are reached by ssh: login user ansible, sudo to postgres, the README's playbook and SQL.

db1 is a primary, db2 its standby; each has a repository of its own. db3 has no psycopg2.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import typing as t

import pytest
import yaml

from tests.harness import binaries, fleet
from tests.harness.checks import data_checksum, restore_and_check
from tests.harness.fleet import Fleet, Host, HostServer
from tests.harness.modules import CLONE
from tests.harness.playbook import Play, RunningPlay, start_playbook
from tests.harness.sandbox import Sandbox
from tests.harness.servers import wait_until
from tests.harness.user import me, run, server_user

from .helpers_faults import read_json, sessions

REPOSITORY: t.Final = "/srv/backups"
PASSWORD: t.Final = "h0lly-Wood:tail"
BIG: t.Final = "base/1/99999999"


def readme(language: str) -> str:
    """Return the first block in ``language`` of the README."""
    found = re.search(rf"^```{language}\n(.*?)^```", (CLONE / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


class World:
    """The fleet, its servers, and plays on them."""

    def __init__(self, sandbox: Sandbox, hosts: Fleet) -> None:
        """Make db1 and db2 database hosts as the README says."""
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
        """Require that a play has published the only backup of ``host``, and return it."""
        assert play.stats[host.name]["failures"] == play.stats[host.name]["unreachable"] == 0, play.stdout[-8000:]
        (backup,) = self.backups(host)
        assert result(play, host, "backup_publish")["backup_id"] == backup.name
        return backup

    @contextlib.contextmanager
    def held_copy(self, server: HostServer, play: RunningPlay) -> t.Iterator[pathlib.Path]:
        """Hold the copy that ``play`` makes of ``server`` in its middle, and give the unfinished backup."""

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
                assert any("session/keeper.py" in line for line in server.host.processes().values())
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
        """Return the command line of a process that shows the password in it or in its environment, '' for none."""
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
        # Status 2: a file has vanished meanwhile.
        assert done.returncode in (1, 2) or done.stdout
        return done.stdout

    def is_well(self) -> None:
        """Require that hosts, servers and repositories are as a backup, good or bad, must leave them."""
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


@pytest.fixture(scope="module")
def three_hosts() -> t.Iterator[World]:
    """The world, made once."""
    if reason := fleet.obstacle():
        pytest.skip(reason)
    with Sandbox() as sandbox, Fleet(sandbox.root / "fleet", "db1", "db2", "db3") as hosts:
        yield World(sandbox, hosts)


@pytest.fixture
def world(three_hosts: World) -> t.Iterator[World]:
    """The world with empty repositories, which is well after the test."""
    for host in (three_hosts.db1, three_hosts.db2):
        host.run(["find", REPOSITORY, "-mindepth", "1", "-delete"])
    try:
        yield three_hosts
    finally:
        for play in three_hosts.plays:
            # Only after a failure of the test.
            if play.process.poll() is None:
                three_hosts.kill(play)
    three_hosts.is_well()


def result(play: Play, host: Host, module: str) -> dict[str, t.Any]:
    """Return the result of the only task that ran ``module`` for ``host``."""
    (event,) = [
        one for one in play.of(host.name) if one["action"].endswith(f".{module}") and one["outcome"] != "skipped"
    ]
    found: dict[str, t.Any] = event["result"]
    return found


def test_play_of_the_readme(world: World) -> None:
    """It publishes on primary and standby, and the second run has nothing to do; a host without psycopg2 is told so."""
    play = world.start(pipelining=False).wait()
    assert play.rc == 2, play.stdout
    world.published(world.db1, play)
    world.published(world.db2, play)
    # Changed or not: the backup of db1 switches too.
    assert not result(play, world.db2, "wal_switch").get("failed")
    failed = play.of("db3", "failed")[-1]
    for word in (fleet.PYTHON, "python3-psycopg2", "db3"):
        assert word in failed["result"]["msg"]

    again = world.start("db1,db2").wait().ok()
    for host in ("db1", "db2"):
        assert again.stats[host]["changed"] == 0
        ours = [one["action"] for one in again.of(host, "ok") if one["action"].startswith("pgfleet.")]
        # Two of the role, to find that nothing is to do.
        assert ours[2:] == ["pgfleet.basebackup.backup_verify"]


def test_standby_alone_asks_its_upstream(world: World) -> None:
    """Its primary is found over libpq, progress is shown, the password nowhere; it restores with db1's archive."""
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


def test_killed_controller(world: World) -> None:
    """The same play goes on with the backup whose controller was killed; pg_backup_primary is asked over ssh."""
    variables = {"pg_backup_primary": "db1", "pg_backup_takeover_after": 2, "pg_backup_progress_interval": 1}
    play = world.start("db2", pipelining=False, **variables)
    with world.held_copy(world.standby, play) as backup:
        world.kill(play)
    again = world.start("db2", **variables).wait().ok()
    assert result(again, world.db2, "backup_start")["resumed"]
    assert world.published(world.db2, again).name == backup.name
    assert not result(again, world.db2, "wal_switch").get("failed")


def test_cut_connection(world: World) -> None:
    """The host counts as unreachable, session and copy live on without it, and the next run publishes that backup."""
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
