# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Self-contained backups: the WAL is in the backup, no archive is needed, and no replication slot remains."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import signal
import typing as t
from unittest import mock

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import include_wal as _include

from tests.harness import binaries
from tests.harness.checks import amcheck, data_checksum, restore
from tests.harness.modules import Modules
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import me, run
from tests.integration.helpers.files import is_private
from tests.integration.helpers.leftovers import all_is_well
from tests.integration.helpers.load import load, pgbench_adds_up
from tests.integration.helpers.plays import RoleHosts, message, reached, told
from tests.integration.helpers.steps import Predictor, Steps

SMALL_SEGMENTS: t.Final = ["--wal-segsize=1"]


def modules_of(server: Server, repository: pathlib.Path, **common: t.Any) -> Modules:
    return Modules(server, repository=str(repository), cluster="main", **{"wal": "include", **common})


def slots(server: Server) -> list[str]:
    return [name for (name,) in server.sql("SELECT slot_name FROM pg_replication_slots")]


def no_slot_is_left(*servers: Server) -> None:
    for server in servers:
        no_slot(server)


def no_slot(server: Server) -> None:
    wait_until(lambda: not slots(server), f"{server.name} has no slot", timeout=10)


def much_wal(server: Server, segments: int = 4) -> None:
    """Fill segments, and let checkpoints remove all that no slot retains."""
    for _segment in range(segments):
        server.switch_wal()
    server.sql("CHECKPOINT")
    server.sql("CHECKPOINT")


def wal_files(server: Server) -> set[str]:
    return {name for (name,) in server.sql("SELECT pg_ls_dir('pg_wal')") if len(name) == 24}


def is_self_contained(
    sandbox: Sandbox, backup: pathlib.Path, major: int, expect: t.Callable[[Server], object], name: str = "restored"
) -> None:
    """Require that PostgreSQL verifies the backup with its WAL, and recovers a copy of it without an archive."""
    run(
        [binaries.tool(major, "pg_verifybackup"), "--exit-on-error", backup / "data"],
        env=binaries.environment(major), user=me(), timeout=600,
    )  # fmt: skip
    server = restore(sandbox, backup, None, major, name=name)
    try:
        expect(server)
        amcheck(server)
    finally:
        server.stop("immediate")


def has_included(steps: Steps, wal: t.Sequence[str]) -> None:
    """Require that exactly these files are in the backup and its record, marked as archived."""
    content = steps.modules.ok("backup_info")["clusters"][0]["backups"][0]
    assert (content["wal"], content["wal_proven_by"]) == ("include", "included pg_wal")
    record = json.loads((steps.published / "backup.json").read_text())
    directory = steps.published / "data" / "pg_wal"
    assert sorted(path.name for path in directory.iterdir() if path.is_file()) == sorted(wal)
    assert sorted(path.name for path in (directory / "archive_status").iterdir()) == sorted(f"{n}.done" for n in wal)
    proof = record["wal_proof"]
    assert proof["archived"] == list(wal)
    for name in wal:
        assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == proof["sha256"][name]


