# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo``: two servers, their WAL archived, backed up under load, verified, proven by a drill, and one of them
recovered to the moment before a table was dropped.

``make demo-down`` ends and removes all of it, even after a demo that was killed. Everything is in one folder:
``demo-sandbox`` in the clone or, if the server user cannot reach that, a folder in the cache.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import signal
import subprocess
import sys
import typing as t

import yaml

from tests.harness import binaries
from tests.harness.checks import amcheck, verifybackup
from tests.harness.modules import CLONE
from tests.harness.playbook import ansible_environment, bin_path, host_vars
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import popen, run, server_user

from .demo_folder import DemoError, choose_folder, down, end_processes
from .demo_output import Output, shortened, table

MAJOR: t.Final = binaries.NEWEST
SCALE: t.Final = 5
ACCOUNTS: t.Final = SCALE * 100_000
# Enough to change pages everywhere during the copy, too little to fill a disk in an hour.
LOAD: t.Final = ("-n", "-c", "2", "-R", "200", "-T", "3600")
SERVICE: t.Final = "service=primary"
# Seconds to wait for steps that take a few on an idle machine.
PATIENCE: t.Final = 120

Events = t.List[t.Dict[str, t.Any]]


class Demo:
    """The steps, in order."""

    def __init__(self, folder: pathlib.Path, output: Output) -> None:
        self.output = output
        self.sandbox = Sandbox(folder)
        self.repository = self.sandbox.directory("repository")
        self.inventory = folder / "inventory.yml"
        self.services = folder / "pg_service.conf"

    def run(self) -> None:
        """Run all steps; any exception means that one went wrong."""
        self.servers()
        self.archive()
        self.load()
        self.back_up()
        self.back_up_again()
        self.verify()
        self.drill()
        self.catalogue()
        self.disaster()
        self.recover()
        self.end()

    # -- the steps -----------------------------------------------------------------------------------------------

    def servers(self) -> None:
        """Create the servers, and the files by which Ansible and PostgreSQL's programs find them."""
        self.output.heading(f"A primary with a tablespace and a standby with a replication slot: PostgreSQL {MAJOR}")
        # PostgreSQL's defaults, where the tests trade safety for speed.
        options: dict[str, t.Any] = {"fsync": True, "autovacuum": True}
        self.primary = self.sandbox.primary(MAJOR, archive=False, tablespaces=["extra"], **options)
        self.standby = self.sandbox.standby(self.primary, **options)
        self.archive_directory = self.repository / self.primary.name / "wal"
        self.write_inventory()
        environment = self.write_environment()
        servers = (self.primary, self.standby)
        self.output.say("; ".join(f"{one.name}: {shortened(one.data)}, port {one.port}" for one in servers))
        self.output.say(f"$ . {shortened(environment)}      # in this clone, to repeat the commands below")

    def archive(self) -> None:
        """Enable archiving; the second server restarts only when the first is back."""
        self.output.heading("Archive the WAL and prove it, one server at a time, the standby first")
        self.messages(self.play("archive", "-e", "pg_archive_serial=1", changed=True))
        self.primary.archive = self.archive_directory
        wait_until(self.streams, "the standby streams again after the restarts", timeout=PATIENCE)

    def load(self) -> None:
        """Fill the tablespace and write to it until `back_up_again` has ended."""
        self.output.heading(f"{ACCOUNTS:,} pgbench accounts in the tablespace, and a load that runs during the backups")
        self.postgresql("pgbench", "-i", "-q", "-s", str(SCALE), "--tablespace=extra", SERVICE)
        # So that the standby's backup starts here too, not at an earlier restartpoint.
        self.primary.sql("CHECKPOINT")
        self.standby.catch_up(PATIENCE)
        self.standby.sql("CHECKPOINT")
        self.output.command("pgbench", *LOAD, SERVICE)
        log = (self.sandbox.root / "pgbench.log").open("w")
        command = [binaries.tool(MAJOR, "pgbench"), *LOAD, SERVICE]
        self.pgbench = popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        wait_until(self.transactions, "pgbench commits its first transactions", timeout=PATIENCE)

    def back_up(self) -> None:
        """Back up both under load."""
        self.output.heading("Back up both while the load runs")
        before = self.transactions()
        self.play("backup", changed=True)
        if self.pgbench.poll() is not None:
            raise DemoError(f"pgbench ended too early: {(self.sandbox.root / 'pgbench.log').read_text()}")
        self.output.say(
            f"Both are backed up; pgbench committed {self.transactions() - before:,} transactions during that time."
        )

    def back_up_again(self) -> None:
        """Show that a second run changes nothing."""
        self.output.heading("Again: both backups are recent, changed=0. Then the load ends")
        self.messages(self.play("backup", changed=False))
        self.pgbench.terminate()
        self.pgbench.wait()

    def verify(self) -> None:
        """Verify both backups, with the collection and with PostgreSQL's own program."""
        self.output.heading("Verify every checksum and every WAL file; PostgreSQL's own program must agree")
        options = {"levels": "full,wal", "archive_directory": "{{pg_drill_archive_directory}}"}
        self.messages(self.module("backup_verify", "all", cluster="{{inventory_hostname}}", **options))
        repository, archive = shortened(self.repository), shortened(self.archive_directory)
        every = f"for data in {repository}/*/backups/*/data; do pg_verifybackup -w {archive} $data; done"
        self.output.say(f"$ {every}")
        for server in (self.primary, self.standby):
            (data,) = self.repository.glob(f"{server.name}/backups/*/data")
            verifybackup(data, MAJOR, self.archive_directory)
        self.output.say("backup successfully verified, both")

    def drill(self) -> None:
        """Prove both backups by a restore drill."""
        self.output.heading("Drill: restore both next to the live servers, start, check for corruption, remove again")
        self.messages(self.play("drill", changed=True))

    def catalogue(self) -> None:
        """Show the catalogue: one proven backup of each server."""
        self.output.heading("The catalogue: what the repository holds")
        rows = [["cluster", "backup", "from", "size", "start LSN", "stop LSN", "proven at"]]
        backups = []
        for cluster in self.module("backup_info", "primary")[0]["result"]["clusters"]:
            if [one["state"] for one in cluster["backups"]] != ["published"] or cluster["unfinished"]:
                raise DemoError(f"There should be one published backup and nothing else: {cluster}")
            (backup,) = cluster["backups"]
            if not backup["proven_at"]:
                raise DemoError(f"The drill did not prove it: {backup}")
            backups.append(backup)
            rows.append([
                cluster["name"], backup["backup_id"], "standby" if backup["from_standby"] else "primary",
                f"{backup['bytes'] / 2**20:.0f} MiB", backup["start_lsn"], backup["stop_lsn"], backup["proven_at"],
            ])  # fmt: skip
        if [backup["from_standby"] for backup in backups] != [False, True]:
            raise DemoError("One backup of the primary and one of the standby were expected.")
        self.output.say(table(rows))

    def disaster(self) -> None:
        """Drop a table, and commit something after that."""
        self.output.heading("Drop a table by mistake, and commit something else after it")
        # It would follow its primary into this, and could not follow it back.
        self.standby.stop(timeout=PATIENCE)
        self.kept = self.state()
        self.moment = self.primary.value("SELECT clock_timestamp()").isoformat()
        drop, later = "DROP TABLE pgbench_history", "UPDATE pgbench_accounts SET abalance = 0 WHERE aid < 1000"
        self.postgresql("psql", "-q", "-c", drop, "-c", later, SERVICE)
        self.output.say(
            f"Before, at {self.moment}, pgbench_history had {self.kept[0]:,} rows. (The standby is stopped.)"
        )

    def recover(self) -> None:
        """Plan the recovery, then carry it out."""
        self.output.heading("Recover the primary to the moment before: first the plan, then the recovery")
        options = [
            "-e", "pg_recover_hosts=primary", "-e", "pg_recover_delta=true",
            "-e", f"pg_recover_recovery_target_time={self.moment}",
        ]  # fmt: skip
        plan = self.play("restore", *options, "--check", changed=True, hosts=1)
        self.messages(plan, "Backup:", "What would stop it:")
        if self.primary.sql("SELECT 1 FROM pg_class WHERE relname = 'pgbench_history'"):
            raise DemoError("Check mode has changed something.")
        self.messages(self.play("restore", *options, changed=True, hosts=1))
        if self.state() != self.kept:
            raise DemoError(f"{self.state()} instead of {self.kept}")
        amcheck(self.primary)
        self.output.say(f"pgbench_history has its {self.kept[0]:,} rows again; pg_amcheck finds nothing.")

    def end(self) -> None:
        """Report what remains."""
        self.output.heading("Everything worked. The primary is still running; to explore it:")
        self.output.command("psql", SERVICE)
        inventory = shortened(self.inventory)
        self.output.say(
            f"$ ansible-playbook -i {inventory} playbooks/backup.yml -e pg_backup_hosts=primary -e pg_backup_force=true"
        )
        self.output.command("less", shortened(self.output.log))
        self.output.say("$ make demo-down      # stops the servers and removes everything")

    # -- what the steps share ------------------------------------------------------------------------------------

    def write_inventory(self) -> None:
        """Write the servers as hosts, the standby first: plays that run host by host keep this order."""
        common = {
            "ansible_become_user": server_user().name,
            "pg_backup_fast": True,
            "pg_archive_restart": True,
            "pg_drill_directory": str(self.sandbox.directory("drill")),
        }
        hosts = {server.name: self.host(server) for server in (self.standby, self.primary)}
        text = yaml.safe_dump({"all": {"vars": common, "hosts": hosts}}, sort_keys=False)
        self.inventory.write_text(f"# The demo's two servers, as hosts of an inventory.\n{text}")

    def host(self, server: Server) -> dict[str, t.Any]:
        """Return a host's variables: what the four roles must know about it."""
        variables = host_vars(server)
        own = {name[len("pg_backup_") :]: value for name, value in variables.items() if name.startswith("pg_backup_")}
        programs = {"bin_directory": str(binaries.prefix(MAJOR) / "bin")}
        archive = {"archive_directory": str(self.archive_directory)}
        become = {name: value for name, value in own.items() if name.startswith("become")}
        roles = {
            "pg_archive": {**own, **programs, "script_directory": str(self.sandbox.directory("scripts"))},
            "pg_backup": {},
            "pg_drill": {**become, **programs, **archive},
            "pg_recover": {**own, **programs, **archive},
        }
        for role, more in roles.items():
            variables[f"{role}_repository"] = str(self.repository)
            variables.update({f"{role}_{name}": value for name, value in more.items()})
        return variables

    def write_environment(self) -> pathlib.Path:
        """Write what a shell needs to repeat the commands, including libpq's services; return the file."""
        services = [
            f"[{one.name}]\nhost={one.socket_directory}\nport={one.port}\nuser=postgres\ndbname=postgres\n"
            for one in (self.primary, self.standby)
        ]
        self.services.write_text("".join(services))
        path = f"{pathlib.Path(bin_path('ansible')).parent}:{binaries.prefix(MAJOR) / 'bin'}"
        lines = [f'export PATH={shlex.quote(path)}:"$PATH"']
        lines += [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]
        file = self.sandbox.root / "env"
        file.write_text("".join(f"{line}\n" for line in lines))
        return file

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which PostgreSQL's programs find the servers as services."""
        return {**binaries.environment(MAJOR), "PGSERVICEFILE": str(self.services)}

    def postgresql(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs and show it."""
        self.output.command(program, *arguments)
        done = run([binaries.tool(MAJOR, program), *arguments], env=self.environment, timeout=600)
        self.output.record(f"{done.stdout}{done.stderr}")

    def streams(self) -> bool:
        """Whether the standby streams from its primary."""
        return bool(self.primary.sql("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"))

    def transactions(self) -> int:
        """Return how many transactions of the load have committed."""
        return int(self.primary.value("SELECT count(*) FROM pgbench_history"))

    def state(self) -> tuple[t.Any, ...]:
        """Return numbers that differ between any two states of the database (pgbench's documentation, TPC-B)."""
        return self.primary.sql(
            "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(delta) FROM pgbench_history),"
            " (SELECT sum(abalance) FROM pgbench_accounts), (SELECT count(*) FROM in_extra)"
        )[0]

    def ansible(self, program: str, *arguments: str) -> Events:
        """Run one of Ansible's programs on the inventory, show the command, and return its events, the recap last."""
        self.output.command(program, "-i", shortened(self.inventory), *arguments)
        directory = self.sandbox.directory("ansible", 0o755)
        env = ansible_environment(directory)
        env["ANSIBLE_LOAD_CALLBACK_PLUGINS"] = "1"
        # A killed Ansible leaves files here, which go with the folder. Modules run by the server user inherit this.
        env["TMPDIR"] = str(self.sandbox.directory("tmp", 0o1777))
        # Servers started by the roles need it, as those started by the harness do.
        env.update(binaries.environment(MAJOR))
        events = pathlib.Path(env["PGFLEET_EVENTS"])
        events.unlink(missing_ok=True)
        # The absolute path is what `processes` looks for.
        command = [bin_path(program), "-i", str(self.inventory), *arguments]
        with self.output.log.open("a") as log:
            done = subprocess.run(
                command, cwd=CLONE, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
            )
        if done.returncode != 0:
            raise DemoError(f"{program} ended with exit code {done.returncode}.")
        return [json.loads(line) for line in events.read_text().splitlines()]

    def module(self, name: str, hosts: str, **options: str) -> Events:
        """Run one of the collection's modules on the repository."""
        words = {"repository": "{{pg_backup_repository}}", **options}
        arguments = " ".join(f"{key}={value}" for key, value in words.items())
        return self.ansible("ansible", hosts, "-b", "-m", f"pgfleet.basebackup.{name}", "-a", arguments)

    def play(self, name: str, *arguments: str, changed: bool, hosts: int = 2) -> Events:
        """Run one of the playbooks and return its events; require that it changed every host, or none."""
        named = [] if name == "restore" else ["-e", f"pg_{name}_hosts=all"]
        events = self.ansible("ansible-playbook", f"playbooks/{name}.yml", *named, *arguments)
        stats: dict[str, dict[str, int]] = events[-1]["stats"]
        servers = {host: numbers for host, numbers in stats.items() if host != "localhost"}
        if len(servers) != hosts:
            raise DemoError(f"The playbook ran on {', '.join(stats) or 'no host'} instead of {hosts}.")
        if any(bool(numbers["changed"]) != changed for numbers in servers.values()):
            raise DemoError(f"The playbook should have changed {'each host' if changed else 'nothing'}: {stats}")
        return events

    def messages(self, events: Events, *beginnings: str) -> None:
        """Show the last message of each host, or its lines that begin with one of ``beginnings``."""
        last = {event["host"]: event["result"]["msg"] for event in events if event.get("result", {}).get("msg")}
        for host, message in sorted(last.items()):
            for line in [message] if isinstance(message, str) else message:
                if not beginnings or line.startswith(beginnings):
                    self.output.say(line if line.startswith(f"{host}: ") else f"{host}: {line}")


def up() -> int:
    """Run the demo and return the exit code; the servers keep running only if all went well."""
    folder = output = None
    shown = False
    try:
        for old in down():
            print(f"Removed the previous demo: {old}")
        if not (binaries.cache_directory() / f"postgresql-{binaries.VERSIONS[MAJOR]}").exists():
            print(f"Downloading PostgreSQL {MAJOR} to {binaries.cache_directory()}, once.", flush=True)
        binaries.prefix(MAJOR)
        binaries.server_python()
        folder = choose_folder()
        output = Output(folder / "demo.log")
        where = "" if folder.is_relative_to(CLONE) else f" ({server_user().name} cannot use a folder in the clone)"
        print(f"Everything lies in {folder}{where}; the servers run as {server_user().name}.")
        print(f"The log, with Ansible's whole output, is {shortened(output.log)}.", flush=True)
        Demo(folder, output).run()
        shown = True
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except (AssertionError, DemoError, OSError, RuntimeError, subprocess.SubprocessError) as exc:
        if output:
            print(f"\nThe end of {output.log}:\n\n{output.tail()}", file=sys.stderr)
            output.record(f"\n{exc}\n")
        print(f"\nThe demo failed{f' in step {output.step}' if output else ''}: {exc}", file=sys.stderr)
        return 1
    finally:
        if folder and not shown:
            end_processes(folder)
            print(f"The servers are stopped. The whole log is {folder}/demo.log, their logs are {folder}/*/log.",
                  "make demo-down removes it all.", file=sys.stderr)  # fmt: skip
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
