# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which nodes pg_archive restarts, in which order, and what prevents it."""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._pg_archive import ARCHIVING, DONE, NODE, WANTS, Fleet


def sender(name: str, state: t.Optional[str] = "streaming") -> dict[str, t.Any]:
    return {"name": name, "state": state, "slot_name": ""}


def node(
    role: str = "primary", cluster: str = "1", *, restarts: bool = True, obstacle: str = "", **replication: t.Any
) -> dict[str, t.Any]:
    """Return what a host has recorded; a standby streams unless ``replication`` says otherwise."""
    streaming = {"receiver_status": "streaming", "has_upstream": True} if role == "standby" else {}
    found = {"role": role, "senders": [], "idle_slots": [], **streaming, **replication}
    record = {"system_identifier": cluster, "role": role, "restarts": restarts, "obstacle": obstacle}
    return {NODE: {**record, "replication": found}, WANTS: restarts}


STANDBY: t.Final = node("standby")
PRIMARY: t.Final = node(senders=[sender("pg2 (10.0.0.2)")])


def fleet(hosts: dict[str, dict[str, t.Any]], host: str, **facts: t.Any) -> dict[str, t.Any]:
    """Return what ``host`` decides; all ``hosts`` are active and in one batch unless ``facts`` say otherwise."""
    names = list(hosts)
    given = {"all_hosts": names, "active_hosts": names, "batch": names, "degraded": False, "timeout": "2 minutes"}
    return Fleet({**given, "present": {}, **facts, "host": host}, hosts).answer()


def test_standbys_first() -> None:
    """In each cluster; the standby of a standby before it; otherwise in the order of the inventory."""
    hosts = {
        "a1": PRIMARY,
        "a2": node("standby", senders=[sender("a3 (10.0.0.3)")]),
        "a3": STANDBY,
        "a4": STANDBY,
        "b1": node(cluster="2"),
        "c1": node(cluster="3", restarts=False),
    }
    decided = {host: fleet(hosts, host) for host in hosts}
    assert {host: one["turn"] for host, one in decided.items()} == {
        "a1": 4,
        "a2": 3,
        "a3": 1,
        "a4": 2,
        "b1": 1,
        "c1": 0,
    }
    assert {one["turns"] for one in decided.values()} == {4}
    assert [one["refusal"] for one in decided.values()] == [""] * 6
    assert decided["a1"]["plan"].endswith("a3 (standby), a4 (standby), a2 (standby), a1 (primary).")
    assert decided["c1"]["plan"] == ""


def test_nothing_is_needed() -> None:
    hosts: dict[str, dict[str, t.Any]] = {"a": {WANTS: False, NODE: {}}, "b": {}}
    decided = fleet(hosts, "a")
    assert (decided["needed"], decided["turns"], decided["turn"], decided["refusal"]) == (False, 0, 0, "")


def test_a_standby_that_is_not_well() -> None:
    """It stops the whole cluster, unless that is allowed; other clusters are not concerned."""
    cases = {
        "does not stream (receiver: not connected)": node("standby", receiver_status=""),
        "its replication is not known": {NODE: {**STANDBY[NODE], "replication": {}}},
        "no right": node("standby", obstacle="no right"),
    }
    for words, standby in cases.items():
        hosts = {"pg1": PRIMARY, "pg2": standby, "other": node(cluster="2")}
        for host in ("pg1", "pg2"):
            refusal = fleet(hosts, host)["refusal"]
            assert words in refusal, refusal
        assert fleet(hosts, "other")["refusal"] == ""
        assert fleet(hosts, "pg1", degraded=True)["refusal"] == ""
    # A standby that only reads an archive has no upstream.
    quiet = node("standby", receiver_status="", has_upstream=False)
    assert fleet({"pg1": node(), "pg2": quiet}, "pg1")["refusal"] == ""


def test_a_standby_outside_the_play() -> None:
    for primary, words in (
        (
            node(senders=[sender("pg2 (10.0.0.2)", "catchup")]),
            "pg2 (10.0.0.2), a standby of pg1, does not stream (catchup)",
        ),
        (node(senders=[sender("pg2 (10.0.0.2)", None)]), "(unknown)"),
        (node(idle_slots=["pg2"]), "slots pg2 of pg1 are not in use"),
    ):
        assert words in fleet({"pg1": primary}, "pg1")["refusal"]
        assert fleet({"pg1": primary}, "pg1", degraded=True)["refusal"] == ""
    # On a standby slots are prepared for a failover.
    assert fleet({"pg2": node("standby", idle_slots=["pg1"])}, "pg2")["refusal"] == ""
    assert fleet({"pg1": PRIMARY}, "pg1")["refusal"] == ""


def test_a_missing_right_is_not_overridden() -> None:
    """The node is refused also where a cluster may be degraded, and has no turn."""
    hosts = {"pg1": PRIMARY, "pg2": node("standby", obstacle="no right")}
    decided = fleet(hosts, "pg2", degraded=True)
    assert "no right" in decided["refusal"]
    assert decided["turn"] == 0
    assert fleet(hosts, "pg1", degraded=True)["turn"] == 1