@pytest.mark.majors(*binaries.MAJORS)
def test_primary_without_an_archive(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """``archive_mode=off``: refused with wal=archive, whole with its own WAL, though checkpoints remove much."""
    primary = sandbox.primary(major, archive=False, tablespaces=["extra"], initdb=SMALL_SEGMENTS, wal_keep_size=0)
    primary.pgbench_init()
    modules = modules_of(primary, repository)
    steps, predicts = Steps(modules, primary), Predictor(modules, "one")
    refused = steps.fails("backup_start", wal="archive")
    assert (refused["code"], "wal=include" in refused["msg"]) == ("archive_mode_off", True)
    assert modules.fails("backup_start", check=True, wal="archive")["code"] == "archive_mode_off"
    assert modules.ok("server_info")["problems"] == []
    assert predicts("backup_start", True, fast=True)["wal"] == "include"
    assert slots(primary) == []

    with load(primary):
        started = steps.start()
        assert (started["wal"], started["changed"]) == ("include", True)
        assert not steps.start()["changed"]
        assert slots(primary) == [steps.state["slot"]]
        much_wal(primary)
        steps.ok("backup_copy")
    much_wal(primary)
    assert started["start_wal_file"] in wal_files(primary)
    predicts("backup_stop", True)
    stopped = steps.ok("backup_stop")
    assert (stopped["wal"], stopped["required_wal"][0]) == ("include", started["start_wal_file"])
    assert len(stopped["required_wal"]) > 4
    no_slot_is_left(primary)
    assert not steps.ok("backup_stop")["changed"]
    predicts("backup_publish", True)
    assert steps.ok("backup_publish")["changed"]
    assert not steps.ok("backup_publish")["changed"]
    all_is_well(sandbox, repository, primary)
    is_private(steps.published)
    has_included(steps, stopped["required_wal"])
    is_self_contained(sandbox, steps.published, major, pgbench_adds_up)


def idle_standby(sandbox: Sandbox, major: int) -> tuple[Server, str]:
    """Return a standby whose primary was stopped, and the checksum of the primary's data."""
    primary = sandbox.primary(major, archive=False, tablespaces=["extra"])
    standby = sandbox.standby(primary)
    primary.pgbench_init()
    standby.catch_up()
    expected = data_checksum(primary)
    primary.kill()
    return standby, expected


def is_whole(sandbox: Sandbox, backup: pathlib.Path, major: int, expected: str) -> None:
    """Require `is_self_contained`, the primary's data, and a last segment that ends at the stop."""
    last = sorted((backup / "data" / "pg_wal").glob("0*"))[-1].read_bytes()
    assert (len(last), last[-8192:]) == (16 << 20, bytes(8192))

    def is_the_primary(server: Server) -> None:
        assert data_checksum(server) == expected
        server.sql("CREATE TABLE writable ()")

    is_self_contained(sandbox, backup, major, is_the_primary)


@pytest.mark.majors(*binaries.MAJORS)
def test_idle_standby_without_an_archive(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """No archive, no switch, no primary: that was stopped before the start."""
    standby, expected = idle_standby(sandbox, major)
    steps = Steps(modules_of(standby, repository), standby)
    assert steps.modules.ok("server_info")["ready"]
    steps.start()
    assert slots(standby) == [steps.state["slot"]]
    steps.ok("backup_copy")
    stopped = steps.ok("backup_stop")
    steps.ok("backup_publish")
    no_slot_is_left(standby)
    has_included(steps, stopped["required_wal"])
    all_is_well(sandbox, repository, standby)
    is_whole(sandbox, steps.published, major, expected)


def test_role_on_an_idle_standby(sandbox: Sandbox, major: int) -> None:
    """The role does not search for a primary, waits for nothing, and changes nothing the second time."""
    standby, expected = idle_standby(sandbox, major)
    fleet = RoleHosts(sandbox)
    host = {"db": fleet.host(standby, wal="include", cluster="main")}
    planned = fleet.run(host, check=True).ok()
    assert "included in the backup" in told(planned, "db")
    assert not fleet.published("main")
    play = fleet.run(host).ok()
    assert not any("primary |" in task or "wait |" in task for task in reached(play, "db"))
    assert "holds the WAL" in told(play, "db")
    published = fleet.one("main")
    no_slot_is_left(standby)
    assert not any(event["changed"] for event in fleet.run(host).ok().of("db"))
    all_is_well(sandbox, fleet.repository, standby)
    is_whole(sandbox, published, major, expected)


@pytest.mark.majors(15, 18)
def test_standby_whose_upstream_is_promoted(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """Two timelines: the WAL of both and the history come from the standby's own ``pg_wal``."""
    primary = sandbox.primary(major, archive=False, initdb=SMALL_SEGMENTS)
    middle = sandbox.standby(primary, name="middle")
    standby = sandbox.standby(middle)
    steps = Steps(modules_of(standby, repository), standby)
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
    standby.upstream = primary
    standby.catch_up()
    steps.start()
    steps.ok("backup_copy")
    much_wal(primary)
    standby.catch_up()
    primary.stop()
    middle.promote()
    middle.sql("INSERT INTO t SELECT generate_series(1001, 2000)")
    middle.sql("CHECKPOINT")
    wait_until(lambda: standby.value("SELECT received_tli FROM pg_stat_wal_receiver") == 2, "the standby follows")
    standby.upstream = middle
    standby.catch_up()
    for _twice in range(2):
        standby.sql("CHECKPOINT")
    stopped = steps.ok("backup_stop")
    assert (stopped["start_timeline"], stopped["stop_timeline"]) == (1, 2)
    assert "00000002.history" in stopped["required_wal"]
    steps.ok("backup_publish")
    no_slot_is_left(standby)
    older, newer = stopped["wal_ranges"][1], stopped["wal_ranges"][0]
    assert older["end"] == newer["start"]
    first = next(name for name in stopped["required_wal"] if name.startswith("00000002"))
    # The older timeline's end: a restore does not need it, but pg_verifybackup checks it.
    has_included(steps, [*stopped["required_wal"], "00000001" + first[8:]])
    expected = data_checksum(middle)
    all_is_well(sandbox, repository, standby)

    def is_the_new_primary(server: Server) -> None:
        assert data_checksum(server) == expected

    is_self_contained(sandbox, steps.published, major, is_the_new_primary)


@pytest.mark.majors(15, 18)
def test_killed_in_the_middle_of_including(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """The session retains the WAL until a later call has finished; WAL already included is not copied again."""
    primary = sandbox.primary(major, archive=False, initdb=SMALL_SEGMENTS)
    modules = modules_of(primary, repository)
    steps = Steps(modules, primary)
    steps.start()
    much_wal(primary)
    steps.ok("backup_copy")
    included = steps.work / "data" / "pg_wal"
    for count in (1, 3):
        _stop_until_killed(steps, functools.partial(_has_segments, included, count))
        assert _segments(included) >= count
        assert (steps.state["state"], slots(primary)) == ("stopped", [steps.state["slot"]])
        much_wal(primary)
    inodes = {path.name: path.stat().st_ino for path in included.iterdir() if path.name.endswith(("2", "3"))}
    assert modules.ok("backup_info")["clusters"][0]["unfinished"][0]["session_alive"]
    # As the role continues a run whose controller died: with the handle of that run.
    resumed = modules.ok("backup_start", resume=True, takeover_after=1, concurrent="skip")
    assert (resumed["backup_id"], resumed["state"], resumed["wal"]) == ("one", "stopping", "include")
    stopped = steps.ok("backup_stop")
    assert stopped["changed"]
    assert {name: (included / name).stat().st_ino for name in inodes} == inodes
    assert "holds the WAL" in steps.ok("backup_publish")["msg"]
    has_included(steps, stopped["required_wal"])
    no_slot_is_left(primary)
    all_is_well(sandbox, repository, primary)
    is_self_contained(sandbox, steps.published, major, lambda server: server.value("SELECT 1"))


def _segments(directory: pathlib.Path) -> int:
    return len([name for name in os.listdir(directory) if len(name) == 24])


def _has_segments(directory: pathlib.Path, count: int) -> bool:
    return _segments(directory) >= count


def _stop_until_killed(steps: Steps, done: t.Callable[[], bool]) -> None:
    """Run backup_stop in its own process and kill it at the first piece of a copy after ``done``."""
    pieces = _include.Inclusion._pieces

    def pieces_or_death(*arguments: t.Any) -> t.Iterator[bytes]:
        for piece in pieces(*arguments):
            yield piece
            if done():
                os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            with mock.patch.object(_include.Inclusion, "_pieces", pieces_or_death):
                steps.run("backup_stop")
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


@pytest.mark.majors(15, 18)
def test_the_server_gives_the_wal_up(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """More WAL than ``max_slot_wal_keep_size``: void with a reason, during the copy and when only WAL is missing."""
    primary = sandbox.primary(
        major, archive=False, initdb=SMALL_SEGMENTS, max_slot_wal_keep_size="2MB", min_wal_size="2MB"
    )
    modules = modules_of(primary, repository)
    steps = Steps(modules, primary)
    steps.start()
    much_wal(primary, 6)
    wait_until(lambda: steps.state["state"] == "failed", "the session has ended")
    for name in ("backup_copy", "backup_stop"):
        told_why = steps.fails(name)
        assert (told_why["code"], "max_slot_wal_keep_size" in told_why["msg"]) == ("connection_lost_with_slot", True)
    no_slot_is_left(primary)
    steps.void()

    steps = Steps(modules, primary, "two")
    steps.start()
    steps.ok("backup_copy")
    # Stopped; the module dies before it has copied anything.
    _stop_until_killed(steps, lambda: True)
    much_wal(primary, 6)
    wait_until(lambda: steps.keeper not in _pids(), "the session has ended")
    removed = steps.fails("backup_stop")
    assert (removed["code"], "max_slot_wal_keep_size" in removed["msg"]) == ("wal_removed", True)
    assert steps.fails("backup_stop")["code"] == "void"
    no_slot_is_left(primary)
    assert not list((steps.work / "data" / "pg_wal").glob("0*"))
    steps.void()
    all_is_well(sandbox, repository, primary)


def _pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


@pytest.mark.majors(15, 18)
def test_the_session_ends_but_the_wal_is_there(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """Stopped is stopped: WAL still in ``pg_wal`` is usable, whatever retained it."""
    primary = sandbox.primary(major, archive=False)
    steps = Steps(modules_of(primary, repository), primary)
    steps.start()
    steps.ok("backup_copy")
    _stop_until_killed(steps, lambda: True)
    os.kill(steps.keeper, signal.SIGKILL)
    no_slot_is_left(primary)
    stopped = steps.ok("backup_stop")
    steps.ok("backup_publish")
    has_included(steps, stopped["required_wal"])
    all_is_well(sandbox, repository, primary)
    is_self_contained(sandbox, steps.published, major, lambda server: server.value("SELECT 1"))


@pytest.mark.majors(14, 15, 18)
def test_missing_prerequisites(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """No REPLICATION, no free slot, on 18 a short limit for idle slots: reported with a hint, nothing starts."""
    primary = sandbox.primary(major, archive=False, max_replication_slots=1)
    start, stop = (
        ("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)") if major >= 15 else
        ("pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)")
    )  # fmt: skip
    primary.sql("CREATE ROLE backup LOGIN")
    primary.sql(f"GRANT EXECUTE ON FUNCTION {start}, {stop} TO backup")
    primary.sql("GRANT pg_read_all_settings TO backup")
    modules = modules_of(primary, repository, login_user="backup")
    steps = Steps(modules, primary)

    def refused(code: str, cure: str) -> None:
        (problem,) = modules.ok("server_info")["problems"]
        assert problem["code"] == code
        assert cure in problem["hint"]
        for check in (False, True):
            assert modules.fails("backup_start", check=check)["code"] == code
        assert not (repository / "main").exists()

    refused("no_privilege_replication", "ALTER ROLE backup REPLICATION;")
    assert modules.ok("server_info", wal="none")["problems"] == []
    primary.sql("ALTER ROLE backup REPLICATION")
    primary.sql("SELECT pg_create_physical_replication_slot('somebody')")
    refused("no_free_slot", "max_replication_slots = 2")
    primary.sql("SELECT pg_drop_replication_slot('somebody')")
    if major >= 18:
        primary.conf(idle_replication_slot_timeout="1h").reload()
        wait_until(lambda: not modules.ok("server_info")["ready"], "the setting is read")
        refused("idle_replication_slot_timeout", "= 0")
        primary.conf(idle_replication_slot_timeout="0").reload()
        wait_until(lambda: modules.ok("server_info")["ready"], "the setting is read")
    # Exactly these privileges are enough; abort drops the slot, even if only publishing remains.
    steps.start()
    steps.ok("backup_copy")
    _stop_until_killed(steps, lambda: True)
    steps.ok("backup_abort")
    no_slot_is_left(primary)
    steps.start()
    assert steps.ok("backup_abort")["changed"]
    no_slot_is_left(primary)
    all_is_well(sandbox, repository, primary)


@pytest.mark.majors(15, 18)
def test_a_changed_mind(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """A backup begun with another wal mode is not continued; it is removed when the new one has started."""
    primary = sandbox.primary(major)
    modules = modules_of(primary, repository)
    old = Steps(modules, primary)
    primary.break_archive()
    old.start(wal="archive")
    old.ok("backup_copy")
    assert old.ok("backup_stop")["wal"] == "archive"
    assert old.fails("backup_publish")["code"] == "wal_not_proven"
    resume = {"resume": True, "takeover_after": 1, "concurrent": "skip", "fast": True}
    started = modules.ok("backup_start", **resume)
    assert (started["wal"], started["backup_id"] != "one", started["resumed"]) == ("include", True, False)
    assert not old.work.exists()
    new = Steps(modules, primary, started["backup_id"])
    new.ok("backup_copy")
    new.ok("backup_stop")
    new.ok("backup_publish")
    no_slot_is_left(primary)
    all_is_well(sandbox, repository, primary)


def test_role_without_proof(sandbox: Sandbox, major: int) -> None:
    """``none`` waits for nothing and reports that everywhere; a missing archive is refused before the start."""
    primary = sandbox.primary(major, archive=False)
    fleet = RoleHosts(sandbox)
    refused = fleet.run({"db": fleet.host(primary)})
    assert "archive_mode is off" in message(refused, "db")
    assert fleet.unfinished("db") == []
    play = fleet.run({"db": fleet.host(primary, wal="none")}).ok()
    assert told(play, "db").count("nothing ensures") >= 2
    assert not any("wait |" in task for task in reached(play, "db"))
    backup = fleet.one("db")
    entry = Modules(primary, repository=str(fleet.repository)).ok("backup_info")["clusters"][0]["backups"][0]
    assert (entry["wal"], entry["wal_proven_by"], entry["state"]) == ("none", "none", "published")
    assert _segments(backup / "data" / "pg_wal") == 0
    all_is_well(sandbox, fleet.repository, primary)
