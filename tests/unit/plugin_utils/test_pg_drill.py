# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role pg_drill decides and reports, given results of its modules."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
import yaml
from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._pg_drill import DrillRun

SCRATCH: t.Final = {"directory": "/drills/main.drill", "data_directory": "/drills/main.drill/data",
                    "socket_directory": "/tmp/s", "hba_file": "/h", "ident_file": "/i"}  # fmt: skip
RECOVERY: t.Final = {"reached": "promoted", "replay_lsn": "0/5", "timeline": 2, "data_checksums": True,
                     "last_transaction_at": None, "msg": "Promoted."}  # fmt: skip
SOUND: t.Final = {"rc": 0, "stdout": "", "stderr": ""}


def catalogue(version: str = "18.3", proven: bool = False, proven_backup: bool = False) -> dict[str, t.Any]:
    backup = {"backup_id": "b1", "version": version, "proven_recently": proven_backup}
    return {"clusters": [{"newest": "b1", "backups": [backup], "proven_recently": proven}]}


FACTS: t.Final[dict[str, t.Any]] = {
    "host": "db", "cluster": "main", "backup_id": "", "max_age": "7 days", "directory": "/drills", "by": "me",
    "target": "immediate", "other_targets": ["", "", "", ""],
    "settings": {}, "amcheck_wanted": "auto", "checksums": True, "own_checks": [],
    "catalogue": catalogue(), "scratch": SCRATCH, "restore": {},
    "recovery": {}, "amcheck": {}, "sql": {}, "pages": {}, "failed": {}, "clean": {}, "began": "1000.0",
    "ended": 1012.34,
}  # fmt: skip


def decide(**more: t.Any) -> dict[str, t.Any]:
    return DrillRun({**FACTS, **more}).answer()


def checks(**more: t.Any) -> list[tuple[str, t.Any, str]]:
    """Return the finding of each check."""
    return [(one["name"], one["ok"], one["msg"]) for one in decide(**more)["result"]["checks"]]


@pytest.mark.parametrize("backup_id, known, proven", [
    ("", catalogue(proven=True), True),
    ("latest", catalogue(proven=True), True),
    ("", catalogue(proven_backup=True), False),
    ("b1", catalogue(proven=True), False),
    ("b1", catalogue(proven_backup=True), True),
    ("b2", catalogue(proven=True, proven_backup=True), False),
    ("", {"clusters": []}, False),
])  # fmt: skip
def test_proven(backup_id: str, known: dict[str, t.Any], proven: bool) -> None:
    """Any backup of the cluster counts unless one is named."""
    assert decide(backup_id=backup_id, catalogue=known)["proven"] is proven


def test_fresh() -> None:
    result = decide(catalogue=catalogue(proven=True))["fresh"]
    msg = "db: the cluster main was proven less than 7 days ago."
    assert result == {"changed": False, "ok": True, "backup_id": "b1", "checks": [], "msg": msg}
    assert decide()["fresh"]["msg"] == "db: a drill of the cluster main is due."


def test_target() -> None:
    """An explicit target replaces the default one."""
    assert decide()["recovery_target"] == "immediate"
    assert decide(other_targets=["", "0/5", "", ""])["recovery_target"] == ""


@pytest.mark.parametrize("version, more", [
    ("14.20", {"stats_temp_directory": "pg_stat_tmp"}), ("16.1", {}), ("17.1", {"event_triggers": "off"}),
    ("18beta1", {"event_triggers": "off"}),
])  # fmt: skip
def test_settings(version: str, more: dict[str, str]) -> None:
    settings = decide(catalogue=catalogue(version))["settings"]
    special = {name: settings[name] for name in ("stats_temp_directory", "event_triggers") if name in settings}
    assert special == more
    where = ("unix_socket_directories", "hba_file", "ident_file", "listen_addresses")
    assert [settings[name] for name in where] == ["/tmp/s", "/h", "/i", ""]


def test_own_settings_win() -> None:
    settings = decide(settings={"shared_buffers": "1GB", "work_mem": "1MB"})["settings"]
    assert (settings["shared_buffers"], settings["work_mem"]) == ("1GB", "1MB")


