# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy made by the user's own step between start and stop: normalised or refused."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from tests.harness.checks import data_checksum, restore_and_check
from tests.harness.modules import Modules, Result
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.harness.user import me, run
from tests.integration.helpers.files import (
    control_came_last,
    copy_data_directory,
    files_and_directories,
    is_private,
    listing,
    manifest,
)
from tests.integration.helpers.leftovers import all_is_well
from tests.integration.helpers.load import load
from tests.integration.helpers.steps import Steps


@pytest.mark.majors(15, 18)
def test_copy_by_cp(sandbox: Sandbox, primary: Server, repository: pathlib.Path, modules: Modules, major: int) -> None:
    """A copy of all of PGDATA, excluded files too, is reduced to the same files as our copy, and is restored."""
    primary.pgbench_init()
    primary.sql("CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 1000) i")
    primary.sql("SELECT pg_create_physical_replication_slot('slot', true)")
    (primary.data / "link").symlink_to("PG_VERSION")
    run(["mkdir", "-m", "0755", primary.data / "pgsql_tmp", primary.data / "empty"])
    reference = Steps(modules, primary, "ours")
    reference.whole()

    steps = Steps(modules, primary)
    steps.start()
    with load(primary):
        copy_data_directory(primary, steps.work)
    assert (steps.work / "data" / "postmaster.pid").exists()
    expected = data_checksum(primary)
    stopped = steps.ok("backup_stop", checksum_algorithm="SHA384")
    again = steps.ok("backup_stop", checksum_algorithm="SHA384")
    assert (again["changed"], again["manifest_checksum"]) == (False, stopped["manifest_checksum"])
    steps.finish()

    is_private(steps.published)
    control_came_last(steps.published / "data")
    files = manifest(steps.published / "data")["Files"]
    assert {entry["Checksum-Algorithm"] for entry in files} == {"SHA384"}
    ours, theirs = (files_and_directories(one.published / "data") for one in (reference, steps))
    # The load has grown a table: there may be an additional file, none may be missing.
    assert set(ours[0]) <= set(theirs[0])
    assert all(name.startswith("base/") for name in set(theirs[0]) - set(ours[0]))
    assert ours[1] == theirs[1]
    all_is_well(sandbox, repository, primary)

    def is_the_end(server: Server) -> None:
        assert data_checksum(server) == expected

    restore_and_check(sandbox, steps.published, primary.archive, major, is_the_end, target="immediate")
    # The removal of files from the copy did not affect the source.
    assert (primary.data / "link").is_symlink()
    assert primary.value("SELECT count(*) FROM unlogged") == 1000
    assert data_checksum(primary) == expected


@pytest.mark.majors(15, 18)
def test_incomplete_copies_are_refused_until_they_are_whole(
    sandbox: Sandbox, primary: Server, repository: pathlib.Path, modules: Modules, major: int
) -> None:
    """No copy, a missing tablespace or file, links instead of copies: refused, the session survives, repair helps."""
    primary.sql("CREATE TABLE old AS SELECT generate_series(1, 1000) i")
    primary.sql("CHECKPOINT")
    ((oid, location),) = primary.sql(
        "SELECT oid::text, pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'extra'"
    )
    table = primary.value("SELECT pg_relation_filepath('old')")
    in_extra = primary.value("SELECT pg_relation_filepath('in_extra')").partition(f"/{oid}/")[2]
    steps = Steps(modules, primary)
    started = steps.start()
    data, tablespace = steps.work / "data", steps.work / "tablespaces" / oid
    live = listing(primary.directory / "tablespaces")

    def refused(code: str, word: str) -> Result:
        failed = steps.fails("backup_stop")
        assert (failed["code"], word in failed["msg"]) == (code, True), failed
        assert steps.state["state"] == "running"
        assert steps.start()["start_lsn"] == started["start_lsn"]
        assert listing(primary.directory / "tablespaces") == live
        return failed

    refused("nothing_copied", "data")
    data.symlink_to(primary.data)
    refused("not_a_copy", "symbolic link")
    data.unlink()
    copy_data_directory(primary, steps.work)
    shutil.rmtree(tablespace)
    refused("copy_not_whole", oid)
    tablespace.symlink_to(location)
    refused("not_a_copy", "symbolic link")
    tablespace.unlink()
    run(["cp", "-a", location, tablespace], user=me())
    for missing in (data / table, tablespace / in_extra):
        content = missing.read_bytes()
        missing.unlink()
        refused("copy_not_whole", "1 files are missing")
        missing.write_bytes(content)
    # Last, because it changes the originals' ctime, which decides which files must exist.
    shutil.rmtree(tablespace)
    run(["cp", "-al", location, tablespace], user=me())
    refused("not_a_copy", "itself")
    shutil.rmtree(tablespace)
    run(["cp", "-a", location, tablespace], user=me())
    expected = data_checksum(primary)
    steps.ok("backup_stop")
    steps.finish()
    all_is_well(sandbox, repository, primary)

    def is_the_same(server: Server) -> None:
        assert data_checksum(server) == expected

    restore_and_check(sandbox, steps.published, primary.archive, major, is_the_same)


def test_a_changed_file_may_not_be_missing(primary: Server, modules: Modules) -> None:
    """Replay restores the changed pages, not the other pages of a missing file."""
    primary.sql("CREATE TABLE changed AS SELECT generate_series(1, 50000) i")
    primary.sql("VACUUM changed")
    primary.sql("CHECKPOINT")
    path = primary.value("SELECT pg_relation_filepath('changed')")
    steps = Steps(modules, primary)
    steps.start()
    copy_data_directory(primary, steps.work)
    (steps.work / "data" / path).unlink()
    primary.sql("UPDATE changed SET i = 0 WHERE i = 1")
    primary.sql("CHECKPOINT")
    refused = steps.fails("backup_stop")
    assert (refused["code"], path in refused["msg"]) == ("copy_not_whole", True), refused


def test_files_dropped_or_created_during_the_copy_may_be_missing(
    sandbox: Sandbox, primary: Server, repository: pathlib.Path, modules: Modules, major: int
) -> None:
    """Relations created, dropped or rewritten during the copy are no reason to refuse it: replay repairs them."""
    primary.sql("CREATE TABLE dropped AS SELECT generate_series(1, 1000) i")
    primary.sql("CREATE TABLE rewritten AS SELECT generate_series(1, 1000) i")
    primary.sql("CHECKPOINT")
    steps = Steps(modules, primary)
    steps.start()
    copy_data_directory(primary, steps.work)
    primary.sql("DROP TABLE dropped")
    primary.sql("ALTER TABLE rewritten ALTER i TYPE bigint")
    primary.sql("CREATE TABLE new AS SELECT generate_series(1, 1000) i")
    primary.sql("CREATE DATABASE another")
    primary.sql("CHECKPOINT")
    expected = data_checksum(primary)
    steps.ok("backup_stop")
    steps.finish()
    all_is_well(sandbox, repository, primary)

    def is_the_same(server: Server) -> None:
        assert data_checksum(server) == expected

    restore_and_check(sandbox, steps.published, primary.archive, major, is_the_same, target="immediate")
