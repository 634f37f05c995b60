# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restores that would destroy or lose data, or attach to another cluster's files, are refused."""

from __future__ import annotations

import os
import pathlib
import shutil

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import restore as _restore

from tests.harness.checks import data_checksum
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_directory, own_file, run
from tests.integration.helpers.files import untouched
from tests.integration.helpers.source import Source, numbers
from tests.integration.helpers.steps import Steps


def own_copy(server: Server, place: Server) -> None:
    """Copy a data directory with cp, as the server user."""
    run(["cp", "-a", server.data, place.data])


def stands_against(source: Source, place: Server, code: str, **options: object) -> None:
    """Require that a restore is refused for this reason, among others."""
    answer = source.run(place, check=True, **options)
    assert answer["restorable"] is False, answer
    assert code in {one["code"] for one in answer["plan"]["refusals"]}, answer


def test_places(sandbox: Sandbox, major: int) -> None:
    """No directory may overlap with another, with a live server, or with those of backups and WAL."""
    source = Source(sandbox, major, tablespaces=["extra"])
    source.backup()
    live, archive, cluster, place = source.server, source.archive, source.cluster, source.place()
    ((oid, extra),) = live.sql(
        "SELECT oid::text, pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'extra'"
    )
    for name in ("data_directory", "tablespace_directory", "waldir", "save_wal_to", "archive_directory"):
        assert source.run(place, **{name: "relative"})["code"] == "bad_path"
    assert source.run(place, tablespace_mapping={oid: "relative"})["code"] == "bad_mapping"
    assert source.run(place, tablespace_mapping={"77": "/nowhere"})["code"] == "bad_mapping"

    link = sandbox.root / "link"
    link.symlink_to(live.data)
    with untouched(source.repository, archive, pathlib.Path(extra)):
        for how in ({"delta": True}, {"replace": True}):
            source.refused(place, "server_running", data_directory=str(live.data), **how)
            stands_against(source, place, "server_running", data_directory=str(link), **how)
            assert source.run(place, check=True, data_directory="/", **how)["restorable"] is False
        source.refused(place, "overlap", data_directory=str(live.data / "absent"))
        for path in (source.repository, cluster / "backups" / "one" / "data" / "x", sandbox.root, archive):
            stands_against(source, place, "overlap", data_directory=str(path), replace=True)

        data, spaces = place.data, place.directory / "tablespaces"
        for path in (data, data / "base", data / "pg_tblspc" / oid, cluster / "backups", archive, sandbox.root):
            stands_against(source, place, "overlap", tablespace_mapping={oid: str(path)})
        alias = sandbox.root / "alias"
        alias.symlink_to(extra)
        for path in (extra, alias, live.data / "x"):
            stands_against(source, place, "tablespace_in_use", tablespace_mapping={extra: str(path)})
        for path in (data, data / "wal", cluster / "w", archive / "w", place.directory, spaces / oid):
            stands_against(source, place, "overlap", waldir=str(path))
        for path in (live.data / "w", live.data / "pg_wal"):
            stands_against(source, place, "waldir_in_use", waldir=str(path))
    # The cluster is whole, though it is not running.
    live.stop()
    stands_against(source, place, "overlap", data_directory=str(live.data / "absent"))
    stands_against(source, place, "tablespace_in_use", tablespace_mapping={extra: str(extra)})
    assert not data.exists()


def test_links_of_a_copied_directory(sandbox: Sandbox, major: int) -> None:
    """A copy by cp keeps the links: their targets belong to the other server, running or not."""
    source = Source(sandbox, major)
    live, outside = source.server, sandbox.root / "live_wal"
    live.stop()
    run(["mv", live.data / "pg_wal", outside])
    (live.data / "pg_wal").symlink_to(outside)
    live.start()
    live.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    source.backup()
    place = source.place("copied")
    live.stop()
    own_copy(live, place)
    with untouched(outside, live.data):
        source.refused(place, "waldir_in_use", delta=True)
    live.start()
    source.refused(place, "waldir_in_use", delta=True)
    (place.data / "pg_wal").unlink()
    own_directory(place.data / "pg_wal")
    # A directory of the data directory that is a link into another cluster.
    run(["rm", "-r", place.data / "global"])
    (place.data / "global").symlink_to(live.data / "global")
    with untouched(live.data / "global"):
        source.restored(place, delta=True)
    assert not (place.data / "global").is_symlink()
    assert numbers(source.started(place)) == {1}
    assert numbers(live) == {1}


