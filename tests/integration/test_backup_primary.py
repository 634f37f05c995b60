# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup of a running primary, step by step: each module's result, effect and prediction, and a restore."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import typing as t

import pytest

from tests.harness import binaries
from tests.harness.checks import data_checksum, restore_and_check
from tests.harness.modules import Modules, Result
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.harness.user import own_directory, own_file, run
from tests.integration.helpers.files import (
    WRITTEN_BY_STOP,
    control_came_last,
    files_and_directories,
    is_private,
    listing,
    manifest,
)
from tests.integration.helpers.leftovers import all_is_well
from tests.integration.helpers.load import load, pgbench_adds_up
from tests.integration.helpers.steps import Predictor, Steps


def same_answer(first: Result, second: Result, *, but: t.Container[str] = ()) -> None:
    """Require that a module, called again, changed nothing and returned the same."""
    assert second["changed"] is False
    differing = {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
    assert {key for key in differing if key not in but} <= {"changed", "msg"}, (first, second)


def metadata_tells_all(backup: pathlib.Path, server: Server, start: Result, copy: Result, stop: Result) -> None:
    """Require that ``backup.json`` holds what the modules returned."""
    content = json.loads((backup / "backup.json").read_text())
    about = content["server"]
    assert (content["state"], content["kind"], content["cluster"]) == ("complete", "full", "main")
    assert (about["major"], about["system_identifier"]) == (server.major, server.system_identifier)
    assert about["data_directory"] == str(server.data)
    assert content["start"]["start_lsn"] == start["start_lsn"] == stop["start_lsn"]
    assert content["stop"]["stop_lsn"] == stop["stop_lsn"]
    assert content["stop"]["wal_ranges"] == stop["wal_ranges"]
    assert content["required_wal"] == stop["required_wal"] == content["wal_proof"]["archived"]
    assert content["copy"]["files"] == len(manifest(backup / "data")["Files"]) >= copy["files"]
    assert content["start"]["started_at"] <= content["stop"]["stopped_at"] <= content["wal_proof"]["proven_at"]
    assert content["stop"]["manifest_checksum"] == manifest(backup / "data")["Manifest-Checksum"]
    oids = {str(oid): location for oid, location in server.sql(
        "SELECT oid, pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname NOT LIKE 'pg%'"
    )}  # fmt: skip
    assert content["stop"]["tablespaces"] == oids


def is_published(backup: pathlib.Path, server: Server) -> None:
    """Require the documented layout and modes of a published backup, and no other files in it."""
    assert {path.name for path in backup.iterdir()} == {"backup.json", "data", "tablespaces"}
    is_private(backup)
    control_came_last(backup / "data")
    oids = {str(oid) for (oid,) in server.sql("SELECT oid FROM pg_tablespace WHERE spcname NOT LIKE 'pg%'")}
    assert {path.name for path in (backup / "tablespaces").iterdir()} == oids
    links = {path.name: os.readlink(path) for path in (backup / "data" / "pg_tblspc").iterdir()}
    assert links == {oid: f"../../tablespaces/{oid}" for oid in oids}
    assert manifest(backup / "data")["PostgreSQL-Backup-Manifest-Version"] == (2 if server.major >= 17 else 1)
    assert not [path for path in (backup / "data" / "pg_wal").rglob("*") if path.is_file()]


@pytest.mark.majors(*binaries.MAJORS)
def test_backup_of_a_busy_primary(
    sandbox: Sandbox, primary: Server, repository: pathlib.Path, modules: Modules, major: int
) -> None:
    """Every step, in check mode first and then twice for real, while the server writes; restored to its end."""
    primary.pgbench_init()
    own_directory(primary.data / "own things", 0o755)
    own_file(primary.data / "own things" / "file", "kept", 0o644)
    steps, predicts = Steps(modules, primary), Predictor(modules, "one")
    looked = modules.ok("server_info")
    assert (looked["ready"], looked["problems"], looked["role"]) == (True, [], "primary"), looked
    for name, more in (
        ("backup_start", {"fast": True}), ("backup_copy", {}), ("backup_stop", {}), ("backup_publish", {"proof": {}}),
    ):  # fmt: skip
        predicts(name, True, **more)
    predicts("backup_abort", False)
    assert not list(repository.iterdir())

    with load(primary):
        started = steps.start(label="step by step")
        assert (started["changed"], started["from_standby"], started["timeline"]) == (True, False, 1)
        assert started["start_wal_file"] == primary.value("SELECT pg_walfile_name(%s)", [started["start_lsn"]])
        same_answer(started, steps.start(label="step by step"))
        predicts("backup_start", False, fast=True)
        assert modules.ok("backup_start", check=True, fast=True)["changed"]
        predicts("backup_copy", True)
        predicts("backup_abort", True)
        copied = steps.ok("backup_copy")
        assert copied["changed"]
        assert copied["bytes"] > 20 << 20
        same_answer(copied, steps.ok("backup_copy"))
        predicts("backup_copy", False)
        predicts("backup_stop", True)
    # Only this writes between the checksum and the end of the backup.
    primary.sql("CREATE TABLE late AS SELECT i, md5(i::text) FROM generate_series(1, 1000) i")
    at_the_end = data_checksum(primary)
    stopped = steps.ok("backup_stop")
    primary.sql("INSERT INTO late VALUES (0, 'after the end')")

    assert stopped["changed"]
    assert (stopped["state"], stopped["start_timeline"], stopped["stop_timeline"]) == ("stopped", 1, 1)
    assert stopped["required_wal"][0] == started["start_wal_file"]
    same_answer(stopped, steps.ok("backup_stop"))
    predicts("backup_stop", False)
    assert steps.ok("backup_copy")["changed"] is False
    predicts("backup_publish", True, proof=steps.archived(stopped))
    assert not list((repository / "main" / "backups").iterdir())
    published = steps.ok("backup_publish", proof=steps.archived(stopped))
    assert published["changed"]
    assert published["directory"] == str(steps.published)
    before = listing(repository)
    same_answer(published, steps.ok("backup_publish", proof={}))
    assert steps.ok("backup_abort")["state"] == "published"
    late = steps.ok("backup_stop")
    assert (late["state"], late["required_wal"], late["changed"]) == ("published", stopped["required_wal"], False)
    assert listing(repository) == before

    is_published(steps.published, primary)
    metadata_tells_all(steps.published, primary, started, copied, stopped)
    (cluster,) = modules.ok("backup_info", max_age="1h")["clusters"]
    assert (cluster["newest"], cluster["fresh"], cluster["unfinished"]) == ("one", True, [])
    all_is_well(sandbox, repository, primary)

    def holds_the_end(server: Server) -> None:
        pgbench_adds_up(server)
        assert data_checksum(server) == at_the_end
        assert (server.data / "own things" / "file").read_text() == "kept"

    restore_and_check(sandbox, steps.published, primary.archive, major, holds_the_end, target="immediate")


@pytest.mark.majors(*binaries.MAJORS)
def test_same_files_as_pg_basebackup(
    sandbox: Sandbox, primary: Server, repository: pathlib.Path, modules: Modules
) -> None:
    """On an idle server our backup and pg_basebackup's have the same files, sizes and directories."""
    primary.sql("CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 1000) i")
    primary.sql("SELECT pg_create_physical_replication_slot('slot', true)")
    shutil.copytree(primary.data / "pg_xact", primary.data / "pg_snapshots", dirs_exist_ok=True)
    run(["mkdir", primary.data / "pgsql_tmp_directory", primary.data / "empty"])
    own_file(primary.data / "backup_label.old", "")
    primary.sql("CHECKPOINT")
    steps = Steps(modules, primary)
    steps.whole()

    theirs = sandbox.directory("theirs")
    location = primary.value("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'extra'")
    primary.tool("pg_basebackup", "-D", theirs / "data", "-c", "fast", "-X", "none", "--no-sync",
                 "-T", f"{location}={theirs}/extra")  # fmt: skip
    ours, reference = (files_and_directories(root / "data") for root in (steps.published, theirs))
    for files, _directories in (ours, reference):
        for name in WRITTEN_BY_STOP:
            files.pop(name, None)
    assert ours == reference
    assert len(ours[0]) > 900
    all_is_well(sandbox, repository, primary)


def test_stop_under_load(sandbox: Sandbox, primary: Server, repository: pathlib.Path, modules: Modules) -> None:
    """A backup that ends while the server writes is consistent, and the archive continues it to the present."""
    primary.pgbench_init()
    steps = Steps(modules, primary)
    with load(primary):
        steps.whole()
    expected = data_checksum(primary)
    primary.switch_wal()
    steps.archived({"required_wal": [primary.value("SELECT pg_walfile_name(pg_current_wal_lsn() - 16777216)")],
                    "system_identifier": primary.system_identifier})  # fmt: skip
    all_is_well(sandbox, repository, primary)

    def is_the_present(server: Server) -> None:
        pgbench_adds_up(server)
        assert data_checksum(server) == expected

    restore_and_check(sandbox, steps.published, primary.archive, primary.major, is_the_present)
    restore_and_check(
        sandbox, steps.published, primary.archive, primary.major, pgbench_adds_up, name="end", target="immediate"
    )
