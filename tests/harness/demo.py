# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo``: two servers, backed up by the playbook under load, verified, restored with cp, and checked.

``make demo-down`` ends and removes all of it, also after a demo that was killed. Everything lies in one folder:
``demo-sandbox`` in the clone or, where the server user cannot reach that, a folder in the cache.
"""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import time
import typing as t

import yaml

from . import binaries
from .checks import amcheck, restore, verifybackup
from .modules import CLONE
from .playbook import ansible_environment, bin_path, host_vars
from .sandbox import Sandbox
from .servers import Server, wait_until
from .stage import DemoError, Show, choose_folder, down, end_processes, shortened, table
from .user import popen, server_user

MAJOR: t.Final = binaries.NEWEST
SCALE: t.Final = 5
ACCOUNTS: t.Final = SCALE * 100_000
# Enough to change pages all over the place while they are copied, too little to fill a disk.
LOAD: t.Final = ("-n", "-c", "2", "-R", "200", "-T", "600", "-b", "tpcb-like")


# -- the demo --------------------------------------------------------------------------------------------------------


class Demo:
    """The steps, in order."""

    def __init__(self, folder: pathlib.Path, show: Show) -> None:
        self.show = show
        self.sandbox = Sandbox(folder)
        self.repository = self.sandbox.directory("repository")
        self.inventory = folder / "inventory.yml"
        self.backups: list[dict[str, t.Any]] = []

    def sql_line(self, server: Server) -> str:
        """Return the command that opens psql on a server."""
        library = binaries.environment(server.major)["LD_LIBRARY_PATH"]
        psql = binaries.tool(server.major, "psql")
        return f"LD_LIBRARY_PATH={library} {psql} -h {server.socket_directory} -p {server.port} -U postgres"

    def run(self) -> None:
        """Show everything; any exception means that it is not as it should be."""
        self.servers()
        self.load()
        self.back_up()
        self.back_up_again()
        self.catalogue()
        self.verify()
        for backup in self.backups:
            self.restore(backup)
        self.end()

    def servers(self) -> None:
        self.show.heading(f"A primary with a WAL archive and a tablespace, and a streaming standby: PostgreSQL {MAJOR}")
        self.show.say(f"Everything lies in {self.sandbox.root}; the servers run as {server_user().name}.")
        if not self.sandbox.root.is_relative_to(CLONE):
            self.show.say(
                f"(Not in the clone: {server_user().name} cannot reach it, or its path is too long for a socket.)"
            )
        # PostgreSQL's own defaults where the tests trade safety for speed.
        self.primary = self.sandbox.primary(MAJOR, tablespaces=["extra"], fsync=True, autovacuum=True)
        self.standby = self.sandbox.standby(self.primary, fsync=True, autovacuum=True)
        for server in (self.primary, self.standby):
            self.show.say(f"{server.name}: port {server.port}, {server.data}")
        common = {
            "ansible_become_user": server_user().name,
            "pg_backup_repository": str(self.repository),
            "pg_backup_fast": True,
        }
        hosts = {server.name: host_vars(server) for server in (self.primary, self.standby)}
        text = yaml.safe_dump({"all": {"vars": common, "hosts": hosts}}, sort_keys=False)
        self.inventory.write_text(f"# The demo's two servers, as hosts of an inventory.\n{text}")

    def load(self) -> None:
        self.show.heading(
            f"{ACCOUNTS:,} pgbench accounts in the tablespace, and a load that goes on during the backups"
        )
        self.primary.pgbench_init(SCALE, "postgres", "--tablespace=extra")
        # So that the standby's backup starts here, too, and not at a restartpoint before all this.
        self.primary.sql("CHECKPOINT")
        self.standby.catch_up()
        self.standby.sql("CHECKPOINT")
        self.show.command("pgbench", *LOAD)
        log = (self.sandbox.root / "pgbench.log").open("w")
        command = [binaries.tool(MAJOR, "pgbench"), *LOAD, "-h", str(self.primary.socket_directory), "postgres"]
        self.pgbench = popen(command, env=self.primary.env, stdout=log, stderr=subprocess.STDOUT)
        wait_until(self.transactions, "pgbench commits its first transactions")

    def transactions(self, server: Server | None = None) -> int:
        """Return how many transactions of the load a server has seen."""
        return int((server or self.primary).value("SELECT count(*) FROM pgbench_history"))

    def ansible(self, program: str, *arguments: str, quiet: bool = False) -> list[dict[str, t.Any]]:
        """Run one of Ansible's programs on the inventory, show it, and return its events, the recap last."""
        show = self.show
        show.command(f".venv/bin/{program}", "-i", shortened(self.inventory), *arguments)
        directory = self.sandbox.directory("ansible", 0o755)
        env = ansible_environment(directory)
        env.update(ANSIBLE_DISPLAY_SKIPPED_HOSTS="0", ANSIBLE_LOAD_CALLBACK_PLUGINS="1", PYTHONUNBUFFERED="1")
        # What a killed Ansible leaves in it goes with the folder. Its modules, run by the server user, inherit this.
        env["TMPDIR"] = str(self.sandbox.directory("tmp", 0o1777))
        events = pathlib.Path(env["PGFLEET_EVENTS"])
        events.unlink(missing_ok=True)
        # The absolute path is what `processes` looks for.
        command = [bin_path(program), "-i", str(self.inventory), *arguments]
        with subprocess.Popen(
            command, cwd=CLONE, env=env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            output = self.relay(process.stdout, quiet)
        if process.returncode != 0:
            if quiet:
                show.say(output)
            raise DemoError(f"{program} ended with exit code {process.returncode}; its output is above.")
        return [json.loads(line) for line in events.read_text().splitlines()]

    def relay(self, stream: t.Iterable[str], quiet: bool) -> str:
        """Show Ansible's output without its decoration and its reports of included files; return all of it."""
        lines, task = [], ""
        for line in stream:
            lines.append(line)
            text = line.rstrip("* \n")
            if text.startswith("TASK ["):
                task = text
            elif text and not quiet and not text.startswith("included: "):
                if task:
                    self.show.say(f"  {task}")
                self.show.say(f"  {text}")
                task = ""
        return "".join(lines)

    def play(self) -> dict[str, dict[str, int]]:
        """Run the playbook and return its recap."""
        stats: dict[str, dict[str, int]] = self.ansible("ansible-playbook", "playbooks/backup.yml")[-1]["stats"]
        if set(stats) != {self.primary.name, self.standby.name}:
            raise DemoError(f"The playbook ran on {', '.join(stats) or 'no host'} instead of both servers.")
        return stats

    def back_up(self) -> None:
        self.show.heading("Back up both while the load runs")
        self.before = self.transactions()
        stats = self.play()
        if self.pgbench.poll() is not None:
            raise DemoError(f"pgbench ended too early: {(self.sandbox.root / 'pgbench.log').read_text()}")
        if not all(host["changed"] for host in stats.values()):
            raise DemoError(f"A host was not backed up: {stats}")
        self.show.say(f"pgbench committed {self.transactions() - self.before:,} transactions meanwhile.")

    def back_up_again(self) -> None:
        self.show.heading("Again: the backups are young enough, nothing is to do")
        stats = self.play()
        if any(host["changed"] for host in stats.values()):
            raise DemoError(f"The second run changed something: {stats}")
        self.pgbench.terminate()
        self.pgbench.wait()
        self.show.say("changed=0 on both. The load is stopped.")

    def catalogue(self) -> None:
        self.show.heading("The catalogue, as the module backup_info tells it")
        module = ("-m", "pgfleet.basebackup.backup_info", "-a", f"repository={self.repository}")
        result = self.ansible("ansible", "primary", "-b", *module, quiet=True)[0]["result"]
        rows = [["cluster", "backup", "from", "size", "age", "start LSN", "stop LSN", "WAL proven by"]]
        for cluster in result["clusters"]:
            if [one["state"] for one in cluster["backups"]] != ["published"] or cluster["unfinished"]:
                raise DemoError(f"There should be one published backup and nothing else: {cluster}")
            (backup,) = cluster["backups"]
            self.backups.append({**backup, "cluster": cluster["name"]})
            rows.append([
                cluster["name"], backup["backup_id"], "standby" if backup["from_standby"] else "primary",
                f"{backup['bytes'] / 2**20:.0f} MiB", f"{backup['age_seconds']:.0f} s",
                backup["start_lsn"], backup["stop_lsn"], backup["wal_proven_by"],
            ])  # fmt: skip
        if [backup["from_standby"] for backup in self.backups] != [False, True]:
            raise DemoError("One backup of the primary and one of the standby were expected.")
        self.show.say(table(rows))

    def verify(self) -> None:
        self.show.heading("pg_verifybackup: every file against the manifest, and the WAL of the archive")
        archive = self.primary.archive
        assert archive is not None
        for backup in self.backups:
            data = pathlib.Path(backup["directory"], "data")
            self.show.command("pg_verifybackup", "-w", shortened(archive), shortened(data))
            verifybackup(data, MAJOR, archive)
            self.show.say("backup successfully verified")

    def restore(self, backup: dict[str, t.Any]) -> None:
        show, source = self.show, pathlib.Path(backup["directory"])
        name = f"restored-{backup['cluster']}"
        target = self.sandbox.root / name
        show.heading(f"Restore the {backup['cluster']}'s backup with cp, start it, look for corruption")
        show.command("cp", "-a", shortened(source / "data"), shortened(target / "data"))
        show.command("cp", "-a", shortened(source / "tablespaces"), shortened(target / "tablespaces"))
        show.say(
            "pg_tblspc and tablespace_map then name the tablespace's copy, restore_command = 'cp ...' from the archive,"
        )
        show.say(
            "recovery_target = 'immediate', recovery_target_action = 'promote', archive_mode = off, recovery.signal"
        )
        server = restore(self.sandbox, source, self.primary.archive, MAJOR, name=name, target="immediate")
        show.say(f"started, recovered to the end of the backup, promoted to timeline {_timeline(server)}")
        show.command("pg_amcheck", "--all", "--heapallindexed", "--parent-check")
        amcheck(server)
        show.say("no corruption found")
        self.compare(server)
        server.stop()

    def compare(self, server: Server) -> None:
        """Check what every state that a transaction left behind has in common (pgbench's documentation, TPC-B)."""
        (counts,) = server.sql(
            "SELECT (SELECT count(*) FROM pgbench_accounts), (SELECT count(*) FROM in_extra),"
            " (SELECT count(*) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts),"
            " (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches),"
            " (SELECT sum(delta) FROM pgbench_history)"
        )
        accounts, extra, history, *sums = counts
        self.show.say(
            f"{accounts:,} accounts; {history:,} transactions, each whole: four sums of money are {sums[0]:,}"
        )
        if (accounts, extra) != (ACCOUNTS, 1000) or len(set(sums)) != 1:
            raise DemoError(f"The rows are not plausible: {counts}")
        if not self.before <= history <= self.transactions():
            raise DemoError(
                f"{history} transactions: the backup began after {self.before}, the load ended after"
                f" {self.transactions()}."
            )
        (location,) = server.sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'extra'")[0]
        if not str(location).startswith(f"{server.directory}/"):
            raise DemoError(f"The restored tablespace is {location}, not a copy.")

    def end(self) -> None:
        show = self.show
        show.heading("Shown")
        show.say(
            "Both servers were backed up under load, and a second run changed nothing. PostgreSQL's own tools accept"
        )
        show.say("both backups; restored with cp they start, are consistent, and pg_amcheck finds nothing.")
        show.say(f"It took {show.seconds:.0f} s. Primary and standby still run. To look further:")
        show.say()
        for server in (self.primary, self.standby):
            show.say(self.sql_line(server))
        show.say(f"less {shortened(self.inventory)}")
        show.say(f"ls {shortened(self.repository)}/*/backups/*")
        show.say(
            f".venv/bin/ansible-playbook -i {shortened(self.inventory)} playbooks/backup.yml -e pg_backup_force=true"
        )
        show.say("make demo-down      # stops the servers and removes everything")


def _timeline(server: Server) -> int:
    return int(server.value("SELECT timeline_id FROM pg_control_checkpoint()"))


def up() -> int:
    """Run the demo and return the exit code; the servers go on only if all went well."""
    show = Show()
    folder = None
    shown = False
    try:
        for old in down():
            print(f"Removed the previous demo: {old}")
        if not (binaries.cache_directory() / f"postgresql-{binaries.VERSIONS[MAJOR]}").exists():
            print(f"Downloading PostgreSQL {MAJOR} to {binaries.cache_directory()}, once.", flush=True)
        binaries.prefix(MAJOR)
        binaries.server_python()
        show.started = time.monotonic()
        folder = choose_folder()
        Demo(folder, show).run()
        shown = True
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except (AssertionError, DemoError, OSError, RuntimeError, subprocess.SubprocessError) as exc:
        print(f"\nThe demo failed in step {show.step}: {exc}", file=sys.stderr)
        return 1
    finally:
        if folder and not shown:
            end_processes(folder)
            print(
                f"The servers are stopped. What there is lies in {folder}; make demo-down removes it.", file=sys.stderr
            )
    return 0


def main(words: list[str]) -> int:
    """Run ``up`` or ``down``."""
    if words == ["down"]:
        for path in down():
            print(f"Removed {path}")
        return 0
    return up()


def _interrupt(*_: object) -> t.NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, _interrupt)
    sys.exit(main(sys.argv[1:]))