def test_archive_in_the_target(sandbox: Sandbox, major: int) -> None:
    """The archive is in the old data directory, which would be emptied or moved."""
    source = Source(sandbox, major)
    source.backup()
    place = source.place()
    source.server.stop()
    own_copy(source.server, place)
    run(["cp", "-a", source.archive, place.data / "archive"])
    for how in ({"delta": True}, {"replace": True}):
        archive = str(place.data / "base" / ".." / "archive")
        source.refused(place, "overlap", archive_directory=archive, **how)


def test_saved_wal(sandbox: Sandbox, major: int) -> None:
    """Saved WAL is neither removed with the rest nor written over other files."""
    source = Source(sandbox, major)
    source.server.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    source.backup()
    source.archived()
    source.server.break_archive()
    source.server.sql("INSERT INTO numbers VALUES (2)")
    source.server.stop()
    place = source.place()
    own_copy(source.server, place)
    waldir = place.directory / "wal"
    run(["mv", place.data / "pg_wal", waldir])
    (place.data / "pg_wal").symlink_to(waldir)
    wish = {"delta": True, "restore_as": "primary", "settings": {"archive_mode": "off"}}
    for path in (waldir / "saved", waldir, source.archive, place.data / "x", source.repository / "x"):
        stands_against(source, place, "overlap", save_wal_to=str(path), **wish)
    stands_against(source, place, "overlap", save_wal_to=str(source.server.data), **wish)
    unarchived = source.restored(place, check=True, **wish)["plan"]["unarchived_wal"]
    taken = own_directory(sandbox.root / "taken")
    own_file(taken / unarchived[0], "something else")
    with untouched(taken):
        source.refused(place, "saved_wal_exists", save_wal_to=str(taken), **wish)
    # The remains of a restore without its last step do not prove that later WAL is saved.
    left = own_directory(place.data / "pgfleet_restore")
    own_file(left / "wal_saved", "")
    own_file(left / "request.json", "{}")
    saved = sandbox.root / "saved"
    result = source.restored(place, save_wal_to=str(saved), **wish)
    assert result["plan"]["unarchived_wal"] == unarchived
    assert sorted(path.name for path in saved.iterdir()) == unarchived
    assert numbers(source.started(place)) == {1, 2}


def test_wal_of_a_standby(sandbox: Sandbox, major: int) -> None:
    """A standby marks streamed segments as done though none was archived: its WAL is the only copy."""
    source = Source(sandbox, major)
    primary = source.server
    primary.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    source.backup()
    source.archived()
    standby = sandbox.standby(primary)
    primary.break_archive()
    primary.sql("INSERT INTO numbers VALUES (2)")
    primary.switch_wal()
    primary.sql("INSERT INTO numbers VALUES (3)")
    standby.catch_up()
    status = standby.data / "pg_wal" / "archive_status"
    wait_until(lambda: any(not (source.archive / one.stem).exists() for one in status.glob("*.done")), "marked as done")
    done = {one.stem for one in status.glob("*.done") if not (source.archive / one.stem).exists()}
    primary.stop("immediate")
    standby.stop()
    saved = sandbox.root / "saved"
    options = {"delta": True, "restore_as": "primary", "settings": {"archive_mode": "off"}}
    source.restored(standby, save_wal_to=str(saved), **options)
    assert done <= {path.name for path in saved.iterdir()}
    assert numbers(source.started(standby)) == {1, 2, 3}