def test_nothing_of_the_source_is_loaded() -> None:
    assert decide()["connect_params"] == {"options": "-c session_preload_libraries= -c event_triggers=off"}
    old = decide(catalogue=catalogue("16.2 (Debian 16.2-1)"))
    assert old["connect_params"] == {"options": "-c session_preload_libraries="}


def test_plan() -> None:
    answer = decide(restore={"backup_id": "b1", "why": "the newest", "target": "immediate", "plan": {"bytes": 2048}},
                    own_checks=[{}, {}], checksums=False)  # fmt: skip
    assert answer["plan"] == [
        "db: the backup b1 of the cluster main would be restored in /drills/main.drill.",
        "Why this one: the newest",
        "Target: immediate",
        "Size: 2.0 KiB",
        "Then: pg_amcheck (auto), 2 checks of yours, pg_checksums (no)",
        "What would stop it: nothing",
    ]


def test_plan_that_is_stopped() -> None:
    """A failed module stops the plan, and so do the restore's refusals."""
    failure = {"code": "not_a_scratch", "msg": "It is another's.", "hint": "Choose a different one."}
    plan = decide(scratch=failure, restore={"skipped": True})["plan"]
    assert "cannot be restored in /drills." in plan[0]
    assert plan[-1] == "not_a_scratch: It is another's. Choose a different one."
    refused = {"plan": {"refusals": [{"code": "no_space", "msg": "Full.", "hint": ""}]}}
    assert decide(restore=refused)["stoppers"] == refused["plan"]["refusals"]


@pytest.mark.parametrize("more", [
    {"scratch": {"failed": False, "msg": "MODULE FAILURE", "rc": 1}, "restore": {"skipped": True}},
    {"restore": {"failed": False, "msg": "MODULE FAILURE", "rc": 1}},
])  # fmt: skip
def test_plan_with_a_module_that_crashed(more: dict[str, t.Any]) -> None:
    answer = decide(**more)
    assert answer["stoppers"] == [{"code": "module_failed", "msg": "MODULE FAILURE", "hint": ""}]
    assert "cannot be restored" in answer["plan"][0]


def test_plan_with_a_module_that_crashed_without_a_message() -> None:
    """ansible-core 2.21 registers nothing else of it."""
    (stopper,) = decide(restore={"failed": False, "failed_when_result": False})["stoppers"]
    assert stopper["msg"].startswith("The module failed without a message")


def test_all_checks() -> None:
    own = {"name": "mine", "ok": True, "msg": "7"}
    found = checks(recovery=RECOVERY, amcheck=SOUND, pages={**SOUND, "stdout": "Bad  checksums:\n 0"},
                   sql={"results": [own]})  # fmt: skip
    assert found == [
        ("restore and recovery", True, "Promoted."),
        ("pg_amcheck", True, "no corruption found"),
        ("pg_checksums", True, "Bad checksums: 0"),
        ("mine", True, "7"),
    ]


@pytest.mark.parametrize("wanted, result, ok, msg", [
    ("never", {"skipped": True}, None, "not wanted"),
    ("auto", {"rc": 2, "code": "amcheck_failed", "msg": "heap t: bad"}, False, "heap t: bad"),
    ("auto", {"code": "programs_missing", "msg": "no pg_amcheck"}, None, "no pg_amcheck"),
    ("auto", {"code": "amcheck_missing", "msg": "not installed"}, None, "not installed"),
    ("always", {"code": "programs_missing", "msg": "no pg_amcheck"}, False, "no pg_amcheck"),
])  # fmt: skip
def test_amcheck(wanted: str, result: dict[str, t.Any], ok: t.Any, msg: str) -> None:
    """A missing program proves nothing: neither corruption nor its absence."""
    (found,) = checks(amcheck_wanted=wanted, amcheck=result)
    assert (found[1], msg in found[2]) == (ok, True), found


