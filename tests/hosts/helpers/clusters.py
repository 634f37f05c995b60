# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL on hosts with systemd, laid out as Debian's packages and as PostgreSQL's RPMs do it."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import typing as t

from tests.harness.debian import MAJOR
from tests.harness.fleet import NETWORK
from tests.harness.servers import wait_until
from tests.harness.systemd import SystemdHost

PROGRAMS: t.Final = f"/usr/lib/postgresql/{MAJOR}/bin"
REPLICATION: t.Final = "for-replication"
# Small and fast; nothing that decides how a server archives, restarts or replicates.
SETTINGS: t.Final = """\
listen_addresses = '*'
shared_buffers = 16MB
fsync = off
jit = off
checkpoint_completion_target = 0
"""
# The README's login: over the socket, the system user postgres may be backup.
HBA: t.Final = f"""\
local all backup peer map=backup
local all all peer
host replication replicator {NETWORK}.0/24 scram-sha-256
"""
IDENT: t.Final = "backup postgres backup\n"

# The unit of PostgreSQL's RPMs, with Debian's programs under the names that RPMs give them.
RPM_UNIT: t.Final = f"""\
[Unit]
Description=PostgreSQL {MAJOR} database server
After=syslog.target
After=network-online.target

[Service]
Type=notify
User=postgres
Group=postgres
Environment=PGDATA=/var/lib/pgsql/{MAJOR}/data/
OOMScoreAdjust=-1000
Environment=PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj
Environment=PG_OOM_ADJUST_VALUE=0
ExecStartPre=/usr/pgsql-{MAJOR}/bin/postgresql-{MAJOR}-check-db-dir ${{PGDATA}}
ExecStart=/usr/pgsql-{MAJOR}/bin/postgres -D ${{PGDATA}}
ExecReload=/bin/kill -HUP $MAINPID
KillMode=mixed
KillSignal=SIGINT
TimeoutSec=0
TimeoutStartSec=0
TimeoutStopSec=1h

[Install]
WantedBy=multi-user.target
"""
RPM_CHECK: t.Final = """\
#!/bin/sh
[ -f "$1/PG_VERSION" ] && [ -d "$1/base" ] || { echo "$1 is missing or empty." >&2; exit 1; }
"""

# Runs on a host as root: what systemd, Debian's wrappers, /proc and each server itself say about the servers there.
STATE: t.Final = textwrap.dedent("""
    import json, os, subprocess, sys

    def said(*command, **more):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)
        return done.stdout.decode(errors="replace").strip()

    def read(pid, name):
        try:
            with open("/proc/%s/%s" % (pid, name)) as file:
                return file.read()
        except OSError:
            return ""

    def link(pid, name):
        try:
            return os.readlink("/proc/%s/%s" % (pid, name))
        except OSError:
            return ""

    def parent(pid):
        return read(pid, "stat").rpartition(")")[2].split()[1:2]

    facts = {"failed": said("systemctl", "--failed", "--plain", "--no-legend")}
    facts["lsclusters"] = said("pg_lsclusters", "-h")
    servers = {pid for pid in os.listdir("/proc") if pid.isdigit() and link(pid, "exe").endswith("/postgres")}
    mains = {pid for pid in servers if not servers.intersection(parent(pid))}
    facts["running"] = {pid: link(pid, "cwd") for pid in mains}
    facts["units"] = {}
    for unit, port in json.loads(sys.argv[1]).items():
        show = said("systemctl", "show", "--property=ActiveState,SubState,MainPID", unit)
        fact = dict(line.split("=", 1) for line in show.splitlines())
        pid = fact["MainPID"]
        fact["children"] = [other for other in servers if parent(other) == [pid]]
        groups = "".join(read(other, "cgroup") for other in [pid, *fact["children"]]).splitlines()
        fact["groups"] = sorted({line[3:] for line in groups if line.startswith("0::")})
        query = (
            "SELECT json_build_object('data', current_setting('data_directory'), 'recovery', pg_is_in_recovery(),"
            " 'system', (SELECT system_identifier::text FROM pg_control_system()),"
            " 'receives', (SELECT json_agg(sender_host) FROM pg_stat_wal_receiver WHERE status = 'streaming'),"
            " 'sends', (SELECT json_agg(client_addr) FROM pg_stat_replication WHERE state = 'streaming'))"
        )
        become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
        answer = said(*become, "psql", "-XAtc", query, "-p", port, "-d", "postgres", cwd="/")
        try:
            fact["sql"] = json.loads(answer)
        except ValueError:
            fact["sql"] = answer
        facts["units"][unit] = fact
    print(json.dumps(facts))
    """)