def test_tablespace_made_after_the_backup(sandbox: Sandbox, major: int) -> None:
    """Replay would create it again in the live server's directory; a target before its creation is harmless."""
    source = Source(sandbox, major, track_commit_timestamp=True)
    server = source.server
    server.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    source.backup()
    xid = server.value("WITH new AS (INSERT INTO numbers VALUES (2)) SELECT pg_current_xact_id()::text")
    late = server.tablespace("late")
    after = server.value("SELECT pg_create_restore_point('after')::text")
    source.archived()
    server.sql("CHECKPOINT")
    expected = data_checksum(server)
    place = source.place()
    with untouched(pathlib.Path(os.fsdecode(late))):
        for target in ({}, {"recovery_target_name": "after"}, {"recovery_target_lsn": after}):
            answer = source.refused(place, "tablespace_created_later", **target)
            assert os.fsdecode(late) in answer["msg"]
        for target, found in (({"recovery_target": "immediate"}, {1}), ({"recovery_target_xid": xid}, {1, 2})):
            source.restored(place, delta=True, force=True, **target)
            assert numbers(source.started(place)) == found
            assert not list((place.data / "pg_tblspc").iterdir())
            place.stop()
    assert data_checksum(server) == expected


def test_tablespaces_of_a_lost_data_directory(sandbox: Sandbox, major: int) -> None:
    """replace moves them aside and does not delete them, though the data directory no longer exists."""
    source = Source(sandbox, major, tablespaces=["extra"])
    source.backup()
    source.archived()
    server = source.server
    expected = data_checksum(server)
    server.stop()
    shutil.rmtree(server.data)
    extra = server.directory / "tablespaces" / "extra"
    precious = max((path for path in extra.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    precious.write_bytes(b"precious")
    wish = {"data_directory": str(server.data), "tablespace_directory": None}
    source.refused(server, "tablespace_not_empty", **wish)
    predicted = source.restored(server, check=True, replace=True, **wish)["plan"]
    done = source.restored(server, replace=True, **wish)["plan"]
    assert (predicted["keep_files"], predicted["copy_bytes"]) == (done["keep_files"], done["copy_bytes"])
    (kept,) = extra.glob(f"replaced-*/*/*/{precious.name}")
    assert kept.read_bytes() == b"precious"
    assert data_checksum(source.started(server)) == expected


@pytest.mark.majors(14, 18)
def test_a_second_primary(sandbox: Sandbox, major: int) -> None:
    """A second primary is possible, but with a warning; a copy shares no directory with the source."""
    source = Source(sandbox, major)
    shared = own_directory(sandbox.root / "shared")
    stats = {"stats_temp_directory": str(shared)} if major < 15 else {}
    source.server.conf(log_directory=str(shared), external_pid_file=str(shared / "pid"), **stats).restart()
    source.backup()
    source.archived()
    warnings = source.restored(source.place("second"), check=True, restore_as="primary")["plan"]["warnings"]
    assert any("restore_as=copy" in one for one in warnings), warnings
    with source.copy(settings={"logging_collector": "on"}) as copy:
        for name in ("log_directory", "external_pid_file", *stats):
            assert str(shared) not in copy.value(f"SHOW {name}")
        assert not any("restore_as" in one for one in source.restored(copy, check=True)["plan"]["warnings"])


def test_two_backups_without_checksums(sandbox: Sandbox, major: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files copied by an interrupted restore of one do not count for the other, though the sizes are equal."""
    source = Source(sandbox, major)
    server = source.server
    server.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    for backup_id in ("one", "two"):
        server.sql("CHECKPOINT")
        steps = Steps(source.modules(archive_directory=None), server, backup_id)
        steps.start()
        steps.ok("backup_copy", checksum_algorithm="NONE")
        steps.finish()
        server.sql("UPDATE numbers SET n = 2")
    source.archived()
    place = source.place()
    again = {"delta": True, "force": True, "recovery_target": "immediate"}
    table = server.value("SELECT pg_relation_filepath('numbers')")

    def stopped(_restore: object) -> None:
        raise BackupError("it was stopped here", code="stopped")

    with monkeypatch.context() as patched:
        patched.setattr(_restore.Restore, "_write_wal", stopped)
        assert source.run(place, backup_id="one", **again)["code"] == "stopped"
    assert (place.data / table).exists()
    source.restored(place, backup_id="two", **again)
    assert (place.data / table).read_bytes() == (source.cluster / "backups" / "two" / "data" / table).read_bytes()
    assert numbers(source.started(place)) == {2}
