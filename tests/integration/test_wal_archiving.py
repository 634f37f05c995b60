# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module wal_archiving without its role: predicted, done, proven, and unchanged the second time."""

from __future__ import annotations

import typing as t

import pytest

from tests.harness.modules import Result, run_module_as_server
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until


def archiving(server: Server, sandbox: Sandbox, *, check: bool = False, diff: bool = False, **more: t.Any) -> Result:
    """Call the module for the cluster ``main``."""
    options = {"repository": str(sandbox.root / "repository"), "cluster": "main", "timeout": "80 s", **more}
    options.setdefault("script_directory", str(sandbox.root / "scripts"))
    return run_module_as_server("wal_archiving", {**server.login(), **options}, check=check, diff=diff)


@pytest.mark.majors(14, 18)
def test_predicted_done_proven(sandbox: Sandbox, major: int) -> None:
    server = sandbox.primary(major, archive=False)
    repository = sandbox.directory("repository")
    planned = archiving(server, sandbox, check=True, diff=True)
    assert (planned["changed"], planned["restart_required"], planned["proven"]) == (True, True, False), planned
    assert list(repository.iterdir()) == []
    done = archiving(server, sandbox, diff=True)
    for same in ("changed", "diff", "method", "archive_command", "restore_command", "pending_restart"):
        assert done[same] == planned[same]
    assert [part["after_header"].rpartition("/")[2] for part in done["diff"]] == [
        "main", "scripts", "wal", "pgfleet_wal.py", "parameters",
    ]  # fmt: skip
    assert "Restart the server." in done["msg"]
    for again in (archiving(server, sandbox), archiving(server, sandbox, check=True)):
        assert (again["changed"], again["diff"], again["restart_required"]) == (False, [], True)

    late = archiving(server, sandbox, restart="done", timeout="1 s")
    assert (late["code"], late["failed"]) == ("restart_pending", True)
    server.restart()
    proven = archiving(server, sandbox, restart="done")
    assert (proven["proven"], proven["changed"], proven["restart_required"]) == (True, True, False), proven
    # PostgreSQL 14 sends its statistics to a process of their own; what the archiver did can be seen a moment later.
    wait_until(lambda: server.value("SELECT last_archived_wal FROM pg_stat_archiver"), "the archiver's statistics")
    second = archiving(server, sandbox)
    assert (second["proven"], second["changed"], second["segment"]) == (True, False, proven["segment"])
    foretold = archiving(server, sandbox, check=True)
    assert (foretold["changed"], foretold["proven"]) == (False, False)


def test_what_prevents_it(sandbox: Sandbox) -> None:
    """In check mode a result, else a failure, and nothing is changed."""
    server = sandbox.primary(archive=False, archive_mode=True)
    sandbox.directory("repository")
    options = {"directory": str(server.data / "wal"), "method": "basic_archive", "compression": "gzip"}
    planned = archiving(server, sandbox, check=True, **options)
    failed = archiving(server, sandbox, **options)
    codes = ["archive_inside_cluster", "no_compression"]
    assert [one["code"] for one in planned["problems"]] == [one["code"] for one in failed["problems"]] == codes
    assert (planned["changed"], failed["failed"], failed["code"]) == (False, True, codes[0])
    assert archiving(server, sandbox, directory="wal")["code"] == "bad_path"
    assert not (sandbox.root / "repository" / "main").exists()


def test_a_command_that_does_not_fetch(sandbox: Sandbox) -> None:
    server = sandbox.primary()
    sandbox.directory("repository")
    broken = archiving(server, sandbox, restore_command="cp /nonexistent/%f %p")
    assert (broken["code"], broken["failed"]) == ("not_fetched_back", True)
    assert "archive_command of this server" in broken["msg"]
    assert archiving(server, sandbox, restore_command=f"cp {server.archive}/%f %p")["proven"]
