# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every problem that would stop a backup, with its hint."""

from __future__ import annotations

import copy
import os
import pathlib
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import preflight as _preflight

from tests.unit.helpers.backups import IDENTIFIER, make_cluster
from tests.unit.helpers.control_files import control_file

STARTED = 1800000000
RIGHTS = ("backup_start", "backup_stop", "switch_wal", "pg_read_all_settings", "pg_monitor", "replication")


@pytest.fixture
def info(tmp_path: pathlib.Path) -> dict[str, t.Any]:
    """A server without problems, and its data directory."""
    data = tmp_path / "pg"
    (data / "global").mkdir(parents=True)
    (data / "global" / "pg_control").write_bytes(control_file())
    (data / "postmaster.pid").write_text(f"77\n{data}\n{STARTED}\n5433\n/tmp\nlocalhost\n1 2\nready\n")
    return {
        "address": "db:5433",
        "role": "primary",
        "major": 18,
        "login_role": "backup",
        "login_db": "postgres",
        "pooling_proxy": False,
        "wal_level": "replica",
        "full_page_writes": True,
        "system_identifier": IDENTIFIER,
        "port": 5433,
        "started_at": STARTED + 0.4,
        "data_directory": str(data),
        "size": 1000,
        "tablespaces": [
            {"oid": 1, "name": "one", "location": str(tmp_path), "in_place": False},
            {"oid": 2, "name": "two", "location": "pg_tblspc/2", "in_place": True},
        ],
        "privileges": dict.fromkeys(RIGHTS, True),
        "replication_slots": {"max": 10, "used": 9, "idle_timeout": 0},
        "archiving": {
            "mode": "on",
            "command_set": True,
            "library": "",
            "failing": False,
            "last_failed_wal": "000000010000000000000007",
            "last_failed_time": "2026-11-22 06:30",
            "last_archived_wal": None,
            "last_archived_time": None,
        },
    }


def codes(problems: list[dict[str, str]]) -> list[str]:
    """Return the codes of the problems; require that each has a message and a hint."""
    for one in problems:
        assert set(one) == {"code", "msg", "hint"}
        assert one["msg"].endswith((".", "!"))
        assert one["hint"]
    return [one["code"] for one in problems]


def test_ready(info: dict[str, t.Any]) -> None:
    assert _preflight.problems_of_backup(info) == _preflight.problems_of_primary(info) == []
    assert _preflight.problems_of_backup(changed(info, {"role": "standby"})) == []


# A change of the server, the problems of a backup of it, and those of a backup of its standby.
TABLE: list[tuple[dict[str, t.Any], list[str], list[str]]] = [
    ({"pooling_proxy": True}, ["pooling_proxy"], []),
    ({"wal_level": "minimal"}, ["wal_level_minimal"], []),
    ({"full_page_writes": False}, [], ["full_page_writes_off"]),
    ({"archiving.mode": "off"}, ["archive_mode_off"], ["archive_mode_off"]),
    ({"archiving.command_set": False}, ["archive_command_empty"], ["archive_command_empty"]),
    ({"archiving.command_set": False, "archiving.library": "basic_archive"}, [], []),
    ({"archiving.failing": True}, ["archiver_failing"], ["archiver_failing"]),
    ({"privileges.backup_start": False}, ["no_privilege_backup_start"], []),
    ({"privileges.backup_stop": False}, ["no_privilege_backup_stop"], []),
    ({"privileges.switch_wal": False}, [], ["no_privilege_switch_wal"]),
    ({"privileges.pg_monitor": False}, ["no_privilege_pg_monitor"], ["no_privilege_pg_monitor"]),
    ({"privileges.pg_read_all_settings": False}, ["no_privilege_pg_read_all_settings"], []),
    ({"role": "standby"}, [], ["not_primary"]),
    ({"role": "standby", "archiving.mode": "off"}, [], ["not_primary"]),
    ({"role": "standby", "archiving.failing": True}, [], ["not_primary"]),
    ({"role": "standby", "archiving.failing": True, "archiving.mode": "always"}, ["archiver_failing"], ["not_primary"]),
    ({"role": "standby", "wal_level": "minimal"}, [], ["not_primary"]),
]