@pytest.mark.parametrize("result, msg", [
    ({"rc": -9, "code": "amcheck_failed", "msg": "ended with the status -9"}, "ended with the status -9"),
    ({"code": "connection_failed", "msg": "Cannot connect"}, "Cannot connect"),
    ({"rc": 1, "msg": "MODULE FAILURE"}, "MODULE FAILURE"),
    ({"failed": False}, "The module failed without a message; -vvv shows more."),
])  # fmt: skip
def test_amcheck_that_could_not_run(result: dict[str, t.Any], msg: str) -> None:
    """An installed program that was killed or not run is a failed check, not a skipped one."""
    assert checks(amcheck=result) == [("pg_amcheck", False, msg)]


@pytest.mark.parametrize("wanted, on, result, ok, msg", [
    (False, True, {"skipped": True}, None, "not wanted"),
    (True, False, {"skipped": True}, None, "data checksums are off"),
    (True, True, {"rc": 1, "stdout": "", "stderr": "failed in file x"}, False, "failed in file x"),
    (True, True, {"rc": 2, "stdout": "", "stderr": "", "msg": "No such file"}, False, "No such file"),
])  # fmt: skip
def test_pages(wanted: bool, on: bool, result: dict[str, t.Any], ok: t.Any, msg: str) -> None:
    recovery = {**RECOVERY, "data_checksums": on}
    assert checks(checksums=wanted, recovery=recovery, pages=result)[-1] == ("pg_checksums", ok, msg)


def test_own_checks_that_could_not_run() -> None:
    assert checks(sql={"failed": True, "msg": "No login."}) == [("checks of yours", False, "No login.")]
    assert checks(sql={"skipped": True}) == []


def test_failure_and_what_is_left() -> None:
    late = {"failed": True, "code": "timeout", "msg": "Too late."}
    failed = {"name": "recover | Wait", "msg": "Too late. "}
    found = checks(recovery=late, failed=failed, clean={"code": "busy", "msg": "Still runs."})
    assert found == [("recover | Wait", False, "Too late."), ("cleaning", False, "Still runs.")]


def test_cleaning_that_crashed() -> None:
    assert checks(clean={"rc": 1, "msg": "MODULE FAILURE"}) == [("cleaning", False, "MODULE FAILURE")]
    assert checks(clean={"directory": "/drills/main.drill", "changed": True, "msg": "Removed."}) == []


def test_result_of_a_success() -> None:
    answer = decide(recovery=RECOVERY, amcheck={"skipped": True}, amcheck_wanted="never", restore={"backup_id": "b1"})
    msg = (
        "db: the backup b1 of the cluster main was restored, recovered to 0/5 (last transaction at an unknown time) and"
        " passed 1 checks."
    )
    drill = {
        "ok": True, "at": "1970-01-01T00:16:52Z", "by": "me", "host": "db", "recovered_to_lsn": "0/5", "timeline": 2,
        "target": "immediate", "seconds": 12.3, "msg": msg,
    }  # fmt: skip
    record = dict(answer["record"])
    assert [check["ok"] for check in record.pop("checks")] == [True, None]
    assert record == drill
    result = answer["result"]
    assert (result["changed"], result["cluster"], result["backup_id"]) == (True, "main", "b1")
    assert result["last_transaction_at"] is None


def test_result_of_a_failure() -> None:
    answer = decide(
        recovery=RECOVERY, amcheck={"rc": 2, "code": "amcheck_failed", "msg": "bad"}, failed={"name": "x", "msg": "y"}
    )
    assert answer["result"]["ok"] is False
    assert answer["result"]["msg"] == "db: the backup b1 of the cluster main is not proven: pg_amcheck: bad; x: y"
    none = decide(catalogue={}, failed={"name": "x", "msg": "y"})["result"]
    assert none["msg"].startswith("db: the backup (none) of the cluster main is not proven")
    assert none["backup_id"] == ""


def test_facts_of_the_role() -> None:
    """The role passes exactly the facts that the code reads."""
    path = pathlib.Path(__file__).resolve().parents[3] / "roles" / "pg_drill" / "vars" / "main.yml"
    assert set(yaml.safe_load(path.read_text())["__pg_drill_facts"]) == set(FACTS)
