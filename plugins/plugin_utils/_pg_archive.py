# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions of the role pg_archive: which nodes of a cluster are restarted, in which order, and when none is.

The hosts of a play with one system identifier are the nodes of a cluster. Standbys are restarted before the server that
they follow, the primary last. All hosts take the same number of turns; each is restarted in its own. Whether it may be
is decided again at the beginning of its turn, from what the hosts before it have recorded: so no two nodes restart at
the same time even where the play's strategy lets the hosts run apart.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.units import seconds
from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._role import Facts, joined, part

# What a host records: its facts once they are gathered, and that it is back after its restart.
NODE, DONE, ARCHIVING = "__pg_archive_node", "__pg_archive_restarted", "__pg_archive_archiving"
WANTS = "__pg_archive_wants_restart"
HOLD_SECONDS = 900
DEGRADED = "pg_archive_restart_degraded=true restarts nevertheless"


class Node:
    """A host of the play whose facts are known."""

    def __init__(self, host: str, record: Facts) -> None:
        self.host = host
        self.system_identifier = str(record["system_identifier"])
        self.restarts = bool(record["restarts"])
        self.obstacle = str(record["obstacle"])
        self.replication = part(record, "replication")
        self.is_primary = (self.replication.get("role") or record["role"]) == "primary"

    @property
    def senders(self) -> t.Sequence[Facts]:
        """The standbys that are connected to it."""
        return self.replication.get("senders") or []

    @property
    def streams(self) -> bool:
        """Whether it is a standby that streams."""
        return self.replication.get("receiver_status") == "streaming"

    @property
    def unwell(self) -> str:
        """Why it is not well as a node of its cluster, "" when it is."""
        if self.obstacle:
            return f"{self.host}: {self.obstacle}"
        if not self.replication:
            return f"{self.host}: its replication is not known."
        if not self.is_primary and self.replication.get("has_upstream") and not self.streams:
            status = self.replication.get("receiver_status") or "not connected"
            return f"{self.host} is a standby that does not stream (receiver: {status})."
        for sender in self.senders:
            if sender.get("state") != "streaming":
                return (
                    f"{sender['name']}, a standby of {self.host}, does not stream ({sender.get('state') or 'unknown'})."
                )
        idle = self.replication.get("idle_slots") or []
        if self.is_primary and idle:
            return (
                f"The replication slots {joined(idle)} of {self.host} are not in use: their standbys may be down."
                " Drop them if they are not needed any more."
            )
        return ""