def changed(info: dict[str, t.Any], change: dict[str, t.Any]) -> dict[str, t.Any]:
    result = copy.deepcopy(info)
    for path, value in change.items():
        part, _dot, name = path.rpartition(".")
        (result[part] if part else result)[name] = value
    if result["role"] == "standby":
        pathlib.Path(result["data_directory"], "global/pg_control").write_bytes(control_file(state=5))
    return result


@pytest.mark.parametrize("change, backup, primary", TABLE, ids=lambda value: str(value)[:60])
def test_table(info: dict[str, t.Any], change: dict[str, t.Any], backup: list[str], primary: list[str]) -> None:
    server = changed(info, change)
    assert codes(_preflight.problems_of_backup(server)) == backup
    assert codes(_preflight.problems_of_primary(server)) == primary
    # If the archive itself is read, the server's archiver and the right to query it do not matter.
    archiving = ("archiv", "no_privilege_pg_monitor")
    for judge, expected in ((_preflight.problems_of_backup, backup), (_preflight.problems_of_primary, primary)):
        wanted = [code for code in expected if not code.startswith(archiving)]
        assert codes(judge(server, external_archive=True)) == wanted


# A change of the server, the problems of a backup with wal=include, and those with wal=none.
INCLUDE: list[tuple[dict[str, t.Any], list[str], list[str]]] = [
    ({}, [], []),
    ({"archiving.mode": "off", "privileges.pg_monitor": False}, [], []),
    ({"role": "standby", "archiving.mode": "always", "archiving.failing": True}, [], []),
    ({"privileges.replication": False}, ["no_privilege_replication"], []),
    ({"replication_slots.used": 10}, ["no_free_slot"], []),
    ({"replication_slots.max": 0, "replication_slots.used": 0}, ["no_free_slot"], []),
    ({"replication_slots.idle_timeout": 86399}, ["idle_replication_slot_timeout"], []),
    ({"replication_slots.idle_timeout": 86400}, [], []),
    ({"wal_level": "minimal", "replication_slots.max": 0}, ["wal_level_minimal"], ["wal_level_minimal"]),
    ({"wal_level": "minimal", "role": "standby"}, ["wal_level_minimal"], []),
    ({"privileges.backup_stop": False}, ["no_privilege_backup_stop"], ["no_privilege_backup_stop"]),
]


@pytest.mark.parametrize("change, include, none", INCLUDE, ids=lambda value: str(value)[:60])
def test_without_an_archive(
    info: dict[str, t.Any], change: dict[str, t.Any], include: list[str], none: list[str]
) -> None:
    server = changed(info, change)
    assert codes(_preflight.problems_of_backup(server, wal="include")) == include
    assert codes(_preflight.problems_of_backup(server, wal="none")) == none
    archive = {"no_privilege_replication", "no_free_slot", "idle_replication_slot_timeout"}
    assert not archive & set(codes(_preflight.problems_of_backup(server)))
    if server["role"] == "primary":
        blind = changed(server, {"privileges.switch_wal": False, "archiving.mode": "off"})
        assert codes(_preflight.problems_of_primary(blind, wal="include")) == []


def test_hints_are_exact(info: dict[str, t.Any]) -> None:
    none = changed(info, {f"privileges.{name}": False for name in RIGHTS})
    hints = {one["code"]: one["hint"] for one in _preflight.problems_of_backup(none)}
    start = "GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO backup;"
    assert hints["no_privilege_backup_start"] == f"As a superuser, in the database postgres: {start}"
    assert hints["no_privilege_pg_monitor"].endswith("GRANT pg_monitor TO backup;")
    hints = {
        one["code"]: one["hint"] for one in _preflight.problems_of_backup({**none, "major": 14, "role": "standby"})
    }
    assert "on the primary, " in hints["no_privilege_backup_start"]
    assert "pg_start_backup(text, boolean, boolean)" in hints["no_privilege_backup_start"]
    (failing,) = _preflight.problems_of_backup(changed(info, {"archiving.failing": True}))
    for fact in ("000000010000000000000007", "2026-11-22 06:30", "never"):
        assert fact in failing["msg"]


