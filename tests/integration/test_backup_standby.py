# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup of a standby: the switch on the primary, whose archiver counts, cascades, pg_control's place."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.control import read_control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import format_lsn, parse_lsn

from tests.harness import binaries
from tests.harness.checks import amcheck, data_checksum, restore, restore_and_check
from tests.harness.modules import Modules
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import me, run
from tests.integration.helpers.files import control_came_last, copy_data_directory, files_and_directories, is_private
from tests.integration.helpers.leftovers import all_is_well
from tests.integration.helpers.load import load, pgbench_adds_up
from tests.integration.helpers.steps import Predictor, Steps

CONTROL = pathlib.Path("global", "pg_control")


def advance(primary: Server, *standbys: Server) -> None:
    """Make primary and standbys do a checkpoint and a restartpoint in a WAL segment that has just begun."""
    primary.switch_wal()
    primary.sql("CHECKPOINT")
    for standby in standbys:
        standby.catch_up()
        standby.sql("CHECKPOINT")


def modules_of(server: Server, repository: pathlib.Path, **login: t.Any) -> Modules:
    """Return the modules with the login of ``server``, for the backups of the cluster ``main``."""
    return Modules(server, repository=str(repository), cluster="main", **login)


def insert_lsn(primary: Server) -> str:
    return str(primary.value("SELECT pg_current_wal_insert_lsn()::text"))


@pytest.mark.majors(*binaries.MAJORS)
def test_backup_of_a_standby(
    sandbox: Sandbox,
    primary: Server,
    standby: Server,
    repository: pathlib.Path,
    standby_modules: Modules,
    major: int,
) -> None:
    """The primary writes during the copy and is idle at the end, so its last segment waits for the switch."""
    primary.pgbench_init()
    standby.catch_up()
    on_primary = Modules(primary, tcp=True)
    steps, predicts = Steps(standby_modules, standby), Predictor(standby_modules, "one")
    looked = standby_modules.ok("server_info", find_primary=True)
    assert (looked["ready"], looked["problems"], looked["role"]) == (True, [], "standby"), looked
    assert predicts("backup_start", True, fast=True)["from_standby"]

    with load(primary):
        started = steps.start()
        assert started["from_standby"]
        steps.ok("backup_copy")
    # Its stop is then in a segment that the primary has not finished.
    advance(primary, standby)
    stopped = steps.ok("backup_stop")
    assert (stopped["from_standby"], stopped["required_wal"][0]) == (True, started["start_wal_file"])
    controls = [
        read_control(os.fsencode(path / "global" / "pg_control")) for path in (steps.work / "data", standby.data)
    ]
    ends = [format_lsn(control.min_recovery_point) for control in controls]
    assert ends[1] == standby.value("SELECT min_recovery_end_lsn::text FROM pg_control_recovery()")
    assert 0 < controls[0].min_recovery_point <= parse_lsn(stopped["stop_lsn"]), ends
    last = stopped["required_wal"][-1]
    assert last == primary.value("SELECT pg_walfile_name(pg_current_wal_lsn())"), "not the current segment"

    question = {"required_wal": stopped["required_wal"], "system_identifier": stopped["system_identifier"]}
    late = on_primary.fails("wal_archived", **question, timeout=1, interval=0.1)
    assert (late["code"], late["missing"]) == ("wal_not_archived", [last])
    assert last in late["msg"]
    assert late["archiver"]["last_archived_wal"] in late["msg"]
    refused = standby_modules.fails("wal_archived", **question, timeout=1)
    assert (refused["code"], "archive_mode=on" in refused["msg"]) == ("not_the_archiver", True)
    partial = {"archived": stopped["required_wal"][:-1], "method": "server", "source": "db", "proven_at": 1.0}
    unproven = steps.fails("backup_publish", proof={**partial, **question})
    assert (unproven["code"], unproven["missing"]) == ("wal_not_proven", [last])

    switch = {"lsn": stopped["stop_lsn"], "system_identifier": stopped["system_identifier"]}
    assert standby_modules.fails("wal_switch", **switch)["code"] == "not_primary"
    before = insert_lsn(primary)
    assert on_primary.fails("wal_switch", lsn=switch["lsn"], system_identifier="1")["code"] == "other_cluster"
    assert on_primary.ok("wal_switch", check=True, **switch)["changed"]
    assert insert_lsn(primary) == before
    switched = on_primary.ok("wal_switch", **switch)
    assert (switched["changed"], switched["segment"]) == (True, last)
    after = insert_lsn(primary)
    assert after != before
    for check in (False, True):
        assert not on_primary.ok("wal_switch", check=check, **switch)["changed"]
    assert insert_lsn(primary) == after
    proof = on_primary.ok("wal_archived", **question, timeout=30, interval=0.05)["proof"]
    predicts("backup_publish", True, proof=proof)
    steps.ok("backup_publish", proof=proof)

    is_private(steps.published)
    control_came_last(steps.published / "data")
    all_is_well(sandbox, repository, primary, standby)
    expected = data_checksum(primary)

    def is_the_primary(server: Server) -> None:
        assert data_checksum(server) == expected
        server.sql("CREATE TABLE writable ()")

    restore_and_check(sandbox, steps.published, primary.archive, major, is_the_primary)


