# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The harness tested through use: backups by pg_basebackup, and modules run in all three ways."""

from __future__ import annotations

import pathlib

import pytest

from tests.harness import binaries
from tests.harness.checks import data_checksum, restore_and_check
from tests.harness.modules import Modules, run_module_as, target_pythons
from tests.harness.playbook import host_vars, run_playbook
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.harness.user import me, own_directory, server_user


@pytest.mark.majors(*binaries.MAJORS)
def test_pg_basebackup_of_a_standby_restores(
    sandbox: Sandbox, primary: Server, standby: Server, repository: pathlib.Path, major: int
) -> None:
    """A backup in the layout of a published one is verified, restored next to its live source and compared."""
    primary.pgbench_init()
    standby.catch_up()
    backup = own_directory(repository / "one")
    ((oid, location),) = standby.sql(
        "SELECT oid, pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'extra'"
    )
    own_directory(backup / "tablespaces")
    standby.tool("pg_basebackup", "-D", backup / "data", "-c", "fast", "-X", "none", "--no-sync",
                 "-T", f"{location}={backup}/tablespaces/{oid}")  # fmt: skip
    primary.switch_wal()
    expected = data_checksum(primary)

    def compare(restored: Server) -> None:
        assert data_checksum(restored) == expected
        assert restored.value("SELECT pg_tablespace_location(%s)", [oid]).startswith(str(restored.directory))

    restore_and_check(sandbox, backup, primary.archive, major, compare, verify_wal=False)
    assert data_checksum(primary) == expected


def test_a_standby_that_was_away_finds_its_wal(primary: Server, standby: Server) -> None:
    """Its slot keeps the WAL that the primary would recycle, so that both can be restarted at any time."""
    standby.stop()
    primary.pgbench_init(5)
    primary.switch_wal()
    primary.sql("CHECKPOINT")
    primary.restart()
    standby.start()
    standby.catch_up()
    assert "has already been removed" not in standby.log


@pytest.mark.oldest_core
def test_the_same_module_in_process_by_interpreter_and_in_a_play(
    sandbox: Sandbox, primary: Server, standby: Server, modules: Modules
) -> None:
    """In this process, with the oldest and newest Python, as the server user, and on two hosts of a play."""
    identity = primary.system_identifier
    arguments = modules.arguments("server_info")
    assert modules.ok("server_info")["system_identifier"] == identity
    for python in target_pythons():
        result = run_module_as("server_info", arguments, python=python, user=me())
        assert result.get("system_identifier") == identity, (python, result)
    result = run_module_as("server_info", arguments, python=binaries.server_python())
    assert result.get("system_identifier") == identity, result

    login = {key: f"{{{{ pg_backup_{key} }}}}" for key in primary.login()}
    play = {
        "hosts": "all",
        "gather_facts": False,
        "become": True,
        "become_user": server_user().name,
        "tasks": [
            {"name": "Who", "ansible.builtin.command": "id -un", "changed_when": False},
            {"name": "Look", "pgfleet.basebackup.server_info": login},
        ],
    }
    done = run_playbook([play], {"db1": host_vars(primary), "db2": host_vars(standby)}, directory=sandbox.root).ok()
    assert done.stats["db1"]["ok"] == 2
    for host, role in (("db1", "primary"), ("db2", "standby")):
        who, look = done.of(host, "ok")
        assert who["result"]["stdout"] == server_user().name
        assert (look["result"]["system_identifier"], look["result"]["role"]) == (identity, role)
