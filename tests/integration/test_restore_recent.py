# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A target of a moment ago: its WAL is not archived yet, only the server has it."""

from __future__ import annotations

import pytest

from tests.harness.sandbox import Sandbox
from tests.harness.servers import wait_until
from tests.integration.helpers_restore import Source


@pytest.mark.majors(15, 18)
def test_a_table_dropped_a_moment_ago(sandbox: Sandbox, major: int) -> None:
    """The plan sees it while the server runs; after a crash the restore has saved it, used it, and reaches it."""
    source = Source(sandbox, major)
    server = source.server
    source.backup()
    server.sql("CREATE TABLE precious AS SELECT 1 AS i")
    moment = str(server.value("SELECT clock_timestamp()"))
    server.sql("DROP TABLE precious")
    in_place = {"data_directory": str(server.data), "delta": True, "recovery_target_time": moment, "sync": False}
    modules = source.modules()
    plan = modules.ok("backup_restore", check=True, **in_place)
    assert [one["code"] for one in plan["plan"]["refusals"]] == ["server_running"], plan
    beyond = modules.ok("backup_restore", check=True, **{**in_place, "recovery_target_time": "2100-01-01 00:00:00Z"})
    assert {one["code"] for one in beyond["plan"]["refusals"]} == {"target_beyond_archive", "server_running"}, beyond

    # The archiver has no chance to finish what a clean shutdown would have given it.
    server.break_archive()
    server.kill()
    result = modules.ok("backup_restore", **in_place)
    assert result["plan"]["used_wal"], result
    server.start()
    server.break_archive(broken=False)
    wait_until(lambda: not server.in_recovery, f"recovered: {server.log[-2000:]}")
    assert server.sql("SELECT i FROM precious") == [(1,)]