@pytest.mark.majors(15, 18)
def test_same_files_as_pg_basebackup(
    sandbox: Sandbox, primary: Server, standby: Server, repository: pathlib.Path, standby_modules: Modules
) -> None:
    """On a standby too both backups have the same files and directories, including ``standby.signal``."""
    steps = Steps(standby_modules, standby)
    steps.start()
    steps.finish(modules_of(primary, repository))
    theirs = sandbox.directory("theirs")
    location = standby.value("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'extra'")
    standby.tool("pg_basebackup", "-D", theirs / "data", "-c", "fast", "-X", "none", "--no-sync",
                 "-T", f"{location}={theirs}/extra")  # fmt: skip
    ours, reference = (files_and_directories(root / "data") for root in (steps.published, theirs))
    assert "standby.signal" in ours[0]
    assert set(ours[0]) - {"tablespace_map"} == set(reference[0])
    assert ours[1] == reference[1]
    all_is_well(sandbox, repository, primary, standby)


@pytest.mark.majors(15, 18)
def test_standby_that_archives(sandbox: Sandbox, primary: Server, repository: pathlib.Path, major: int) -> None:
    """With ``archive_mode=always`` the standby's own archiver counts; the primary must still switch."""
    standby = sandbox.standby(primary, archive_mode="always")
    modules = modules_of(standby, repository)
    steps = Steps(modules, standby)
    advance(primary, standby)
    steps.start()
    steps.ok("backup_copy")
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
    advance(primary, standby)
    stopped = steps.ok("backup_stop")
    question = {"required_wal": stopped["required_wal"], "system_identifier": stopped["system_identifier"]}
    late = modules.fails("wal_archived", **question, timeout=1, interval=0.1)
    assert late["missing"] == stopped["required_wal"][-1:]
    modules_of(primary, repository).ok("wal_switch", lsn=stopped["stop_lsn"])
    steps.ok("backup_publish", proof=steps.archived(stopped))
    all_is_well(sandbox, repository, primary, standby)
    assert standby.archive is not None
    assert all((standby.archive / name).exists() for name in stopped["required_wal"])
    restore_and_check(
        sandbox, steps.published, standby.archive, major,
        lambda server: server.value("SELECT count(*) FROM t") == 1000 or pytest.fail("rows are missing"),
    )  # fmt: skip


