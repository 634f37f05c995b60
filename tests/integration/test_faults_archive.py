# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The WAL archive is missing or fails, before and during the backup."""

from __future__ import annotations

import os
import pathlib
import time
import typing as t

import pytest

from tests.harness.modules import Modules, Result
from tests.harness.sandbox import Sandbox, archive_command
from tests.harness.servers import Server, wait_until
from tests.harness.user import run
from tests.integration.helpers.leftovers import all_is_well
from tests.integration.helpers.steps import Steps, restores

BOTH: t.Final = pytest.mark.majors(15, 18)


@pytest.fixture
def steps(sandbox: Sandbox, modules: Modules, primary: Server, repository: pathlib.Path) -> t.Iterator[Steps]:
    """The steps of a backup of the primary; nothing of it may remain at the end."""
    yield Steps(modules, primary)
    all_is_well(sandbox, repository, primary)


def refused(steps: Steps, code: str, **arguments: t.Any) -> dict[str, str]:
    """Require that server_info reports ``code`` and start refuses for it; return the problem."""
    info = steps.modules.ok("server_info", **arguments)
    assert not info["ready"]
    problem: dict[str, str] = next(one for one in info["problems"] if one["code"] == code)
    result = steps.fails("backup_start", **arguments)
    assert problem in result["problems"]
    assert problem["msg"] in result["msg"]
    assert problem["hint"] in result["msg"]
    assert not os.listdir(steps.modules.common["repository"])
    return problem


def late(steps: Steps, stop: Result) -> Result:
    """Require that the wait for the WAL ends at its time limit and nothing is lost; return the answer."""
    begun = time.monotonic()
    result = steps.modules.fails(
        "wal_archived",
        required_wal=stop["required_wal"], system_identifier=stop["system_identifier"], timeout=1, interval=0.05,
    )  # fmt: skip
    assert 1 <= time.monotonic() - begun < 5
    assert result["code"] == "wal_not_archived"
    assert result["missing"] == stop["required_wal"]
    assert f"The WAL file {stop['required_wal'][0]} was not archived within 1 s" in result["msg"]
    proof = {"method": "server", "source": "db", "proven_at": begun, "archived": []}
    proof["system_identifier"] = stop["system_identifier"]
    assert steps.fails("backup_publish", proof=proof)["code"] == "wal_not_proven"
    (entry,) = steps.modules.ok("backup_info")["clusters"][0]["unfinished"]
    assert entry["state"] == "stopped"
    assert not steps.published.exists()
    return result


def goes_on(sandbox: Sandbox, steps: Steps, stop: Result) -> None:
    """Require that the same calls succeed once the archive works."""
    again = steps.ok("backup_stop")
    assert not again["changed"]
    assert again["required_wal"] == stop["required_wal"]
    steps.ok("backup_publish", proof=steps.archived(stop))
    restores(sandbox, steps, steps.server)


@BOTH
def test_minimal_wal(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """wal_level=minimal is refused, whatever archives the WAL."""
    primary = sandbox.primary(major, archive=False, wal_level="minimal", max_wal_senders=0)
    steps = Steps(Modules(primary, repository=str(repository), cluster="main"), primary)
    problem = refused(steps, "wal_level_minimal", external_archive=True)
    assert "ALTER SYSTEM SET wal_level = replica" in problem["hint"]
    all_is_well(sandbox, repository, primary)


@BOTH
def test_no_archive(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """archive_mode=off is refused, unless another program archives; then its archive is the proof."""
    primary = sandbox.primary(major, archive=False)
    steps = Steps(Modules(primary, repository=str(repository), cluster="main"), primary)
    problem = refused(steps, "archive_mode_off")
    assert "ALTER SYSTEM SET archive_mode = on" in problem["hint"]
    steps.start(external_archive=True)
    steps.ok("backup_copy")
    stop = steps.ok("backup_stop")
    archive = primary.archive = sandbox.directory("elsewhere")
    missing = steps.modules.fails(
        "wal_archived", required_wal=stop["required_wal"], system_identifier=stop["system_identifier"], timeout=1,
        archive_directory=str(archive), interval=0.05,
    )  # fmt: skip
    assert missing["missing"] == stop["required_wal"]
    for name in stop["required_wal"]:
        run(["cp", primary.data / "pg_wal" / name, archive])
    steps.ok("backup_publish", proof=steps.archived(stop, archive_directory=str(archive)))
    run(["cp", primary.data / "pg_wal" / primary.value("SELECT pg_walfile_name(pg_switch_wal())"), archive])
    restores(sandbox, steps, primary)
    all_is_well(sandbox, repository, primary)


@BOTH
def test_archive_fails_before_start(sandbox: Sandbox, steps: Steps, primary: Server) -> None:
    """An archiver whose last attempt failed prevents the start, reported with file and time."""
    primary.break_archive()
    primary.switch_wal()
    failing = "SELECT last_failed_wal, last_failed_time::text FROM pg_stat_archiver WHERE failed_count > 0"
    ((wal, when),) = wait_until(lambda: primary.sql(failing), "the archiver has failed")
    problem = refused(steps, "archiver_failing")
    assert f"fails: {wal} at {when[:16]}" in problem["msg"]
    primary.break_archive(False)
    wait_until(lambda: steps.modules.ok("server_info")["ready"], "the archiver works")
    steps.whole()


@BOTH
def test_archive_fails_after_start(sandbox: Sandbox, steps: Steps, primary: Server) -> None:
    """Stop returns at once with the label; the wait reports the missing files and the archiver's error."""
    steps.start()
    primary.break_archive()
    steps.ok("backup_copy")
    begun = time.monotonic()
    stop = steps.ok("backup_stop")
    assert time.monotonic() - begun < 3
    label = (steps.work / "data" / "backup_label").read_bytes()
    assert b"START WAL LOCATION" in label
    wait_until(lambda: primary.value("SELECT failed_count > 0 FROM pg_stat_archiver"), "the archiver has failed")
    result = late(steps, stop)
    report = result["archiver"]
    assert report["last_failed_wal"] == stop["required_wal"][0]
    assert f"last failed with {report['last_failed_wal']} at {report['last_failed_time']}" in result["msg"]
    assert "archive_command" in result["msg"]
    primary.break_archive(False)
    goes_on(sandbox, steps, stop)


@BOTH
def test_empty_archive_command(sandbox: Sandbox, steps: Steps, primary: Server) -> None:
    """Refused before the start; if emptied later nothing hangs, and restoring the command is enough."""
    assert primary.archive is not None
    primary.conf(archive_command="").reload()
    wait_until(lambda: not primary.value("SHOW archive_command"), "the command is gone")
    problem = refused(steps, "archive_command_empty")
    assert "ALTER SYSTEM SET archive_command" in problem["hint"]
    primary.conf(archive_command=archive_command(primary.archive)).reload()
    wait_until(lambda: primary.value("SHOW archive_command"), "the command is there")
    steps.start()
    primary.conf(archive_command="").reload()
    wait_until(lambda: not primary.value("SHOW archive_command"), "the command is gone")
    steps.ok("backup_copy")
    begun = time.monotonic()
    stop = steps.ok("backup_stop")
    assert time.monotonic() - begun < 3
    late(steps, stop)
    primary.conf(archive_command=archive_command(primary.archive)).reload()
    goes_on(sandbox, steps, stop)