def test_hosts_without_facts() -> None:
    """Failed and lost ones can be accepted; ones that run apart cannot."""
    hosts = {"pg1": node(), "lost": {}, "failed": {ARCHIVING: {"failed": True, "msg": "no"}}}
    active = ["pg1", "failed"]
    refusal = fleet(hosts, "pg1", active_hosts=active, batch=active)["refusal"]
    assert "lost, failed cannot be reached or failed" in refusal
    assert "--limit 'all,!lost,!failed'" in refusal
    assert fleet(hosts, "pg1", active_hosts=active, batch=active, degraded=True)["refusal"] == ""
    apart = {"pg1": node(), "pg2": {ARCHIVING: {}}}
    for degraded in (False, True):
        assert "do not run in step" in fleet(apart, "pg1", degraded=degraded)["refusal"]


def test_batches() -> None:
    """A primary waits for standbys of other batches; one without unknown standbys does not."""
    later: dict[str, t.Any] = {"pg2": {}}
    for degraded in (False, True):
        refusal = fleet({"pg1": PRIMARY, **later}, "pg1", batch=["pg1"], degraded=degraded)["refusal"]
        assert "1 standbys are connected (pg2 (10.0.0.2)), 0 of them are known nodes" in refusal
    assert fleet({"pg1": node(), **later}, "pg1", batch=["pg1"])["refusal"] == ""
    assert fleet({"pg2": STANDBY, "pg1": {}}, "pg2", batch=["pg2"])["refusal"] == ""
    before = {"pg2": {**STANDBY, DONE: True}, "pg1": PRIMARY, "pg3": {}}
    decided = fleet(before, "pg1", batch=["pg1"])
    assert (decided["refusal"], decided["stopped"], decided["turn"]) == ("", "", 2)


def test_the_first_failure_stops_the_rest() -> None:
    hosts = {"pg1": PRIMARY, "pg2": STANDBY, "pg3": STANDBY}
    assert fleet(hosts, "pg2")["stopped"] == ""
    assert "pg2 had its turn before and is not back and well" in fleet(hosts, "pg3")["stopped"]
    assert "pg2, pg3 had its turn" in fleet(hosts, "pg1", degraded=True)["stopped"]
    done = {**hosts, "pg2": {**STANDBY, DONE: True}}
    assert fleet(done, "pg3")["stopped"] == ""
    assert "pg3 had its turn" in fleet(done, "pg1")["stopped"]


def test_what_has_changed_since_the_plan() -> None:
    hosts = {"pg1": PRIMARY, "pg2": {**STANDBY, DONE: True}}
    well = PRIMARY[NODE]["replication"]
    assert fleet(hosts, "pg1", present=well)["stopped"] == ""
    for present, words in (
        ({**well, "senders": []}, "pg2 (10.0.0.2) streamed from pg1 when the run began"),
        ({**well, "senders": [sender("pg2 (10.0.0.2)", "catchup")]}, "does not stream"),
        ({**well, "role": "standby"}, "another role"),
    ):
        assert words in fleet(hosts, "pg1", present=present)["stopped"]
        assert fleet(hosts, "pg1", present=present, degraded=True)["stopped"] == ""


def test_which_nodes_wait() -> None:
    """The nodes of the same cluster, the primary last; nothing on a host that waits for nothing."""

    def waits(role: str, cluster: str, required: bool = True) -> dict[str, t.Any]:
        return {ARCHIVING: {"restart_required": required, "role": role, "system_identifier": cluster}}

    hosts = {"a1": waits("primary", "1"), "a2": waits("standby", "1"), "b": waits("primary", "2"), "c": {ARCHIVING: {}}}
    hosts["a3"] = waits("standby", "1", required=False)
    assert fleet(hosts, "a1")["waiting"].endswith("in the order to restart them: a2 (standby), a1 (primary).")
    assert fleet(hosts, "b")["waiting"].endswith(": b (primary).")
    assert [fleet(hosts, host)["waiting"] for host in ("c", "a3")] == ["", ""]


def test_one_archive_for_a_cluster() -> None:
    """Directories of different names are reported on each node that has one; other clusters are not concerned."""

    def archives(cluster: str, directory: str) -> dict[str, t.Any]:
        return {ARCHIVING: {"system_identifier": cluster, "directory": directory}}

    hosts = {"a1": archives("1", "/r/a1/wal"), "a2": archives("1", "/r/a2/wal"), "a3": archives("1", "")}
    hosts.update(b1=archives("2", "/r/b/wal"), b2=archives("2", "/r/b/wal"), c=archives("", "/x"), d={ARCHIVING: {}})
    divided = {host: fleet(hosts, host)["divided"] for host in hosts}
    assert divided["a1"].startswith("a1, a2 are nodes of one cluster")
    assert divided["a2"] == divided["a1"]
    assert [divided[host] for host in ("a3", "b1", "b2", "c", "d")] == [""] * 5


def test_how_long_wal_is_kept() -> None:
    assert fleet({"a": node()}, "a")["hold_timeout"] == "900 seconds"
    assert fleet({"a": node()}, "a", timeout="1 hour")["hold_timeout"] == "18000 seconds"
