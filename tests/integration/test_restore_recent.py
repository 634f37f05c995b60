# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When the archive is not complete yet: a target a moment ago, a timeline that has just begun."""

from __future__ import annotations

import pytest

from tests.harness.sandbox import Sandbox
from tests.harness.servers import wait_until
from tests.integration.helpers.source import Source


@pytest.mark.majors(15, 18)
def test_a_table_dropped_a_moment_ago(sandbox: Sandbox, major: int) -> None:
    """The plan sees the target while the server runs; after a crash the restore saves the WAL and reaches it."""
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

    # The archiver cannot finish the segments that a clean shutdown would archive.
    server.break_archive()
    server.kill()
    result = modules.ok("backup_restore", **in_place)
    assert result["plan"]["used_wal"], result
    server.start()
    server.break_archive(broken=False)
    wait_until(lambda: not server.in_recovery, f"recovered: {server.log[-2000:]}")
    assert server.sql("SELECT i FROM precious") == [(1,)]


@pytest.mark.majors(15, 18)
def test_a_timeline_without_its_first_segment(sandbox: Sandbox, major: int) -> None:
    """PostgreSQL would replay the abandoned WAL with its DROP TABLE; the restore refuses, with a hint."""
    source = Source(sandbox, major)
    server = source.server
    source.backup()
    server.sql("CREATE TABLE precious AS SELECT 1 AS i")
    server.sql("SELECT pg_create_restore_point('before')")
    server.sql("DROP TABLE precious")
    source.archived()
    new = source.place("new")
    source.run(new, restore_as="primary", recovery_target_name="before")
    server.stop()
    source.started(new)
    wait_until(lambda: list(source.archive.glob("00000002.history")), "the history is archived")
    new.kill()
    left, size = new.data / "pg_wal", 1 << 20
    assert not list(source.archive.glob("00000002" + "0" * 8 + "*"))

    again = source.place("again")
    refused = source.refused(again, "wal_incomplete")
    (missing,) = refused["missing"]
    assert missing.startswith("00000002")
    assert "recovery_target_timeline=1, recovery_target_lsn=" in refused["msg"]
    # Following the hint works, and so does the archive once it has the segment.
    lsn = refused["msg"].partition("recovery_target_lsn=")[2].partition(",")[0]
    fork = {"recovery_target_timeline": "1", "recovery_target_lsn": lsn, "recovery_target_inclusive": False}
    source.run(again, **fork)
    assert source.started(again).sql("SELECT i FROM precious") == [(1,)]
    segment = source.archive / missing
    segment.write_bytes((left / missing).read_bytes())
    assert segment.stat().st_size == size
    last = source.place("last")
    source.run(last)
    assert source.started(last).sql("SELECT i FROM precious") == [(1,)]
