# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts are asked before a primary is restored, and what their answers mean."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._live_nodes import LiveNodes, nodes

LOGIN: t.Final = {"login_host": "", "login_port": 5432, "login_unix_socket": "/run", "login_user": "postgres"}
FACTS: t.Final[dict[str, t.Any]] = {
    "host": "db1", "cluster": "main", "nodes": [], "replace_primary": False, "relatives": {}, **LOGIN,
}  # fmt: skip


def asked(
    groups: dict[str, list[str]], hostvars: dict[str, dict[str, t.Any]] | None = None, **facts: t.Any
) -> list[str]:
    """Return the names of the hosts to ask, of a play on db1 alone."""
    known = {one: (hostvars or {}).get(one, {}) for one in groups["all"]}
    first, *others = nodes({**FACTS, **facts}, known, ["db1"], groups)
    assert first == {"host": "db1", **LOGIN}
    return [one["host"] for one in others]


def test_whom_it_asks() -> None:
    """The hosts that are set, else those of the cluster by variable or name, and the smallest group; never all."""
    everybody = ["db1", "db2", "db3", "web1", "web2", "main"]
    assert asked({"all": everybody, "ungrouped": everybody}) == ["main"]
    assert asked({"all": everybody}, {"db3": {"pg_backup_cluster": "main"}}) == ["db3", "main"]
    assert asked({"all": everybody, "big": everybody[:5], "db": ["db1", "db2"], "own": ["db1"]}) == ["main", "db2"]
    assert asked({"all": everybody, "db": ["db1", "db2"]}, nodes=["db3", "db1"]) == ["db3"]
    many = ["db1", *(f"other{number}" for number in range(17))]
    assert asked({"all": many, "many": many}) == []
    assert asked({"all": many[:-1], "many": many[:-1]}) == many[1:-1]


def test_how_it_logs_in() -> None:
    """Each host's own port and place count, by any role's variables, but the user is that of the restore."""
    known: dict[str, dict[str, t.Any]] = {
        "db1": {},
        "db2": {"pg_backup_login_port": 5433, "pg_backup_login_user": "backup"},
        "db3": {"pg_recover_login_port": 1, "pg_backup_login_port": 2, "pg_recover_login_user": "admin"},
    }
    _own, second, third = nodes({**FACTS, "nodes": ["db2", "db3"]}, known, ["db1"], {"all": list(known)})
    assert second == {"host": "db2", **LOGIN, "login_port": 5433}
    assert third == {"host": "db3", **LOGIN, "login_port": 1, "login_user": "admin"}


def answer(host: str, role: str = "standby", system_identifier: str = "7", **more: t.Any) -> dict[str, t.Any]:
    """Return an answer of server_info."""
    facts = {"data_directory": f"/{host}", "started_at": 1.5, "port": 5432, "timeline": 2, **more}
    standby = {"replay_lsn": more.get("lsn", "0/5A000060")} if role == "standby" else None
    return {"node": {"host": host}, "role": role, "system_identifier": system_identifier, "standby": standby, **facts}


def live(*answers: dict[str, t.Any], own: dict[str, t.Any] | None = None, **facts: t.Any) -> LiveNodes:
    """Return what these answers mean; ``own`` is that of the host's own server."""
    return LiveNodes({**FACTS, "node_answers": {"results": [own or {"msg": "down"}, *answers]}, **facts}, "7")


def codes(found: LiveNodes) -> list[str]:
    """Return the codes of the refusals."""
    return [one["code"] for one in found.refusals]


def test_a_live_standby() -> None:
    (refusal,) = live(answer("pg2"), answer("pg3", system_identifier="8")).refusals
    assert refusal["code"] == "live_standby"
    assert refusal["msg"].startswith("pg2 is a live standby of this cluster at 0/5A000060: promote it instead?")
    assert "pg_recover_replace_primary: true" in refusal["hint"]
    (refusal,) = live(answer("pg2", lsn="0/FF"), answer("pg3", lsn="1/0")).refusals
    assert refusal["msg"].startswith("pg3 is a live standby of this cluster at 1/0")
    assert "Also live: pg2 at 0/FF." in refusal["msg"]
    assert codes(live(answer("pg2"), replace_primary=True)) == []


def test_a_connected_standby() -> None:
    """It may have answered itself, too, under the name that it has in the inventory."""
    connected = {"standbys": [{"name": "pg2", "address": "10.0.0.2", "lsn": "0/9"}], "upstream": None}
    assert live(relatives=connected).standbys == {"pg2 (10.0.0.2)": "0/9"}
    assert live(answer("pg2"), relatives=connected).standbys == {"pg2": "0/5A000060"}


def test_a_live_primary() -> None:
    """It is named in the plan, whether it answered itself or is the upstream of this standby."""
    found = live(answer("pg2", "primary"))
    assert codes(found) == ["live_primary"]
    assert found.line == "Live nodes of the cluster: pg2, a primary on timeline 2"
    upstream = {"address": "pg1:5432", "system_identifier": "7", "timeline": 3, "lsn": "0/A"}
    assert codes(live(relatives={"standbys": [], "upstream": upstream})) == ["live_primary"]
    assert codes(live(relatives={"standbys": [], "upstream": {**upstream, "system_identifier": "8"}})) == []


def test_the_server_itself() -> None:
    """The inventory may know the server that is to be replaced under another name."""
    own = answer("db1", "primary")
    alias = {**answer("alias", "primary"), "data_directory": "/db1"}
    assert codes(live(alias, own=own)) == []
    assert codes(live({**alias, "started_at": 2.5}, own=own)) == ["live_primary"]


def test_who_does_not_answer() -> None:
    silent = live({"node": {"host": "pg2"}, "unreachable": True, "msg": "no route"})
    assert codes(silent) == []
    assert silent.line == "Live nodes of the cluster: none (no answer: pg2)"


@pytest.mark.parametrize("lsn", ["", "an unknown LSN", "x/y"])
def test_unknown_positions(lsn: str) -> None:
    assert codes(live(answer("pg2", lsn=lsn), answer("pg3"))) == ["live_standby"]
