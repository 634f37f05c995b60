# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role pg_recover decides and reports, given results of its modules."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
import yaml
from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._pg_recover import RecoverRun

REFUSAL: t.Final = {"code": "not_empty", "msg": "It is not empty.", "hint": "Use delta."}
RUNNING_THERE: t.Final = {"code": "server_running", "msg": "A server runs there.", "hint": ""}
CATALOGUE: t.Final = {"clusters": [{"newest": "b2", "backups": [
    {"backup_id": "b1", "data_directory": "/data/old"},
    {"backup_id": "b2", "data_directory": "/data/new"},
    {"backup_id": "b3", "data_directory": None},
]}]}  # fmt: skip
RECOVERY: t.Final = {"reached": "promoted", "replay_lsn": "0/5", "timeline": 2, "last_transaction_at": None}


def planned(*refusals: dict[str, str], **more: t.Any) -> dict[str, t.Any]:
    """Return a result of backup_restore in check mode."""
    plan = {"bytes": 7, "refusals": list(refusals), "recoverable_until": "12:00"}
    return {"backup_id": "b2", "why": "the newest", "target": "latest", "plan": plan, "changed": True, **more}


FACTS: t.Final[dict[str, t.Any]] = {
    "host": "db", "check_mode": False, "repository": "/srv", "cluster": "main", "backup_id": "",
    "data_directory": "/data", "log_file": "", "start": True, "hook_start": "",
    "restore_as": "primary", "connect_params": {}, "replace_primary": False, "nodes": [],
    "relatives": {}, "node_answers": {}, "hook_stop": "", "config_file": "", "way": {}, "rights": {},
    "login_host": "", "login_port": 5432, "login_unix_socket": "", "login_user": "postgres",
    "target_action": "promote", "catalogue": {}, "process": {}, "plan": {}, "begun": False, "stopped": False,
    "restore": {}, "recovery": {}, "forget": {}, "switch": {}, "sql": {}, "failed_task": "", "failed_result": {},
}  # fmt: skip


def decide(**more: t.Any) -> dict[str, t.Any]:
    return RecoverRun({**FACTS, **more}).answer()


@pytest.mark.parametrize("named, backup_id, directory", [
    ("/data", "", "/data"),
    ("", "", "/data/new"),
    ("", "latest", "/data/new"),
    ("", "b1", "/data/old"),
    ("", "b3", ""),
    ("", "b4", ""),
])  # fmt: skip
def test_where_it_goes(named: str, backup_id: str, directory: str) -> None:
    """To the named directory, else to that of the server the backup was taken from."""
    answer = decide(data_directory=named, backup_id=backup_id, catalogue=CATALOGUE)
    assert answer["data_directory"] == directory
    assert answer["log_file"] == f"{directory}/startup.log"
    assert (answer["no_place"] == "") is (directory != "")


def test_nowhere_to_go() -> None:
    text = decide(data_directory="", backup_id="b4", catalogue=CATALOGUE)["no_place"]
    assert text.startswith("There is no backup b4 of the cluster main in /srv")
    assert "Set pg_recover_data_directory" in text
    assert decide(data_directory="")["no_place"].startswith("There is no backup of the cluster main in /srv")


def test_log_file() -> None:
    assert decide(log_file="/var/log/pg.log")["log_file"] == "/var/log/pg.log"


def test_running_server_is_not_refused() -> None:
    """A running server is no reason to refuse: the role stops it."""
    assert decide(plan=planned(RUNNING_THERE))["refusal"] == ""
    assert decide(plan=planned(RUNNING_THERE, REFUSAL))["refusal"] == "It is not empty. Use delta."


@pytest.mark.parametrize("plan, restore, check, changed", [
    (planned(), {}, True, True),
    (planned(), {}, False, False),
    (planned(REFUSAL), {}, True, False),
    (planned(finished=True), {}, True, False),
    ({"skipped": True}, {"changed": True}, False, True),
    ({"skipped": True}, {"changed": False}, False, False),
])  # fmt: skip
def test_changed(plan: dict[str, t.Any], restore: dict[str, t.Any], check: bool, changed: bool) -> None:
    assert decide(plan=plan, restore=restore, check_mode=check)["changed"] is changed


@pytest.mark.parametrize("more, starts", [
    ({"restore": {"changed": True}}, True),
    ({"restore": {"changed": True}, "start": False}, False),
    ({"restore": {"changed": True}, "target_action": "shutdown"}, True),
    ({"restore": {"changed": False}}, True),
    ({"restore": {"changed": False}, "target_action": "shutdown"}, False),
    ({"restore": {"changed": False}, "process": {"running": True}}, False),
    ({"plan": planned(REFUSAL)}, False),
    ({"restore": {"changed": True}, "process": {"running": True}}, True),
])  # fmt: skip
def test_to_start(more: dict[str, t.Any], starts: bool) -> None:
    """A restored server, and one that an earlier run did not start; not one that shut down at its target."""
    assert decide(**more)["to_start"] is starts


def test_plan() -> None:
    answer = decide(
        plan=planned(RUNNING_THERE),
        check_mode=True,
        process={"running": True},
        way={"way": "unit", "unit": "pg.service"},
    )
    assert answer["plan"] == [
        "db: a backup would be restored.",
        "Backup: b2 of main; the newest",
        "To: /data",
        "Server there: runs, would be stopped by the unit pg.service, would be started by the unit pg.service",
        "Live nodes of the cluster: none",
        "Target: latest; the archive goes up to 12:00",
        'Plan: {"bytes": 7, "recoverable_until": "12:00"}',
        "What would stop it: nothing",
    ]