# --- the files belong to the server ---


def pid_file(info: dict[str, t.Any], text: str) -> None:
    pathlib.Path(info["data_directory"], "postmaster.pid").write_text(text)


@pytest.mark.parametrize(
    "text",
    ["", "77\n", "77\n/srv\n", f"77\n/srv\n{STARTED}\n", f"77\n/srv\n{STARTED}\n5432\n", "77\n/srv\nx\n5433\n",
     f"77\n/srv\n{STARTED - 100}\n5433\n", f"77\n/srv\n{STARTED + 100}\n5433\n", "\0\xff\n" * 5],
)  # fmt: skip
def test_files_of_another_server(info: dict[str, t.Any], text: str) -> None:
    pid_file(info, text)
    assert codes(_preflight.problems_of_backup(info)) == ["data_directory_of_another_server"]


def test_other_cluster_at_the_same_place(info: dict[str, t.Any]) -> None:
    assert codes(_preflight.problems_of_backup({**info, "system_identifier": "1"})) == [
        "data_directory_of_another_server"
    ]


def test_a_standby_of_the_same_cluster_at_the_same_place(info: dict[str, t.Any]) -> None:
    """Everything else of both may be equal."""
    changed(info, {"role": "standby"})
    assert codes(_preflight.problems_of_backup(info)) == ["data_directory_of_another_server"]


@pytest.mark.parametrize("name", ["", "postmaster.pid", "global/pg_control", "global"])
def test_not_on_this_host(info: dict[str, t.Any], name: str) -> None:
    place = pathlib.Path(info["data_directory"], name)
    place.rename(pathlib.Path(info["data_directory"]).parent / "away")
    assert codes(_preflight.problems_of_backup(info)) == ["data_directory_not_here"]


def test_unreadable(info: dict[str, t.Any]) -> None:
    pathlib.Path(info["data_directory"], "global", "pg_control").write_bytes(b"short")
    (one,) = _preflight.problems_of_backup(info)
    assert (one["code"], str(os.geteuid()) in one["msg"]) == ("data_directory_unreadable", True)


def test_unreadable_tablespace(info: dict[str, t.Any]) -> None:
    info["tablespaces"][0]["location"] = "/nowhere"
    (one,) = _preflight.problems_of_backup(info)
    assert (one["code"], "/nowhere" in one["msg"]) == ("tablespace_unreadable", True)


def test_unknown_data_directory(info: dict[str, t.Any]) -> None:
    """The role may not read the setting, which is a separate problem."""
    server = changed(info, {"data_directory": None, "privileges.pg_read_all_settings": False})
    assert codes(_preflight.problems_of_backup(server)) == ["no_privilege_pg_read_all_settings"]


# --- the repository ---


def test_repository(info: dict[str, t.Any], tmp_path: pathlib.Path) -> None:
    cluster = make_cluster(tmp_path / "pg")
    path = cluster.repository.path
    info["tablespaces"] = []

    def found(**change: t.Any) -> list[str]:
        return codes(_preflight.repository_problems({**info, **change}, path, "main")[0])

    assert found(data_directory="/elsewhere") == []
    assert found() == ["repository_inside_cluster"]
    assert found(data_directory="/elsewhere", size=1 << 60) == ["repository_too_small"]
    assert found(data_directory="/elsewhere", size=None) == []
    assert found(data_directory=None, system_identifier="1") == ["other_cluster"]
    space = {"oid": 1, "name": "one", "location": str(tmp_path), "in_place": False}
    assert found(data_directory="/elsewhere", tablespaces=[space]) == ["repository_inside_cluster"]
    for bad, code in (("relative", "repository_relative"), ("/no/such/place", "repository_missing")):
        problems, free = _preflight.repository_problems(info, bad, "main")
        assert ([one["code"] for one in problems], free) == ([code], None)
