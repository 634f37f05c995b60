# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo``: two servers, their WAL archived, backed up under load, verified, proven by a drill, and one of them
recovered to the moment before a table was dropped.

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
from .checks import amcheck, verifybackup
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
        self.archive()
        self.load()
        self.back_up()
        self.back_up_again()
        self.catalogue()
        self.verify()
        self.drill()
        self.disaster()
        self.recover()
        self.end()

    def servers(self) -> None:
        self.show.heading(f"A primary with a tablespace and a streaming standby: PostgreSQL {MAJOR}")
        self.show.say(f"Everything lies in {self.sandbox.root}; the servers run as {server_user().name}.")
        if not self.sandbox.root.is_relative_to(CLONE):
            self.show.say(
                f"(Not in the clone: {server_user().name} cannot reach it, or its path is too long for a socket.)"
            )
        # PostgreSQL's own defaults where the tests trade safety for speed.
        options: dict[str, t.Any] = {"fsync": True, "autovacuum": True}
        self.primary = self.sandbox.primary(MAJOR, archive=False, tablespaces=["extra"], **options)
        self.standby = self.sandbox.standby(self.primary, **options)
        hosts = {}
        for server in (self.primary, self.standby):
            self.show.say(f"{server.name}: port {server.port}, {server.data}")
            hosts[server.name] = self.host(server)
        common = {
            "ansible_become_user": server_user().name,
            "pg_backup_fast": True,
            "pg_archive_restart": True,
            "pg_drill_directory": str(self.sandbox.directory("drill")),
        }
        text = yaml.safe_dump({"all": {"vars": common, "hosts": hosts}}, sort_keys=False)
        self.inventory.write_text(f"# The demo's two servers, as hosts of an inventory.\n{text}")

    def host(self, server: Server) -> dict[str, t.Any]:
        """Return a host's variables: what the four roles must know of it."""
        variables = host_vars(server)
        own = {name[len("pg_backup_") :]: value for name, value in variables.items() if name.startswith("pg_backup_")}
        programs = {"bin_directory": str(binaries.prefix(MAJOR) / "bin")}
        archive = {"archive_directory": str(self.repository / self.primary.name / "wal")}
        become = {name: value for name, value in own.items() if name.startswith("become")}
        roles = {
            "pg_archive": {**own, **programs},
            "pg_backup": {},
            "pg_drill": {**become, **programs, **archive},
            "pg_recover": {**own, **programs, **archive},
        }
        for role, more in roles.items():
            variables[f"{role}_repository"] = str(self.repository)
            variables.update({f"{role}_{name}": value for name, value in more.items()})
        return variables

    def archive(self) -> None:
        self.show.heading("Archive the WAL, and prove that it works")
        self.play("archive", changed=True)
        self.primary.archive = self.repository / self.primary.name / "wal"
        self.show.say(f"{len(list(self.primary.archive.iterdir()))} files in {shortened(self.primary.archive)}")

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
        # Servers that the roles start need it as those that the harness starts do.
        env.update(binaries.environment(MAJOR))
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

    def play(self, name: str, *arguments: str, changed: bool, hosts: int = 2) -> dict[str, dict[str, int]]:
        """Run one of the playbooks and return its recap; it must have run on all hosts and changed them, or nothing."""
        playbook = f"playbooks/{name}.yml"
        stats: dict[str, dict[str, int]] = self.ansible("ansible-playbook", playbook, *arguments)[-1]["stats"]
        servers = {host: numbers for host, numbers in stats.items() if host != "localhost"}
        if len(servers) != hosts:
            raise DemoError(f"The playbook ran on {', '.join(stats) or 'no host'} instead of {hosts}.")
        if any(bool(numbers["changed"]) != changed for numbers in servers.values()):
            raise DemoError(f"The playbook should have changed {'each host' if changed else 'nothing'}: {stats}")
        return stats

    def back_up(self) -> None:
        self.show.heading("Back up both while the load runs")
        self.before = self.transactions()
        self.play("backup", changed=True)
        if self.pgbench.poll() is not None:
            raise DemoError(f"pgbench ended too early: {(self.sandbox.root / 'pgbench.log').read_text()}")
        self.show.say(f"pgbench committed {self.transactions() - self.before:,} transactions meanwhile.")

    def back_up_again(self) -> None:
        self.show.heading("Again: the backups are young enough, nothing is to do")
        self.play("backup", changed=False)
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
        self.show.heading("Verify: every checksum, every WAL file; then PostgreSQL's own program, which must agree")
        archive = self.primary.archive
        assert archive is not None
        for backup in self.backups:
            options = {
                "repository": str(self.repository), "cluster": backup["cluster"], "backup_id": backup["backup_id"],
                "levels": "full,wal", "archive_directory": str(archive),
            }  # fmt: skip
            arguments = " ".join(f"{name}={value}" for name, value in options.items())
            module = ("-m", "pgfleet.basebackup.backup_verify", "-a", arguments)
            self.show.say(self.ansible("ansible", "primary", "-b", *module, quiet=True)[0]["result"]["msg"])
            data = pathlib.Path(backup["directory"], "data")
            self.show.command("pg_verifybackup", "-w", shortened(archive), shortened(data))
            verifybackup(data, MAJOR, archive)
            self.show.say("backup successfully verified")

    def drill(self) -> None:
        self.show.heading("Drill: restore both beside the live servers, start, look for corruption, remove again")
        self.play("drill", changed=True)
        module = ("-m", "pgfleet.basebackup.backup_info", "-a", f"repository={self.repository}")
        result = self.ansible("ansible", "primary", "-b", *module, quiet=True)[0]["result"]
        for cluster in result["clusters"]:
            (backup,) = cluster["backups"]
            if not backup["proven_at"]:
                raise DemoError(f"The drill did not prove it: {backup}")
            self.show.say(f"{cluster['name']} {backup['backup_id']}: proven at {backup['proven_at']}")

    def disaster(self) -> None:
        """Drop a table, and write something after it."""
        self.show.heading("DROP TABLE pgbench_history")
        self.standby.stop()
        self.show.say("(The standby is stopped: it would follow its primary into this, and could not follow it back.)")
        self.kept = self.state()
        self.moment = str(self.primary.value("SELECT clock_timestamp()"))
        self.show.say(f"It is {self.moment}; pgbench_history has {self.kept[0]:,} rows.")
        self.primary.sql("DROP TABLE pgbench_history")
        self.primary.sql("UPDATE pgbench_accounts SET abalance = 0 WHERE aid < 1000")
        self.show.say("Dropped, and other transactions were committed since.")

    def recover(self) -> None:
        self.show.heading("Recover the primary to the moment before: first the plan, then the deed")
        options = [
            "-e", "pg_recover_hosts=primary", "-e", "pg_recover_delta=true",
            "-e", json.dumps({"pg_recover_recovery_target_time": self.moment}),
        ]  # fmt: skip
        self.play("restore", *options, "--check", changed=True, hosts=1)
        if self.primary.sql("SELECT 1 FROM pg_class WHERE relname = 'pgbench_history'"):
            raise DemoError("Check mode has changed something.")
        self.play("restore", *options, changed=True, hosts=1)
        if self.state() != self.kept:
            raise DemoError(f"{self.state()} instead of {self.kept}")
        amcheck(self.primary)
        timeline = self.primary.value("SELECT timeline_id FROM pg_control_checkpoint()")
        self.show.say(
            f"pgbench_history has its {self.kept[0]:,} rows again; timeline {timeline}; pg_amcheck finds nothing."
        )

    def state(self) -> tuple[t.Any, ...]:
        """Return what tells one state of the database from another (pgbench's documentation, TPC-B)."""
        return self.primary.sql(
            "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(delta) FROM pgbench_history),"
            " (SELECT sum(abalance) FROM pgbench_accounts), (SELECT count(*) FROM in_extra)"
        )[0]

    def end(self) -> None:
        show = self.show
        show.heading("Shown")
        show.say(
            "Both servers were backed up under load, and a second run changed nothing. PostgreSQL's own tools accept"
        )
        show.say("both backups, a drill has proven them, and a dropped table is back.")
        show.say(f"It took {show.seconds:.0f} s. The primary still runs. To look further:")
        show.say()
        show.say(self.sql_line(self.primary))
        show.say(f"less {shortened(self.inventory)}")
        show.say(f"ls {shortened(self.repository)}/*/backups/*")
        show.say(
            f".venv/bin/ansible-playbook -i {shortened(self.inventory)} playbooks/backup.yml -e pg_backup_force=true"
        )
        show.say("make demo-down      # stops the servers and removes everything")


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
