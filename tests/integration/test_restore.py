# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""backup_restore on real servers: from primaries and standbys, over existing files, interrupted, and refused."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import time
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import copy as _restore_copy
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import room as _room

from tests.harness import binaries
from tests.harness.checks import amcheck, data_checksum
from tests.harness.modules import run_module
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, is_alive, wait_until
from tests.harness.user import own_file, server_user
from tests.integration.helpers.files import listing, read_json
from tests.integration.helpers.source import Source
from tests.integration.helpers.steps import Background

BOTH: t.Final = pytest.mark.majors(15, 18)
ROOT: t.Final = pytest.mark.skipif(
    os.geteuid() != 0, reason="mounts a file system or is another user, which needs root"
)


def busy_source(sandbox: Sandbox, major: int) -> Source:
    """Return a primary with two tablespaces, one at a path that is not UTF-8, a backup ``one``, and later writes."""
    made = Source(sandbox, major, tablespaces=["extra"], initdb=["--wal-segsize=1", "--locale=C", "--encoding=LATIN1"])
    made.server.tablespace("odd", os.fsencode(made.server.directory) + b"/caf\xe9 1")
    made.server.pgbench_init()
    made.backup()
    made.server.sql("CREATE TABLE later AS SELECT generate_series(1, 1000) i")
    made.archived()
    return made


@pytest.fixture
def source(sandbox: Sandbox, major: int) -> Source:
    """A source that the test may change."""
    return busy_source(sandbox, major)


@pytest.fixture(scope="module")
def shared(major: int) -> t.Iterator[Source]:
    """A source that tests only restore from."""
    with Sandbox() as sandbox:
        yield busy_source(sandbox, major)


def oids(server: Server) -> dict[str, int]:
    """Return the OIDs of the tablespaces by name, except those that every cluster has."""
    return dict(server.sql("SELECT spcname, oid FROM pg_tablespace WHERE spcname !~ '^pg_'"))


def is_the_servers(place: Server, mode: int = 0o700) -> None:
    """Require the owner and modes of a data directory, and no file of the collection except the record."""
    for path in (place.data, *place.data.rglob("*")):
        status = path.lstat()
        assert status.st_uid == server_user().uid, path
        if not stat.S_ISLNK(status.st_mode):
            assert stat.S_IMODE(status.st_mode) == (mode if stat.S_ISDIR(status.st_mode) else mode & 0o660), path
    assert not (place.data / "pgfleet_restore").exists()
    assert (place.data / "pgfleet_restore.json").exists()


def refuses_to_start(place: Server) -> None:
    """Require that PostgreSQL does not start there."""
    done = place.tool("pg_ctl", "-D", place.data, "-s", "-w", "-t", "5", "start", check=False)
    assert done.returncode != 0
    assert not place.running


@pytest.mark.majors(*binaries.MAJORS)
def test_next_to_the_live_server(shared: Source) -> None:
    """Predicted, restored, recovered to the end of the archive, repaired with delta; the source is not touched."""
    server, place = shared.server, shared.place()
    expected = data_checksum(server)
    shared.refused(place, "tablespace_in_use", tablespace_directory=None)
    before = listing(shared.sandbox.root)
    predicted = shared.restored(place, check=True)
    now = listing(shared.sandbox.root)
    assert {path for path in now if "/primary/" not in path and now[path] != before.get(path)} == set()
    assert (predicted["changed"], predicted["restorable"]) == (True, True)

    done = shared.restored(place)
    assert (done["changed"], done["finished"], done["backup_id"]) == (True, True, "one")
    for key in ("files", "bytes", "copy_files", "copy_bytes", "wal_needed"):
        assert done["plan"][key] == predicted["plan"][key], key
    is_the_servers(place)
    again = shared.restored(place)
    assert (again["changed"], again["plan"]) == (False, done["plan"])
    assert shared.restored(place, check=True)["changed"] is False

    copy = shared.started(place)
    assert data_checksum(copy) == expected
    assert copy.value("SHOW archive_mode") == "off"
    assert oids(copy) == oids(server)
    amcheck(copy)
    assert shared.restored(place)["changed"] is False
    # A running server writes, so the directory changes.
    refused = shared.run(place, delta=True, force=True)
    assert (refused["code"], refused["msg"].count("Stop it.")) == ("server_running", 1)
    assert copy.running
    copy.stop("immediate")

    # The copy's later changes are undone, and damage is repaired.
    damaged = place.data / "base" / "1" / "1259"
    with damaged.open("r+b") as file:
        file.write(b"\xff" * 100)
    own_file(place.data / "base" / "1" / "99999", "surplus")
    shared.refused(place, "not_empty", "tablespace_not_empty", force=True)
    predicted = shared.restored(place, check=True, delta=True, force=True)["plan"]
    repaired = shared.restored(place, delta=True, force=True)["plan"]
    for key in ("keep_files", "keep_bytes", "copy_files", "copy_bytes", "remove_files", "replace_files"):
        assert repaired[key] == predicted[key], key
    assert repaired["copy_bytes"] < repaired["bytes"] / 4
    assert not (place.data / "base" / "1" / "99999").exists()
    is_the_servers(place)
    assert data_checksum(shared.started(place)) == expected
    place.stop("immediate")
    assert data_checksum(server) == expected


