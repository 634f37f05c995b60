# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The live nodes of the cluster that is to be restored: whom to ask, and what their answers mean for the restore.

After a restore of the primary no standby can follow it any more, and two primaries of one cluster write histories that
contradict each other. So live nodes are found before anything is stopped.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._role import Facts, joined, part

LOGIN: t.Final = ("login_host", "login_port", "login_unix_socket", "login_user")
# The roles whose variables say how to log in to a node; only the port and the place, never the role's user.
_PREFIXES: t.Final = ("pg_recover_", "pg_backup_", "pg_archive_")
_CLUSTERS: t.Final = ("pg_backup_cluster", "pg_archive_cluster")
# A group with more hosts says little about who belongs to the cluster.
_MOST: t.Final = 16


def nodes(
    facts: Facts, hostvars: t.Mapping[str, Facts], play: t.Sequence[str], groups: t.Mapping[str, t.Sequence[str]]
) -> list[dict[str, t.Any]]:
    """Return the hosts to ask whether their servers are of the cluster, each with ``host`` and its login.

    They are those that are set, else the hosts of the play, those of the same cluster by their variables or name, and
    those of the smallest group of this host. Its own server comes first, so that it is recognised under other names.
    """
    me, cluster = str(facts["host"]), str(facts["cluster"])
    found = [str(one) for one in facts["nodes"]]
    if not found:
        found = [*play, *(one for one in groups.get("all", ()) if _is_of(hostvars, one, cluster))]
        mine = [hosts for name, hosts in groups.items() if name not in ("all", "ungrouped") and me in hosts]
        smallest = min((hosts for hosts in mine if len(hosts) > 1), key=len, default=[])
        found += smallest if len(smallest) <= _MOST + 1 else []
    others = [one for one in dict.fromkeys(map(str, found)) if one != me]
    own = {"host": me, **{name: facts[name] for name in LOGIN}}
    return [own, *({"host": one, **_login(facts, hostvars[one])} for one in others)]


def _is_of(hostvars: t.Mapping[str, Facts], host: str, cluster: str) -> bool:
    return host == cluster or cluster in [hostvars[host].get(name) for name in _CLUSTERS]


def _login(facts: Facts, theirs: Facts) -> dict[str, t.Any]:
    login = {"login_user": theirs.get("pg_recover_login_user", facts["login_user"])}
    for name in LOGIN[:-1]:
        known = [theirs[prefix + name] for prefix in _PREFIXES if prefix + name in theirs]
        login[name] = known[0] if known else facts[name]
    return login


class LiveNodes:
    """What the asked servers and those that are connected with the data directory are to the cluster.

    ``identifier`` is the system identifier of its backups; ``facts`` has ``node_answers``, the results of server_info
    for :func:`nodes`, and ``relatives``, that of live_relatives.
    """

    def __init__(self, facts: Facts, identifier: str) -> None:
        self.facts = facts
        self.identifier = identifier
        self.standbys: dict[str, str] = {}
        self.primaries: dict[str, str] = {}
        self.silent: list[str] = []
        # By its place, because Ansible masks the password in results, and it may be part of a host's name.
        own, *others = part(facts, "node_answers").get("results") or [{}]
        for answer in others:
            self._judge(answer, own)
        self._add_relatives()

    def _judge(self, answer: Facts, own: Facts) -> None:
        host = str(part(answer, "node").get("host") or "")
        if "system_identifier" not in answer:
            self.silent.append(host)
        elif answer["system_identifier"] != self.identifier or self._same(answer, own):
            return
        elif answer["role"] == "standby":
            self.standbys[host] = str(part(answer, "standby").get("replay_lsn") or "an unknown LSN")
        else:
            self.primaries[host] = f"on timeline {answer.get('timeline')}"

    @staticmethod
    def _same(one: Facts, other: Facts) -> bool:
        """Return whether both answers are of one server, which the inventory knows under two names."""
        names = ("data_directory", "started_at", "port")
        return all(one.get(name) is not None and one.get(name) == other.get(name) for name in names)

    def _add_relatives(self) -> None:
        relatives = part(self.facts, "relatives")
        for one in relatives.get("standbys") or []:
            # The same standby may have answered itself.
            if one["name"] not in self.standbys:
                address = f" ({one['address']})" if one["address"] else ""
                self.standbys.setdefault(f"{one['name']}{address}", str(one["lsn"] or "an unknown LSN"))
        upstream = part(relatives, "upstream")
        if upstream and upstream.get("system_identifier") == self.identifier:
            self.primaries.setdefault(
                f"The upstream {upstream['address']}", f"on timeline {upstream['timeline']} at {upstream['lsn']}"
            )

    @property
    def refusals(self) -> list[dict[str, str]]:
        """The reasons not to restore a primary, with ``code``, ``msg``, ``hint``, unless the user has said so."""
        if self.facts["replace_primary"]:
            return []
        found = []
        if self.standbys:
            found.append(self._standby_refusal())
        if self.primaries:
            host, where = next(iter(self.primaries.items()))
            found.append(
                {
                    "code": "live_primary",
                    "msg": f"{host} is a live primary of this cluster, {where}: {self.facts['host']} would be a second"
                    " one. Its timeline would contradict that of the first, in the same archive.",
                    "hint": "Restore it as a standby or as a copy (pg_recover_restore_as). If that primary is to be"
                    " replaced, set pg_recover_replace_primary: true.",
                }
            )
        return found

    def _standby_refusal(self) -> dict[str, str]:
        ordered = sorted(self.standbys.items(), key=lambda one: _position(one[1]), reverse=True)
        host, lsn = ordered[0]
        others = joined((f"{name} at {place}" for name, place in ordered[1:]), "")
        also = f" Also live: {others}." if others else ""
        return {
            "code": "live_standby",
            "msg": f"{host} is a live standby of this cluster at {lsn}: promote it instead?{also} Standbys cannot"
            f" follow {self.facts['host']} any more after it was restored.",
            "hint": "To restore it all the same, for example to go back to an earlier point, set"
            " pg_recover_replace_primary: true, and rebuild the standbys afterwards.",
        }

    @property
    def line(self) -> str:
        """The line of the plan that says who was asked and lives."""
        live = [f"{host}, a standby at {lsn}" for host, lsn in self.standbys.items()]
        live += [f"{host}, a primary {where}" for host, where in self.primaries.items()]
        text = f"Live nodes of the cluster: {'; '.join(live) or 'none'}"
        return f"{text} (no answer: {joined(self.silent)})" if self.silent else text


def _position(lsn: str) -> int:
    high, slash, low = lsn.partition("/")
    try:
        return (int(high, 16) << 32) + int(low, 16) if slash else -1
    except ValueError:
        return -1
