# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pair of hosts whose servers Patroni runs, with etcd on the first; all of it by Debian's packages."""

from __future__ import annotations

import json
import typing as t

from tests.harness.debian import MAJOR
from tests.harness.fleet import NETWORK
from tests.harness.servers import wait_until
from tests.harness.systemd import SystemdHost
from tests.hosts.helpers.clusters import PROGRAMS

DATA: t.Final = f"/var/lib/postgresql/{MAJOR}/main"
ETCD: t.Final = """\
ETCD_LISTEN_CLIENT_URLS=http://{address}:2379
ETCD_ADVERTISE_CLIENT_URLS=http://{address}:2379
ETCD_UNSAFE_NO_FSYNC=true
"""
NODE: t.Final = f"""\
scope: shop
name: {{name}}
restapi: {{{{listen: "{{address}}:8008", connect_address: "{{address}}:8008"}}}}
etcd3: {{{{hosts: "{{etcd}}:2379"}}}}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 2
    retry_timeout: 3
    postgresql:
      use_slots: true
      parameters: {{{{shared_buffers: 16MB, fsync: "off", jit: "off", checkpoint_completion_target: 0}}}}
  initdb: [encoding: UTF8, locale: C.UTF-8, no-sync]
postgresql:
  listen: "*:5432"
  connect_address: "{{address}}:5432"
  data_dir: {DATA}
  bin_dir: {PROGRAMS}
  pgpass: /var/lib/postgresql/pgpass
  use_unix_socket: true
  basebackup: [checkpoint: fast]
  authentication:
    superuser: {{{{username: postgres}}}}
    replication: {{{{username: replicator, password: for-replication}}}}
  parameters: {{{{unix_socket_directories: /run/postgresql}}}}
  pg_hba:
    - local all all peer
    - host replication replicator 127.0.0.1/32 scram-sha-256
    - host replication replicator {NETWORK}.0/24 scram-sha-256
"""


class Patroni:
    """Nodes that are up and stream."""

    def __init__(self, *nodes: SystemdHost) -> None:
        """Start etcd on the first node, then Patroni on each."""
        self.nodes = nodes
        store = nodes[0]
        self._unmask(store, "etcd")
        store.write("/etc/default/etcd", ETCD.format(address=store.address))
        store.run(["systemctl", "start", "etcd"])
        for node in nodes:
            self._unmask(node, "patroni")
            config = NODE.format(name=node.name, address=node.address, etcd=store.address)
            node.write("/etc/patroni/config.yml", config, "postgres", 0o600)
            node.run(["systemctl", "start", "patroni"])
        wait_until(lambda: not self.complaints(), "all members are well", timeout=90, interval=0.5)

    @staticmethod
    def _unmask(host: SystemdHost, unit: str) -> None:
        host.run(["rm", "-f", f"/etc/systemd/system/{unit}.service"])
        host.run(["systemctl", "daemon-reload"])

    def members(self) -> list[dict[str, t.Any]]:
        """Return what ``patronictl list`` says."""
        listing = ["patronictl", "-c", "/etc/patroni/config.yml", "list", "--format", "json"]
        found: list[dict[str, t.Any]] = json.loads(self.nodes[0].run(listing, user="postgres") or "[]")
        return found

    def complaints(self) -> list[str]:
        """Return what is wrong: a member that is missing, does not run or stream, or a server that is not Patroni's."""
        found = []
        members = self.members()
        roles = sorted((one["Role"], one["State"]) for one in members)
        replicas = [("Replica", "streaming")] * (len(self.nodes) - 1)
        if roles != [("Leader", "running"), *replicas]:
            found.append(f"members: {members}")
        for node in self.nodes:
            if not self.server(node):
                found.append(f"{node.name}: no server of Patroni runs in {DATA}")
        return found

    def server(self, node: SystemdHost) -> str:
        """Return process id and start time of the server in the data directory, '' if it has left Patroni's unit."""
        script = f"""
            pid=$(head -n 1 {DATA}/postmaster.pid)
            [ "$(readlink /proc/$pid/cwd)" = {DATA} ]
            grep -q '^0::/system.slice/patroni.service$' /proc/$pid/cgroup
            ps -o pid= -o lstart= -p $pid"""
        try:
            return node.sh(script).strip()
        except AssertionError:
            return ""