@dataclasses.dataclass
class Cluster:
    """A server that must be up: its host, unit, data directory and port."""

    host: SystemdHost
    unit: str = f"postgresql@{MAJOR}-main.service"
    data: str = f"/var/lib/postgresql/{MAJOR}/main"
    etc: str = f"/etc/postgresql/{MAJOR}/main"
    port: int = 5432
    upstream: Cluster | None = None
    system_identifier: str = ""

    @property
    def of_debian(self) -> bool:
        """Whether Debian's wrappers manage it."""
        return self.unit.startswith("postgresql@")

    def sql(self, command: str, database: str = "postgres") -> str:
        """Run SQL as superuser by psql on the host; return columns separated by |."""
        psql = ["psql", "-XAtqv", "ON_ERROR_STOP=1", "-p", str(self.port), "-d", database, "-f", "-"]
        return self.host.run(psql, user="postgres", stdin=command).strip()

    def systemctl(self, verb: str) -> None:
        """Let systemd start, stop or restart it."""
        self.host.run(["systemctl", verb, self.unit])

    def configure(self) -> None:
        """Write the settings of the tests, logins of the README and of standbys into the configuration."""
        self.host.sh(f"cat >>{self.etc}/postgresql.conf", user="postgres", stdin=SETTINGS)
        self.host.sh(f"cat >{self.etc}/pg_hba.conf", user="postgres", stdin=HBA)
        self.host.sh(f"cat >{self.etc}/pg_ident.conf", user="postgres", stdin=IDENT)

    def archived(self, segment: str) -> None:
        """Wait until a segment is archived."""
        query = f"SELECT last_archived_wal >= '{segment}' FROM pg_stat_archiver"
        wait_until(lambda: self.sql(query) == "t", f"{segment} is archived", interval=0.1)

    def caught_up(self) -> None:
        """Wait until a standby has replayed what its upstream has written."""
        assert self.upstream
        query = f"SELECT pg_last_wal_replay_lsn() >= '{self.upstream.sql('SELECT pg_current_wal_lsn()')}'"
        wait_until(lambda: self.sql(query) == "t", f"{self.host.name} has caught up", interval=0.1)

    def is_writable(self) -> None:
        """Wait until recovery has ended."""
        wait_until(lambda: self.sql("SELECT pg_is_in_recovery()") == "f", f"{self.host.name} is writable", interval=0.1)

    def prepare(self) -> None:
        """Give a host the unit and, where it lies outside the data directory, the configuration; no data directory."""
        if self.of_debian:
            self.host.run(["pg_createcluster", str(MAJOR), "main", "--", "--no-sync"])
            self.configure()
            self.host.sh(f"rm -rf {self.data}")
        else:
            self._install_like_rpm()

    def create(self) -> Cluster:
        """Create and start it as a primary."""
        if self.of_debian:
            self.host.run(["pg_createcluster", str(MAJOR), "main", "--", "--no-sync"])
        else:
            self._install_like_rpm()
            self.host.sh(f"mkdir -p {self.data} && {PROGRAMS}/initdb --no-sync -D {self.data}", user="postgres")
            more = f"port = {self.port}\nlogging_collector = on\nlog_filename = 'postgresql-%a.log'\n"
            self.host.sh(f"cat >>{self.data}/postgresql.conf", user="postgres", stdin=more)
        self.configure()
        self.systemctl("start")
        self.sql(f"CREATE ROLE replicator LOGIN REPLICATION PASSWORD '{REPLICATION}'")
        self.system_identifier = self.sql("SELECT system_identifier FROM pg_control_system()")
        return self

    def _install_like_rpm(self) -> None:
        self.host.write(f"/etc/systemd/system/{self.unit}", RPM_UNIT)
        self.host.write(f"/usr/libexec/postgresql-{MAJOR}-check-db-dir", RPM_CHECK, mode=0o755)
        self.host.sh(f"""
            mkdir -p /usr/pgsql-{MAJOR}/bin
            ln -s {PROGRAMS}/* /usr/pgsql-{MAJOR}/bin
            ln -s /usr/libexec/postgresql-{MAJOR}-check-db-dir /usr/pgsql-{MAJOR}/bin
            install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/pgsql
            ln -s postgresql/pgsql /var/lib/pgsql
            systemctl daemon-reload""")

    def create_standby(self) -> Cluster:
        """Create it by pg_basebackup from its upstream, as Debian's administrators do, and start it."""
        assert self.upstream
        self.host.run(["pg_createcluster", str(MAJOR), "main", "--", "--no-sync"])
        self.configure()
        conninfo = f"host={self.upstream.host.name} user=replicator password={REPLICATION}"
        self.host.sh(
            f"rm -rf {self.data} && {PROGRAMS}/pg_basebackup -D {self.data} -R -c fast --no-sync -d '{conninfo}'",
            user="postgres",
        )
        self.systemctl("start")
        self.system_identifier = self.upstream.system_identifier
        return self