def test_plan_that_is_refused() -> None:
    plan = decide(plan=planned(REFUSAL), check_mode=True)["plan"]
    assert plan[0] == "db: nothing can be restored with these variables."
    assert plan[3] == "Server there: does not run"
    assert plan[-2:] == ["What would stop it: not_empty", "not_empty: It is not empty. Use delta."]
    assert decide(plan=planned(finished=True), check_mode=True)["plan"][0].endswith("has been done already.")


@pytest.mark.parametrize("more, by", [({}, "pg_ctl"), ({"hook_start": "x.yml", "service": "pg"}, "your own tasks")])
def test_who_starts_it(more: dict[str, str], by: str) -> None:
    plan = decide(plan=planned(), check_mode=True, **more)["plan"]
    assert plan[3] == f"Server there: does not run, would be started by {by}"


@pytest.mark.parametrize(("more", "states"), [
    ({}, ["started"]),
    ({"process": {"running": True}}, ["stopped", "started"]),
    ({"process": {"running": True}, "hook_stop": "x.yml"}, ["started"]),
    ({"process": {"running": True}, "hook_start": "x.yml"}, ["stopped"]),
    ({"process": {"running": True}, "start": False}, ["stopped"]),
    ({"process": {"running": True}, "plan": planned(finished=True)}, []),
    ({"plan": planned(finished=True)}, ["started"]),
])  # fmt: skip
def test_what_needs_a_right(more: dict[str, t.Any], states: list[str]) -> None:
    """What the user's own tasks do needs none."""
    assert decide(**more)["states"] == states


def test_left_to_do() -> None:
    """Only failed steps, each with its hint."""
    assert decide(forget={"skipped": True}, switch={})["left"] == []
    assert decide(forget={"pending_restart": []}, switch={"segment": "0"})["left"] == []
    forget, switch = decide(forget={"msg": "No right."}, switch={"msg": "No such function."})["left"]
    assert forget.startswith("db: the server is restored, but forgetting the recovery target failed: No right. As a")
    assert "finishing the first WAL segment of the new timeline failed: No such function. Run SELECT" in switch


def test_result() -> None:
    answer = decide(restore=planned(finished=True), recovery=RECOVERY, sql={"results": [{"ok": True}]})["result"]
    msg = (
        "db: the backup b2 of the cluster main is restored in /data, promoted at 0/5 on timeline 2, last transaction"
        " at an unknown time."
    )
    assert answer == {
        "changed": True, "backup_id": "b2", "why": "the newest", "data_directory": "/data", "reached": "promoted",
        "replay_lsn": "0/5", "last_transaction_at": "", "timeline": 2, "checks": [{"ok": True}],
        "plan": planned()["plan"], "msg": msg,
    }  # fmt: skip


def test_result_of_check_mode() -> None:
    answer = decide(plan=planned(), check_mode=True)["result"]
    assert answer["msg"] == "db: the backup b2 of the cluster main would be restored in /data."
    assert (answer["reached"], answer["timeline"], answer["checks"]) == ("", 0, [])
    done = decide(plan=planned(finished=True), check_mode=True)["result"]
    assert done["msg"] == "db: the backup b2 of the cluster main is restored in /data."


@pytest.mark.parametrize("more, changed, outcome", [
    ({"begun": True, "restore": planned(finished=True)}, True, "The files are restored. Repair the cause"),
    ({}, False, "Nothing was changed."),
    (
        {"stopped": True, "failed_result": {"msg": "Why.", "code": "stop_timeout"}},
        True,
        "Nothing was changed, but the stop of the server was begun; check whether it runs.",
    ),
    (
        {"stopped": True, "begun": True, "failed_result": {"msg": "Why.", "code": "x"}},
        True,
        "Nothing was changed, but the server was stopped.",
    ),
    (
        {"stopped": True, "begun": True, "failed_result": {"msg": "Why.", "code": "server_running"}},
        True,
        "Nothing was changed, but the stop of the server was begun; check whether it runs.",
    ),
    ({"begun": True, "failed_result": {"msg": "Why.", "code": "x"}}, False, "Nothing was changed."),
    ({"begun": True, "failed_result": {"msg": "Why.", "code": "x", "progress": {}}}, True, "Without global/pg_control"),
    ({"begun": True}, True, "Without global/pg_control"),
    ({"begun": True, "plan": planned(REFUSAL)}, False, "Nothing was changed."),
])  # fmt: skip
def test_failure(more: dict[str, t.Any], changed: bool, outcome: str) -> None:
    """The message gives the state of the data directory; a restore that has begun reports its progress."""
    facts = {"failed_task": "Restore the files", "failed_result": {"msg": "Why."}, **more}
    result = decide(**facts)["failure"]
    assert f'of the cluster main to /data failed at "Restore the files": Why. {outcome}' in result["msg"]
    assert result["changed"] is changed


def test_failure_before_the_place_is_known() -> None:
    text = decide(data_directory="", failed_task="x", failed_result={"msg": "Why."})["failure"]["msg"]
    assert text.startswith('db: restoring the backup of the cluster main to its place failed at "x": Why.')


def test_facts_of_the_role() -> None:
    """The role passes exactly the facts that the code reads."""
    path = pathlib.Path(__file__).resolve().parents[3] / "roles" / "pg_recover" / "vars" / "main.yml"
    assert set(yaml.safe_load(path.read_text())["__pg_recover_facts"]) == set(FACTS)


def test_a_copy_is_reached_without_loading_anything() -> None:
    given = {"options": "-c jit=off", "connect_timeout": 3}
    assert decide(connect_params=given)["connect_params"] == given
    found = decide(connect_params=given, restore_as="copy")["connect_params"]
    assert found == {"options": "-c session_preload_libraries= -c jit=off", "connect_timeout": 3}