@pytest.mark.majors(15, 18)
def test_stop_on_a_segment_boundary(
    sandbox: Sandbox, primary: Server, standby: Server, repository: pathlib.Path, standby_modules: Modules
) -> None:
    """A stop LSN at the first byte of a segment needs only the previous one, which is already finished."""
    steps = Steps(standby_modules, standby)
    steps.start()
    steps.ok("backup_copy")
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
    primary.sql("CHECKPOINT")
    primary.sql("UPDATE t SET i = -i")
    finished = primary.value("SELECT pg_walfile_name(pg_switch_wal())")
    standby.catch_up()
    standby.sql("CHECKPOINT")
    stopped = steps.ok("backup_stop")
    assert re.fullmatch("[0-9A-F]+/[0-9A-F]{1,2}000000", stopped["stop_lsn"]), "not a boundary: the test shows nothing"
    assert stopped["required_wal"][-1] == finished
    assert not modules_of(primary, repository).ok("wal_switch", lsn=stopped["stop_lsn"])["changed"]
    steps.ok("backup_publish", proof=Steps(modules_of(primary, repository), primary).archived(stopped))
    all_is_well(sandbox, repository, primary, standby)

    def is_whole(server: Server) -> None:
        assert server.sql("SELECT count(*), min(i) FROM t") == [(1000, -1000)]

    restore_and_check(sandbox, steps.published, primary.archive, primary.major, is_whole)


@pytest.mark.majors(15, 18)
def test_cascading_standby(
    sandbox: Sandbox, primary: Server, standby: Server, repository: pathlib.Path, major: int
) -> None:
    """The upstream standby leads to the primary, which switches the WAL."""
    cascade = sandbox.standby(standby, name="cascade")
    modules = modules_of(cascade, repository, tcp=True)
    looked = modules.ok("server_info", find_primary=True)
    assert looked["standby"]["upstream_port"] == standby.port
    found = looked["primary"]
    assert (found["role"], found["login_host"], found["login_port"]) == ("primary", "127.0.0.1", primary.port)
    assert found["problems"] == []
    assert primary.password not in str(looked)

    steps = Steps(modules, cascade)
    primary.pgbench_init()
    cascade.catch_up()
    steps.start()
    upwards = {name: found[name] for name in ("login_host", "login_port")}
    steps.finish(modules_of(primary, repository, tcp=True, **upwards))
    all_is_well(sandbox, repository, primary, standby, cascade)
    restore_and_check(sandbox, steps.published, primary.archive, major, pgbench_adds_up)


@pytest.mark.majors(15, 18)
def test_upstream_promoted_during_the_backup(
    sandbox: Sandbox, primary: Server, standby: Server, repository: pathlib.Path, major: int
) -> None:
    """The backup crosses to a new timeline: a WAL range each, the history file, a restore to the latest."""
    cascade = sandbox.standby(standby, name="cascade")
    modules = modules_of(cascade, repository)
    steps = Steps(modules, cascade)
    advance(primary, standby, cascade)
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
    cascade.catch_up()
    steps.start()
    steps.ok("backup_copy")
    # The old primary archives the segments it has finished; after a crash no server would.
    primary.switch_wal()
    standby.catch_up()
    primary.stop()
    standby.promote()
    assert Modules(standby).ok("server_info", purpose="wal_switch")["timeline"] == 2
    standby.sql("INSERT INTO t SELECT generate_series(1001, 2000)")
    standby.sql("CHECKPOINT")
    wait_until(lambda: cascade.value("SELECT received_tli FROM pg_stat_wal_receiver") == 2, "the cascade follows")
    cascade.catch_up()
    cascade.sql("CHECKPOINT")
    stopped = steps.ok("backup_stop")

    assert (stopped["start_timeline"], stopped["stop_timeline"]) == (1, 2)
    newer, older = stopped["wal_ranges"]
    assert (newer["timeline"], older["timeline"], newer["start"]) == (2, 1, older["end"])
    assert (older["start"], newer["end"]) == (stopped["start_lsn"], stopped["stop_lsn"])
    assert stopped["required_wal"][-1] == "00000002.history"
    segments = stopped["required_wal"][:-1]
    assert {name[:8] for name in segments} == {"00000001", "00000002"}
    assert len({name[8:] for name in segments}) == len(segments)
    on_new_primary = Modules(standby)
    assert on_new_primary.ok("wal_switch", lsn=stopped["stop_lsn"])["changed"]
    question = {"required_wal": stopped["required_wal"], "system_identifier": stopped["system_identifier"]}
    # It streamed the older segments, so only the archive shows whether they are archived.
    assert on_new_primary.fails("wal_archived", **question, timeout=1)["code"] == "older_timeline"
    proof = modules.ok(
        "wal_archived", **question, archive_directory=str(primary.archive), timeout=30, interval=0.05
    )["proof"]  # fmt: skip
    steps.ok("backup_publish", proof=proof)
    all_is_well(sandbox, repository, standby, cascade)
    expected = data_checksum(standby)

    def is_the_new_primary(server: Server) -> None:
        assert server.value("SELECT timeline_id FROM pg_control_checkpoint()") >= 2
        assert server.value("SELECT count(*) FROM t") == 2000
        assert data_checksum(server) == expected

    restore_and_check(sandbox, steps.published, primary.archive, major, is_the_new_primary, verify_wal=False)