def complaints(clusters: t.Sequence[Cluster], guests: t.Collection[str] = ()) -> list[str]:
    """Return what is wrong with the servers: not up, not under its unit, elsewhere, a stranger, not streaming.

    ``guests`` are data directories of servers that may run besides them.
    """
    found: list[str] = []
    for name in dict.fromkeys(cluster.host.name for cluster in clusters):
        here = [cluster for cluster in clusters if cluster.host.name == name]
        units = json.dumps({cluster.unit: str(cluster.port) for cluster in here})
        facts = json.loads(here[0].host.run(["python3", "-Ic", STATE, units]))
        wrong = [one for cluster in here for one in _wrong(cluster, facts)]
        ours = {facts["units"][cluster.unit]["MainPID"] for cluster in here}
        for pid, directory in facts["running"].items():
            if pid not in ours and directory not in guests:
                wrong.append(f"another server runs in {directory}")
        if facts["failed"]:
            wrong.append(f"failed units: {facts['failed']}")
        found += [f"{name}: {one}" for one in wrong]
    return found


def _wrong(cluster: Cluster, facts: dict[str, t.Any]) -> t.Iterator[str]:
    fact = facts["units"][cluster.unit]
    if (fact["ActiveState"], fact["SubState"]) != ("active", "running"):
        yield f"{cluster.unit} is {fact['ActiveState']} ({fact['SubState']})"
        return
    pid = fact["MainPID"]
    real = cluster.host.run(["readlink", "-f", cluster.data]).strip()
    if facts["running"].get(pid) != real:
        yield f"the main process {pid} of {cluster.unit} is in {facts['running'].get(pid)}, not {real}"
    if any(not group.endswith(f"/{cluster.unit}") for group in fact["groups"]) or not fact["groups"]:
        yield f"{cluster.unit} has processes in {fact['groups']}"
    said = fact["sql"]
    if isinstance(said, str):
        yield f"port {cluster.port}: {said}"
        return
    if cluster.host.run(["readlink", "-f", said["data"]]).strip() != real:
        yield f"port {cluster.port} has the data directory {said['data']}"
    if said["system"] != cluster.system_identifier:
        yield f"port {cluster.port} is system {said['system']}, not {cluster.system_identifier}"
    if said["recovery"] != bool(cluster.upstream):
        yield f"port {cluster.port} is {'a standby' if said['recovery'] else 'a primary'}"
    if cluster.upstream and not said["receives"]:
        yield f"port {cluster.port} does not stream from {cluster.upstream.host.name}"
    if cluster.of_debian:
        status = "online,recovery" if cluster.upstream else "online"
        lines = [line.split() for line in facts["lsclusters"].splitlines()]
        if not any(line[2:4] == [str(cluster.port), status] and line[5] == cluster.data for line in lines):
            yield f"pg_lsclusters says {facts['lsclusters']}"
