# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the server can be stopped and started again, decided before it is stopped."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._service import Service

UNIT: t.Final = {"way": "unit", "unit": "postgresql@17-main.service"}
BY_HAND: t.Final = {"way": "pg_ctl", "unit": ""}
WAS: t.Final = {"kind": "systemd", "unit": "postgresql@17-main.service", "program": "", "data_directory": "/data",
                "config_file": "/etc/postgresql.conf", "log_file": "/var/log/pg.log"}  # fmt: skip
FACTS: t.Final[dict[str, t.Any]] = {
    "process": {}, "way": UNIT, "rights": {"unit": "x"}, "plan": {}, "start": True, "hook_start": "", "hook_stop": "",
    "target_action": "promote", "restore_as": "primary", "config_file": "",
}  # fmt: skip


def service(content: dict[str, t.Any] | None = None, **facts: t.Any) -> Service:
    """Return what is known; ``content`` is that of the plan."""
    plan = {"config_file": "", "run_by": WAS, **(content or {})}
    return Service({**FACTS, **facts}, {"backup_id": "one", "plan": plan}, "/data")


def codes(found: Service) -> list[str]:
    """Return the codes of the refusals."""
    return [one["code"] for one in found.refusals]


@pytest.mark.parametrize("facts, states", [
    ({}, ["started"]),
    ({"process": {"running": True}}, ["stopped", "started"]),
    ({"process": {"running": True}, "hook_stop": "x"}, ["started"]),
    ({"process": {"running": True}, "hook_start": "x"}, ["stopped"]),
    ({"start": False}, []),
    ({"process": {"running": True}, "plan": {"finished": True}}, []),
    ({"plan": {"finished": True}}, ["started"]),
    ({"plan": {"finished": True}, "target_action": "shutdown"}, []),
])  # fmt: skip
def test_what_the_role_does_itself(facts: dict[str, t.Any], states: list[str]) -> None:
    assert service(**facts).states == states


def test_who_runs_it() -> None:
    """The server that runs says it, else the backup's record."""
    running = {"running": True, "run_by": {"kind": "none", "config_file": "/own"}}
    assert service(process=running).run_by["kind"] == "none"
    assert service().run_by["kind"] == "systemd"
    assert service().log_file == "/var/log/pg.log"
    assert service(way=BY_HAND).log_file == ""
    assert service({"run_by": None}).run_by == {}


def test_what_cannot_be_done() -> None:
    """The words of the modules are kept, whatever they failed with."""
    refused = {"failed": False, "code": "managed_server", "msg": "It is managed by patroni."}
    assert codes(service(way=refused)) == ["managed_server"]
    assert service(way=refused).refusals[0]["msg"] == "It is managed by patroni."
    assert codes(service(rights={"code": "unit_missing", "msg": "There is none."})) == ["unit_missing"]
    assert codes(service(rights={"msg": "no become password"})) == ["no_right_to_unit"]
    assert codes(service(rights={"skipped": True})) == []
    assert codes(service(way=refused, start=False)) == []


@pytest.mark.parametrize("kind, code", [("systemd", "unit_missing"), ("patroni", "managed_server"), ("none", "")])
def test_a_lost_host(kind: str, code: str) -> None:
    """Who ran the server must be there to run it again, unless it becomes a copy, or the server of another place."""
    was = {**WAS, "kind": kind}
    assert codes(service({"run_by": was}, way=BY_HAND)) == ([code] if code else [])
    assert codes(service({"run_by": was}, way=BY_HAND, restore_as="copy")) == []
    assert codes(service({"run_by": {**was, "data_directory": "/other"}}, way=BY_HAND)) == []
    assert codes(service({"run_by": was}, way=BY_HAND, hook_start="mine.yml")) == []


def test_the_configuration() -> None:
    """A server without one cannot start; one that runs has its own."""
    (refusal,) = service({"config_file": None}).refusals
    assert refusal["code"] == "config_missing"
    assert "/etc/postgresql.conf" in refusal["msg"]
    assert codes(service({"config_file": None}, process={"running": True})) == []
    assert codes(service({"config_file": None, "refusals": [{"code": "unreadable"}]})) == []
    assert service({"config_file": "/etc/x"}).config_file == "/etc/x"
    assert service({"config_file": "/etc/x"}, config_file="/mine").config_file == "/mine"