@BOTH
def test_in_its_old_place(sandbox: Sandbox, source: Source) -> None:
    """Unarchived WAL is saved and used, with delta and with replace; the old cluster is moved as a whole."""
    server = source.server
    server.break_archive()
    server.sql("INSERT INTO later SELECT generate_series(2001, 3000)")
    expected = data_checksum(server)
    server.stop("immediate")
    common = {
        "data_directory": str(server.data), "restore_as": "primary", "port": server.port,
        "settings": {"unix_socket_directories": str(server.socket_directory)}, "sync": False,
    }  # fmt: skip
    modules = source.modules()
    refused = modules.fails("backup_restore", **common)
    assert (refused["code"], [one["code"] for one in refused["plan"]["refusals"]]) == (
        "not_empty", ["not_empty", "tablespace_not_empty", "tablespace_not_empty"],
    )  # fmt: skip
    done = modules.ok("backup_restore", delta=True, **common)
    saved = pathlib.Path(done["plan"]["saved_wal"])
    assert saved.parent == server.directory
    names = done["plan"]["unarchived_wal"]
    assert set(os.listdir(saved)) == set(names) >= set(done["plan"]["used_wal"])
    assert done["plan"]["used_wal"]
    assert done["plan"]["keep_bytes"] > done["plan"]["bytes"] / 2
    source.archive.with_suffix(".broken").unlink()
    source.started(server)
    assert data_checksum(server) == expected
    # It also archives the WAL of its old timeline, the last segment as .partial.
    server.sql("CHECKPOINT")
    wait_until(lambda: list(source.archive.glob(done["plan"]["used_wal"][0] + "*")), "the saved WAL is archived")
    server.stop()

    moved = modules.ok("backup_restore", replace=True, force=True, **common)
    source.started(server)
    assert data_checksum(server) == expected
    server.stop()
    # The moved directory is a whole cluster, with its own tablespaces.
    aside = pathlib.Path(moved["plan"]["moved_aside"])
    shutil.move(server.data, server.directory / "newer")
    shutil.move(aside, server.data)
    for name in os.listdir(server.data / "pg_tblspc"):
        assert "/replaced-" in os.readlink(server.data / "pg_tblspc" / name)
    server.start()
    assert data_checksum(server) == expected


@BOTH
def test_original_places_of_tablespaces(source: Source) -> None:
    """On a host that has lost everything they are restored to their original paths, byte for byte."""
    server = source.server
    expected = data_checksum(server)
    server.stop("immediate")
    links = {path.name: os.readlink(os.fsencode(path)) for path in (server.data / "pg_tblspc").iterdir()}
    for place in (os.fsencode(server.data), *links.values()):
        shutil.rmtree(place)
    common = {
        "data_directory": str(server.data), "restore_as": "copy", "port": server.port,
        "settings": {"unix_socket_directories": str(server.socket_directory)}, "sync": False,
    }  # fmt: skip
    source.modules().ok("backup_restore", **common)
    assert {path.name: os.readlink(os.fsencode(path)) for path in (server.data / "pg_tblspc").iterdir()} == links
    assert os.path.isdir(os.fsencode(server.directory) + b"/caf\xe9 1")
    assert data_checksum(source.started(server)) == expected