@pytest.mark.majors(15, 18)
def test_control_file_is_copied_last(
    sandbox: Sandbox, primary: Server, standby: Server, repository: pathlib.Path, standby_modules: Modules, major: int
) -> None:
    """A restartpoint during the copy: the copied pg_control covers the pages that it wrote."""
    steps = Steps(standby_modules, standby)
    steps.start()
    with steps.copying(700 << 20) as copy, steps.stopped_processes():
        assert not (steps.work / "data" / CONTROL).exists(), "pg_control was copied before other files"
        primary.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) i")
        advance(primary, standby)
        covered = standby.value("SELECT min_recovery_end_lsn FROM pg_control_recovery()")
    assert not copy.result().get("failed")
    control = standby.tool("pg_controldata", "-D", steps.work / "data", user=me()).stdout
    (copied,) = re.findall(r"Minimum recovery ending location: +(\S+)", control)
    assert standby.value("SELECT %s::pg_lsn >= %s::pg_lsn", [copied, covered]), (copied, covered)
    assert steps.ok("backup_abort")["changed"]
    all_is_well(sandbox, repository, primary, standby)


def test_control_file_copied_first_restores_to_corruption(
    sandbox: Sandbox, primary: Server, standby: Server, repository: pathlib.Path, standby_modules: Modules, major: int
) -> None:
    """Why the order matters: with an older pg_control recovery ends too early, and pages are newer than that.

    The test copies by hand to set the order: pg_control and all other files first, one table last.
    """
    primary.sql("CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 100) i")
    primary.sql("CREATE INDEX ON t (i)")
    advance(primary, standby)
    steps = Steps(standby_modules, standby)
    steps.start()
    copy_data_directory(standby, steps.work)
    first = shutil.copy(steps.work / "data" / CONTROL, sandbox.root / "pg_control")
    table = standby.value("SELECT pg_relation_filepath('t')")
    for i in range(20):
        primary.sql("INSERT INTO t SELECT i, md5(i::text) FROM generate_series(%s, %s) i", [i * 1000, i * 1000 + 999])
    advance(primary, standby)
    run(["cp", standby.data / table, steps.work / "data" / table], user=me())
    steps.ok("backup_stop")
    steps.finish(modules_of(primary, repository))
    restore_and_check(
        sandbox, steps.published, primary.archive, major, lambda server: server.sql("SELECT sum(i) FROM t"),
        target="immediate",
    )  # fmt: skip

    wrong = restore(sandbox, steps.published, primary.archive, major, name="wrong", target="immediate", start=False)
    run(["cp", first, wrong.data / CONTROL], user=me())
    wrong.start()
    wait_until(lambda: not wrong.in_recovery, "the wrong copy is out of recovery")
    with pytest.raises(AssertionError, match="pg_amcheck"):
        amcheck(wrong)
    wrong.stop("immediate")
    all_is_well(sandbox, repository, primary, standby)
