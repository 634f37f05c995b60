# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the role pg_backup finds the primary of a standby, and whose archiver is responsible."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.plugin_utils import _primary

LOGIN: t.Final = {"login_host": "", "login_port": 5432, "login_unix_socket": "/run/postgresql"}
PROBLEM: t.Final = {"code": "not_primary", "msg": "It is a standby.", "hint": "Name another."}


def server(role: str, identifier: str = "7", mode: str = "on") -> dict[str, t.Any]:
    return {"__pg_backup_server": {"role": role, "system_identifier": identifier, "archiving": {"mode": mode}}}


def facts(**more: t.Any) -> dict[str, t.Any]:
    """Return the role's facts on the standby ``b`` of a play with the hosts a, b and c."""
    return {
        "host": "b",
        "server": server("standby")["__pg_backup_server"],
        "external_archive": False,
        "primary_named": "",
        "primary_is_host": False,
        "login_user": "backup",
        **LOGIN,
        **more,
    }


def find(known: dict[str, t.Any], variables: dict[str, dict[str, t.Any]]) -> dict[str, t.Any]:
    return _primary.find(known, variables, ["a", "b", "c"])


def hostvars(**more: dict[str, t.Any]) -> dict[str, dict[str, t.Any]]:
    return {"a": {}, "b": server("standby"), "c": {}, "d": {}, **more}


def login(found: dict[str, t.Any]) -> tuple[t.Any, ...]:
    return tuple(found[name] for name in ("delegate", "login_host", "login_port", "login_unix_socket"))


def test_host_of_the_play() -> None:
    """The primary with the same system identifier, by its own login; another cluster's is no candidate."""
    theirs = {**server("primary"), "pg_backup_login_port": 6000}
    found = find(facts(), hostvars(a=theirs, c=server("primary", "8")))
    assert login(found) == ("a", "", 6000, "/run/postgresql")
    assert (found["name"], found["purpose"], found["find_primary"]) == ("a", "wal_switch", False)
    assert (found["several"], found["problems"]) == ("", [])


def test_hosts_that_were_not_queried() -> None:
    """A host whose query failed, or that is in another batch, is not a candidate."""
    found = find(facts(), hostvars(a={"__pg_backup_server": {"failed": True, "msg": "No route."}}))
    assert found["find_primary"] is True


def test_two_primaries() -> None:
    found = find(facts(), hostvars(a=server("primary"), c=server("primary")))
    assert found["several"].startswith("a and c are both primaries of the cluster with the system identifier 7 that b")
    assert found["several"].endswith("Name the right one: pg_backup_primary.")


def test_named_host_of_the_inventory() -> None:
    """A named host need not be in the play, and it takes precedence over the play's primary."""
    theirs = {"pg_backup_login_host": "10.0.0.4", "pg_backup_login_unix_socket": ""}
    found = find(facts(primary_named="d", primary_is_host=True), hostvars(a=server("primary"), d=theirs))
    assert login(found) == ("d", "10.0.0.4", 5432, "")
    assert (found["name"], found["several"]) == ("d", "")


@pytest.mark.parametrize(
    "text, host, port",
    [
        ("db1", "db1", 5432),
        ("db1:6000", "db1", 6000),
        ("10.0.0.4:6000", "10.0.0.4", 6000),
        ("[::1]:6000", "::1", 6000),
        ("[::1]", "::1", 5432),
        ("fe80::1", "fe80::1", 5432),
        ("db1:", "db1:", 5432),
    ],
)
def test_named_address(text: str, host: str, port: int) -> None:
    """A named address is reached from the standby's host, over TCP."""
    found = find(facts(primary_named=text), hostvars())
    assert login(found) == ("b", host, port, "")
    assert found["name"] == text


def test_upstream() -> None:
    """The standby is asked first, by its own login; the server that it names is the primary."""
    ask = find(facts(), hostvars())
    assert (login(ask), ask["purpose"], ask["find_primary"]) == (("b", "", 5432, "/run/postgresql"), "backup", True)
    assert (ask["name"], ask["problems"]) == ("", [])
    primary = {"login_host": "db1", "login_port": 6000, "problems": [PROBLEM]}
    found = find(facts(primary_answer={"primary": primary}), hostvars())
    assert login(found) == ("b", "db1", 6000, "")
    assert (found["name"], found["problems"]) == ("db1:6000", [PROBLEM])


@pytest.mark.parametrize(
    "named, answer, msg",
    [
        ("d", {"failed": True, "msg": "Connection refused."}, "Connection refused."),
        ("d", {"unreachable": True, "msg": "No route to host."}, "No route to host."),
        ("d", {"changed": False}, "It is unknown."),
        ("", {"primary": {"error": "It has no upstream."}}, "It has no upstream."),
        ("", {"failed": True, "msg": "Connection refused."}, "Connection refused."),
    ],
)  # fmt: skip
def test_primary_that_does_not_answer(named: str, answer: dict[str, t.Any], msg: str) -> None:
    found = find(facts(primary_named=named, primary_answer=answer), hostvars())
    assert found["problems"] == [{"code": "primary_unknown", "msg": msg, "hint": ""}]


@pytest.mark.parametrize(
    "role, mode, external, asks",
    [
        ("standby", "on", False, True),
        ("standby", "off", False, True),
        ("standby", "always", False, False),
        ("standby", "on", True, False),
        ("primary", "on", False, False),
    ],
)
def test_whose_archiver_is_responsible(role: str, mode: str, external: bool, asks: bool) -> None:
    known = facts(server=server(role, mode=mode)["__pg_backup_server"], external_archive=external)
    assert _primary.asks_primary(known) is asks


def test_refusal() -> None:
    assert _primary.refusal(facts(), []) == ""
    text = _primary.refusal(facts(), [PROBLEM])
    assert text.startswith("b is a standby, and the primary must finish")
    assert "It is a standby. Name another. There are three ways" in text
    assert text.endswith("the login of backup from here.")