@BOTH
def test_backup_of_a_standby(sandbox: Sandbox, major: int) -> None:
    """As an independent server it forgets its primary; as a new standby it follows the given one."""
    source = Source(sandbox, major)
    primary, standby = source.server, None
    standby = sandbox.standby(primary)
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
    standby.catch_up()
    source.backup(server=standby)
    primary.sql("INSERT INTO t SELECT generate_series(1001, 2000)")
    source.archived()
    expected = data_checksum(primary)
    with source.copy("alone") as alone:
        assert data_checksum(alone) == expected
        assert not (alone.data / "standby.signal").exists()
        assert alone.value("SHOW primary_conninfo") == ""
        amcheck(alone)
    follower = source.place("follower")
    primary.sql("SELECT pg_create_physical_replication_slot('follower')")
    conninfo = f"host={primary.socket_directory} port={primary.port} user=postgres application_name=follower"
    source.refused(follower, "bad_target", restore_as="standby", primary_conninfo=conninfo, recovery_target="immediate")
    result = source.restored(
        follower, restore_as="standby", primary_conninfo=conninfo, primary_slot_name="follower",
        settings={"archive_mode": "off"},
    )  # fmt: skip
    assert conninfo not in str(result)
    sandbox.servers.append(follower)
    follower.start()
    follower.upstream = primary
    wait_until(
        lambda: primary.sql(
            "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND application_name = 'follower'"
        ),
        f"it streams: {follower.log[-500:]}",
    )
    primary.sql("INSERT INTO t VALUES (0)")
    follower.catch_up()
    assert data_checksum(follower) == data_checksum(primary)
    assert follower.in_recovery


def workers(place: Server) -> list[int]:
    """Return the processes of the restore into this directory, the leader first."""
    lock = str(place.data / "pgfleet_restore" / "lock")
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if any(os.readlink(f"/proc/{name}/fd/{fd}") == lock for fd in os.listdir(f"/proc/{name}/fd")):
                found.append(int(name))
    leader = read_json(place.data / "pgfleet_restore" / "progress.json").get("pid")
    return sorted(found, key=lambda pid: pid != leader)