class Fleet:
    """The hosts of a play, as one of them sees them; ``facts`` are the variables that ``vars/main.yml`` lists."""

    def __init__(self, facts: Facts, hostvars: t.Mapping[str, Facts]) -> None:
        self.facts = facts
        self.hostvars = hostvars
        self.hosts = [str(host) for host in facts["all_hosts"]]
        self.nodes: dict[str, Node] = {}
        for host in self.hosts:
            record = part(hostvars[host], NODE)
            if record:
                self.nodes[host] = Node(host, record)
        self.me = self.nodes.get(str(facts["host"]))

    def answer(self) -> dict[str, t.Any]:
        """Return all decisions and messages, by the names that the filter documents."""
        wait = seconds(str(self.facts["timeout"]), "pg_archive_timeout")
        return {
            "needed": any(self.hostvars[host].get(WANTS) for host in self.hosts),
            "turns": max((len(self.order(one)) for one in self.clusters), default=0),
            "turn": self.turn,
            "refusal": self.refusal,
            "stopped": self.stopped,
            "plan": self.plan,
            "waiting": self.waiting,
            "divided": self.divided,
            "hold_timeout": f"{max(HOLD_SECONDS, int(5 * wait))} seconds",
        }

    @property
    def restarts(self) -> bool:
        """Whether this host is to be restarted."""
        return self.me is not None and self.me.restarts

    @property
    def turn(self) -> int:
        """The number of this host's turn, 0 when it has none."""
        order = self.order(self.me.system_identifier) if self.me else []
        return order.index(self.me.host) + 1 if self.me and self.me.host in order else 0

    @property
    def clusters(self) -> set[str]:
        """The system identifiers of the clusters."""
        return {node.system_identifier for node in self.nodes.values()}

    def cluster(self, system_identifier: str) -> list[Node]:
        """Return the nodes of a cluster in the order of restarts: those that others follow after these."""
        found = [node for node in self.nodes.values() if node.system_identifier == system_identifier]
        # Python's sort keeps the order of the inventory among equals.
        return sorted(found, key=lambda node: (node.is_primary, len(node.senders) > 0))

    def order(self, system_identifier: str) -> list[str]:
        """Return the nodes of a cluster that are to be restarted; not those that cannot be."""
        return [node.host for node in self.cluster(system_identifier) if node.restarts and not node.obstacle]

    @property
    def lost(self) -> list[str]:
        """The hosts without facts that have failed or cannot be reached."""
        active = {str(host) for host in self.facts["active_hosts"]}
        return [host for host in self._unknown if host not in active or self._failed(host)]

    @property
    def ahead(self) -> list[str]:
        """The hosts without facts that are at work: the play's strategy lets the hosts run apart."""
        batch = {str(host) for host in self.facts["batch"]}
        return [host for host in self._unknown if host in batch and host not in self.lost]

    @property
    def later(self) -> list[str]:
        """The hosts without facts that belong to another batch."""
        return [host for host in self._unknown if host not in self.lost and host not in self.ahead]

    @property
    def _unknown(self) -> list[str]:
        return [host for host in self.hosts if host not in self.nodes]

    def _failed(self, host: str) -> bool:
        return bool(part(self.hostvars[host], ARCHIVING).get("failed"))

    @property
    def refusal(self) -> str:
        """Why no node of the cluster is restarted, "" when they are; decided before anything is changed."""
        if self.me is None or not self.restarts:
            return ""
        nodes = self.cluster(self.me.system_identifier)
        reasons = [node.obstacle for node in nodes if node is self.me and node.obstacle]
        if self.ahead:
            reasons.append(
                f"{joined(self.ahead)} has not recorded its facts: the hosts do not run in step, so two nodes of a"
                " cluster could restart at the same time. Use the strategy linear."
            )
        reasons += self._split(nodes)
        if not self.facts["degraded"] and not reasons:
            reasons += self._degraded(nodes)
        return self._said("No node of this cluster is restarted", reasons)

    def _split(self, nodes: t.Sequence[Node]) -> list[str]:
        """Return whether standbys of this primary may be in another batch, which could restart them after it."""
        if not self.later or self.me is None or not self.me.is_primary:
            return []
        followed = sum(len(node.senders) for node in nodes)
        known = sum(node.streams for node in nodes)
        if followed <= known:
            return []
        names = joined(sender["name"] for node in nodes for sender in node.senders)
        reason = (
            f"{followed} standbys are connected ({names}), {known} of them are known nodes, and the others may be among"
            f" the hosts of another batch ({joined(self.later)}). Standbys are restarted before their primary: put the"
            " nodes of a cluster into one batch (pg_archive_serial), or the standbys into an earlier one."
        )
        return [reason]

    def _degraded(self, nodes: t.Sequence[Node]) -> list[str]:
        reasons = [node.unwell for node in nodes if node.unwell]
        if self.lost:
            reasons.append(
                f"{joined(self.lost)} cannot be reached or failed, and may be a node of this cluster. Repair it, or"
                f" leave it out: --limit '{','.join(['all', *('!' + host for host in self.lost)])}'."
            )
        return [*reasons, f"{DEGRADED}."] if reasons else []

    @property
    def stopped(self) -> str:
        """Why this host is not restarted although its turn has come, "" when it is."""
        if self.me is None or not self.turn:
            return ""
        before = self.order(self.me.system_identifier)[: self.turn - 1]
        open_ones = [host for host in before if not self.hostvars[host].get(DONE)]
        reasons = []
        if open_ones:
            reasons.append(
                f"{joined(open_ones)} had its turn before and is not back and well; the report of that host says why."
                " No further node of this cluster is restarted."
            )
        elif not self.facts["degraded"]:
            reasons += self._changed(self.me)
        return self._said(f"{self.me.host} is not restarted", reasons)

    def _changed(self, me: Node) -> list[str]:
        """Return what is no longer well, by the ``present`` facts of this host's replication."""
        present = part(self.facts, "present")
        if not present:
            return []
        node = Node(me.host, {**part(self.hostvars[me.host], NODE), "replication": present})
        reasons = [node.unwell] if node.unwell else []
        gone = {str(one["name"]) for one in me.senders} - {str(one["name"]) for one in node.senders}
        if gone:
            reasons.append(f"{joined(sorted(gone))} streamed from {me.host} when the run began, and does not now.")
        if me.is_primary != node.is_primary:
            reasons.append(f"{me.host} has another role than when the run began.")
        return [*reasons, f"{DEGRADED}."] if reasons else []

    def _said(self, what: str, reasons: t.Sequence[str]) -> str:
        return f"{what}. {' '.join(reasons)}" if reasons else ""

    @property
    def plan(self) -> str:
        """The order of restarts in this host's cluster."""
        if self.me is None or not self.order(self.me.system_identifier):
            return ""
        return f"Restarts in this order, each after the one before is well: {joined(self._named(self.me))}."

    def _named(self, node: Node) -> list[str]:
        return [
            f"{one.host} ({'primary' if one.is_primary else 'standby'})"
            for one in self.cluster(node.system_identifier)
            if one.restarts
        ]

    @property
    def waiting(self) -> str:
        """Which nodes of this host's cluster wait for a restart that nobody has allowed, in the order to make them."""
        mine = part(self.hostvars[str(self.facts["host"])], ARCHIVING)
        if not mine.get("restart_required"):
            return ""
        found = [(one.get("role") == "primary", host) for host, one in self._relatives() if one.get("restart_required")]
        # A stable order: the primary last, else as in the inventory.
        names = [f"{host} ({'primary' if last else 'standby'})" for last, host in sorted(found, key=lambda one: one[0])]
        return f"Nodes of this cluster that wait for a restart, in the order to restart them: {joined(names)}."

    @property
    def divided(self) -> str:
        """That the nodes of this host's cluster archive to directories of different names, "" when they do not.

        A node that is rebuilt from the files of another has its settings, and archives to its directory.
        """
        directories = {host: str(one["directory"]) for host, one in self._relatives() if one.get("directory")}
        if str(self.facts["host"]) not in directories or len(set(directories.values())) < 2:
            return ""
        return (
            f"{joined(directories)} are nodes of one cluster and archive to directories of different names. Set one"
            " pg_archive_cluster for them, so that a node which is rebuilt from another one archives where it should."
        )

    def _relatives(self) -> list[tuple[str, Facts]]:
        """Return the hosts of the play that are nodes of this host's cluster, itself included, with what they found."""
        found = [(host, part(self.hostvars[host], ARCHIVING)) for host in self.hosts]
        mine = part(self.hostvars[str(self.facts["host"])], ARCHIVING).get("system_identifier")
        return [(host, one) for host, one in found if mine and one.get("system_identifier") == mine]
