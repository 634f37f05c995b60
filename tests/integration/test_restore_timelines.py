# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restores across timelines, and of backups of standbys, on real servers."""

from __future__ import annotations

import pytest

from tests.harness.checks import amcheck
from tests.harness.modules import Modules
from tests.harness.sandbox import Sandbox, archive_command
from tests.harness.servers import wait_until
from tests.integration.helpers.source import Source, numbers
from tests.integration.helpers.steps import Steps

BOTH = pytest.mark.majors(15, 18)


@BOTH
def test_two_timelines(sandbox: Sandbox, major: int) -> None:
    """Restore to before a mistake, continue, back up, restore across the branch; the old timeline stays reachable."""
    source = Source(sandbox, major)
    old, archive = source.server, source.archive
    old.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    source.backup("one")
    xid = old.value("WITH new AS (INSERT INTO numbers VALUES (2)) SELECT pg_current_xact_id()::text")
    old.sql("INSERT INTO numbers VALUES (99)")
    source.backup("lost")
    source.archived()
    old.stop()
    new = source.place("new")
    command = {"archive_command": archive_command(archive)}
    result = source.restored(new, recovery_target_xid=xid, restore_as="primary", settings=command)
    assert result["backup_id"] == "one"
    source.started(new)
    assert numbers(new) == {1, 2}
    new.archive, source.server = archive, new
    new.sql("INSERT INTO numbers VALUES (3)")
    source.backup("two")
    lsn = new.value("SELECT pg_create_restore_point('later')::text")
    new.sql("INSERT INTO numbers VALUES (4)")
    source.archived()

    # From before the branch to after it; from after it; the newest backup in the timeline's past.
    for backup, target, expected in (
        ("one", {}, {1, 2, 3, 4}),
        ("one", {"recovery_target_lsn": lsn}, {1, 2, 3}),
        ("two", {}, {1, 2, 3, 4}),
        ("lost", {"recovery_target_timeline": "1"}, {1, 2, 99}),
        ("one", {"recovery_target_timeline": "current"}, {1, 2, 99}),
        (None, {"recovery_target_timeline": "1"}, {1, 2, 99}),
        (None, {}, {1, 2, 3, 4}),
    ):
        options = {"delta": True, "force": True, "backup_id": backup, **target}
        place = source.place()
        source.restored(place, **options)
        source.started(place)
        assert numbers(place) == expected, (options, place.log[-2000:])
        place.stop("immediate")
        sandbox.servers.remove(place)

    place = source.place("refused")
    source.refused(place, "timeline_unreachable", backup_id="lost")
    source.refused(place, "timeline_unreachable", backup_id="two", recovery_target_timeline="1")
    source.refused(place, "timeline_unknown", recovery_target_timeline="7")


@BOTH
def test_upstream_promoted_during_the_backup(sandbox: Sandbox, major: int) -> None:
    """A cascading standby's backup crosses to a new timeline and is restored on it."""
    source = Source(sandbox, major)
    primary = source.server
    # Once promoted, it also archives the WAL that it has as a standby.
    command = f"test -f {source.archive}/%f || cp %p {source.archive}/%f"
    middle = sandbox.standby(primary, name="middle", archive_command=command)
    cascade = sandbox.standby(middle, name="cascade")
    primary.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    cascade.upstream = primary
    cascade.catch_up()
    modules = source.modules(cascade, archive_directory=None)
    steps = Steps(modules, cascade)
    steps.start()
    steps.ok("backup_copy")
    primary.switch_wal()
    middle.catch_up()
    primary.stop()
    middle.promote()
    middle.sql("INSERT INTO numbers VALUES (2)")
    middle.sql("CHECKPOINT")
    wait_until(lambda: cascade.value("SELECT received_tli FROM pg_stat_wal_receiver") == 2, "the cascade follows")
    cascade.upstream = middle
    cascade.catch_up()
    cascade.sql("CHECKPOINT")
    stop = steps.ok("backup_stop")
    assert (stop["start_timeline"], stop["stop_timeline"]) == (1, 2)
    Modules(middle).ok("wal_switch", lsn=stop["stop_lsn"])
    question = {"required_wal": stop["required_wal"], "system_identifier": stop["system_identifier"]}
    looking = {"archive_directory": str(source.archive), "wal_segment_size": 1 << 20, "timeout": 30, "interval": 0.05}
    proof = modules.ok("wal_archived", **question, **looking)
    steps.ok("backup_publish", proof=proof["proof"])
    for server in (cascade, middle):
        server.stop()

    place = source.place()
    history = source.archive / "00000002.history"
    content = history.read_bytes()
    history.unlink()
    assert source.refused(place, "wal_incomplete")["missing"] == [history.name]
    history.write_bytes(content)
    source.refused(place, "timeline_unreachable", recovery_target_timeline="1")
    # The copy is consistent as soon as recovery reaches the control file's position, before the promotion.
    for target, found in (({}, {1, 2}), ({"recovery_target": "immediate"}, {1})):
        result = source.restored(place, delta=True, force=True, **target)
        assert history.name in result["plan"]["wal_needed"]
        copy = source.started(place)
        assert numbers(copy) == found
        amcheck(copy)
        assert not (copy.data / "standby.signal").exists()
        assert copy.value("SHOW primary_conninfo") == ""
        place.stop()


def test_new_standby(sandbox: Sandbox, major: int) -> None:
    """From a standby's backup: one that streams without a slot, and one that is fed from the archive only."""
    source = Source(sandbox, major)
    primary = source.server
    standby = sandbox.standby(primary)
    primary.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    standby.catch_up()
    source.backup(server=standby)
    source.archived()
    streaming, waiting = source.place("streaming"), source.place("waiting")
    source.refused(streaming, "no_standby", primary_conninfo="host=nowhere")
    conninfo = (
        f"host={primary.socket_directory} port={primary.port} user=postgres password='it''s' application_name=new"
    )
    common = {"restore_as": "standby", "settings": {"archive_mode": "off"}}
    source.restored(streaming, primary_conninfo=conninfo.replace("''", "\\'"), **common)
    source.restored(waiting, **common)
    for one in (streaming, waiting):
        assert (one.data / "standby.signal").exists()
        assert not (one.data / "recovery.signal").exists()
        sandbox.servers.append(one)
        one.start()
        one.upstream = primary
    wait_until(
        lambda: primary.sql("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND application_name = 'new'"),
        f"it streams: {streaming.log[-1000:]}",
    )
    assert streaming.value("SHOW primary_slot_name") == ""
    primary.sql("INSERT INTO numbers VALUES (2)")
    streaming.catch_up()
    assert numbers(streaming) == {1, 2}
    source.archived()
    wait_until(lambda: numbers(waiting) == {1, 2}, f"it replays the archive: {waiting.log[-1000:]}")
    assert waiting.in_recovery
    waiting.promote()
    amcheck(waiting)