@BOTH
def test_killed_and_continued(shared: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore survives its killed task; after a killed restore the directory cannot start, and a retry continues."""
    place = shared.place("killed")
    restore = _restore_copy._restore

    def slowly(*arguments: t.Any) -> bool:
        time.sleep(0.02)
        return restore(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_restore_copy, "_restore", slowly)
        task = Background(lambda: shared.run(place))
        wait_until((place.data / "pgfleet_restore" / "files.jsonl").exists, "it copies")
        task.kill()
        refuses_to_start(place)
        other = shared.run(place, recovery_target="immediate")
        assert other["code"] == "busy", other
        waiting = shared.run(place, wait_timeout=1)
        assert (waiting["finished"], waiting["backup_id"]) == (False, "one")
        pids = workers(place)
        assert len(pids) == 3
        # The others end with the leader.
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: not any(is_alive(pid) for pid in pids), "they have ended")
    refuses_to_start(place)
    # Without delta: the directory contains only an interrupted restore.
    result = shared.restored(place)
    assert result["changed"]
    assert result["reused_files"] > 0
    is_the_servers(place)
    assert data_checksum(shared.started(place)) == data_checksum(shared.server)
    place.stop("immediate")


@BOTH
def test_damaged_backup(shared: Source) -> None:
    """A file with a wrong checksum stops the restore by name; one with a wrong size prevents it."""
    place = shared.place("damaged")
    (victim,) = (shared.repository / "main/backups/one/data/base/1").glob("1255")
    good = victim.read_bytes()
    with victim.open("r+b") as file:
        file.seek(len(good) // 2)
        file.write(b"\xff\x00\xff")
    failed = shared.run(place)
    assert (failed["code"], failed["file"]) == ("corrupt_file", "base/1/1255")
    assert "base/1/1255" in failed["msg"]
    assert "Traceback" not in str(failed)
    refuses_to_start(place)
    victim.write_bytes(good[:-1])
    refused = shared.run(place)
    assert (refused["code"], refused["bad_files"][0]["path"]) == ("damaged_backup", "base/1/1255")
    victim.write_bytes(good)
    assert shared.restored(place)["plan"]["keep_files"] > 0
    assert data_checksum(shared.started(place)) == data_checksum(shared.server)
    place.stop("immediate")


@ROOT
@BOTH
def test_full_disk_and_mount_point(shared: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own file system with a foreign parent: refused before, named when it fills up, continued with more space."""
    place = shared.place("full")
    place.data.mkdir()
    user = server_user()
    options = f"size=16m,mode=0755,uid={user.uid},gid={user.gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place.data], check=True)
    os.chown(place.directory, 0, 0)
    place.directory.chmod(0o755)
    try:
        wanted = {"tablespace_directory": str(shared.sandbox.root / "spaces")}
        refused = shared.run(place, **wanted)
        assert (refused["code"], refused["free"] < refused["needed"]) == ("disk_full", True), refused
        assert os.listdir(place.data) == []
        with monkeypatch.context() as patch:
            patch.setattr(_room, "check_room", lambda *_parts: ())
            failed = shared.run(place, **wanted)
        assert failed["code"] == "disk_full", failed
        assert str(place.data) in failed["msg"]
        refuses_to_start(place)
        subprocess.run(["mount", "-o", "remount,size=256m", place.data], check=True)
        shared.restored(place, **wanted)
        assert stat.S_IMODE(place.data.stat().st_mode) == 0o700
        assert shared.run(place, replace=True, force=True, **wanted)["code"] == "cannot_move_aside"
        os.chown(place.directory, user.uid, user.gid)
        assert data_checksum(shared.started(place)) == data_checksum(shared.server)
        place.stop("immediate")
    finally:
        subprocess.run(["umount", "-l", place.data], check=True)


@ROOT
@BOTH
def test_wrong_user(shared: Source) -> None:
    """Only the server's user can restore, and not into another user's directory."""
    place = shared.place("wrong")
    arguments = shared.modules().arguments("backup_restore", **shared.options(place))
    refused = run_module("backup_restore", arguments)
    assert "running_as_root" in {one["code"] for one in refused["plan"]["refusals"]}
    place.data.mkdir()
    shared.refused(place, "wrong_owner")
    os.rmdir(place.data)
    os.chown(place.directory, 0, 0)
    place.directory.chmod(0o755)
    shared.refused(place, "not_writable")


@BOTH
def test_lower_parameters(sandbox: Sandbox, major: int) -> None:
    """Recovery would stop: refused before, except that a copy gets the values it needs."""
    source = Source(sandbox, major, max_connections=70, max_prepared_transactions=5)
    source.backup()
    source.archived()
    place = source.place()
    low = {"max_connections": 20}
    refused = source.refused(place, "parameters_too_low", restore_as="primary", settings=low)
    assert refused["parameters"] == [{"name": "max_connections", "needed": 70, "configured": 20}]
    source.refused(place, "parameters_too_low", settings=low)
    conf = source.repository / "main/backups/one/data/postgresql.conf"
    outside = own_file(sandbox.root / "other.conf", "max_prepared_transactions = 0\nmax_connections = 70\n")
    source.refused(place, "parameters_too_low", restore_as="primary", config_file=str(outside))
    assert conf.exists()
    source.restored(place, config_file=str(outside))
    assert source.started(place).value("SHOW max_prepared_transactions") == "5"


@BOTH
def test_directory_for_wal_and_group_access(shared: Source) -> None:
    """pg_wal is a link that survives delta; modes are those of a cluster with group access."""
    place = shared.place("waldir")
    waldir = place.directory / "wal"
    options: dict[str, t.Any] = {"waldir": str(waldir), "allow_group_access": True, "recovery_target": "immediate"}
    shared.restored(place, **options)
    is_the_servers(place, 0o750)
    assert os.readlink(place.data / "pg_wal") == str(waldir)
    copy = shared.started(place)
    assert copy.value("SHOW data_directory_mode") == "0750"
    assert list(waldir.glob("0*"))
    copy.stop("immediate")
    shared.restored(place, delta=True, recovery_target="immediate")
    assert os.readlink(place.data / "pg_wal") == str(waldir)
    shared.started(place)
    place.stop("immediate")
