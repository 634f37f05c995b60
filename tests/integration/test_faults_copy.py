# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy of a running server, and what breaks it: files, disks, processes."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import detached as _job

from tests.harness import binaries
from tests.harness.modules import Modules, Result, run_module_as
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_file, popen, run, server_user
from tests.integration.helpers.files import read_json
from tests.integration.helpers.leftovers import all_is_well
from tests.integration.helpers.steps import BIG_FILE, Background, Steps, restores

BOTH: t.Final = pytest.mark.majors(15, 18)
ROOT: t.Final = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which needs root")

PAGE: t.Final = 8192


@pytest.fixture
def steps(sandbox: Sandbox, modules: Modules, primary: Server, repository: pathlib.Path) -> t.Iterator[Steps]:
    """The steps of a backup of the primary; nothing of it may remain at the end."""
    yield Steps(modules, primary)
    all_is_well(sandbox, repository, primary)


def manifest(backup: pathlib.Path) -> dict[str, int]:
    """Return the files of a backup's manifest and their sizes."""
    content = json.loads((backup / "data" / "backup_manifest").read_text())
    return {one["Path"]: one["Size"] for one in content["Files"]}


def relation(server: Server, name: str) -> pathlib.Path:
    """Return the path of a relation, relative to the data directory."""
    return pathlib.Path(server.value("SELECT pg_relation_filepath(%s::regclass)", [name]))


@contextlib.contextmanager
def load(server: Server) -> t.Iterator[subprocess.Popen[str]]:
    """Run pgbench during the block; require at the end that every transaction succeeded."""
    command = [binaries.tool(server.major, "pgbench"), "-n", "-c", "2", "-R", "200", "-T", "60", "postgres"]
    bench = popen(command, env=server.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        before = server.value("SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'")
        wait_until(
            lambda: server.value("SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'") > before + 20,
            "the load runs",
        )
        yield bench
        assert bench.poll() is None, bench.stderr and bench.stderr.read()
    finally:
        bench.kill()
        bench.communicate()


@BOTH
def test_files_change_under_load(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """Files vanish, grow and shrink, pages change, some are all zero: the size at open counts; replay repairs it."""
    primary = sandbox.primary(major, tablespaces=["extra"], initdb=["--data-checksums"])
    steps = Steps(Modules(primary, repository=str(repository), cluster="main"), primary)
    primary.pgbench_init()
    for name in ("vanishes", "grows", "shrinks", "zero"):
        primary.sql(f"CREATE TABLE {name} AS SELECT i FROM generate_series(1, 20000) i")
    primary.sql("CHECKPOINT")
    files = {name: relation(primary, name) for name in ("vanishes", "grows", "shrinks", "zero")}
    sizes = {name: (primary.data / path).stat().st_size for name, path in files.items()}
    # The page that a crash leaves after a relation was extended.
    os.truncate(primary.data / files["zero"], sizes["zero"] + 2 * PAGE)
    size = 128 << 20
    with load(primary):
        steps.start()
        # One process copies the large file first, so that all other files are copied after these changes.
        with steps.copying(size, jobs=1) as copy:
            with steps.stopped_processes():
                primary.sql("DROP TABLE vanishes")
                primary.sql("INSERT INTO grows SELECT i FROM generate_series(1, 50000) i")
                primary.sql("DELETE FROM shrinks WHERE i > 1000")
                primary.sql("VACUUM (TRUNCATE) shrinks")
                primary.sql("CHECKPOINT")
                now = {name: (primary.data / files[name]).stat().st_size for name in ("grows", "shrinks")}
                # The open file grows and shrinks.
                os.truncate(primary.data / BIG_FILE, size + PAGE)
                os.truncate(primary.data / BIG_FILE, size // 2)
            result = copy.result()
    assert not result.get("failed"), result
    assert result["vanished_files"] >= 1
    steps.finish()
    copied = manifest(steps.published)
    assert not {path for path in copied if path.startswith(str(files["vanishes"]))}
    assert copied[str(files["grows"])] == now["grows"] > sizes["grows"]
    assert copied[str(files["shrinks"])] == now["shrinks"] < sizes["shrinks"]
    assert copied[str(files["zero"])] == sizes["zero"] + 2 * PAGE
    assert copied[BIG_FILE] == size == (steps.published / "data" / BIG_FILE).stat().st_size
    with (steps.published / "data" / BIG_FILE).open("rb") as file:
        file.seek(size // 2 - 1)
        assert not any(file.read(1 << 20)), "the truncated part is zeros"
    restores(sandbox, steps, primary)
    all_is_well(sandbox, repository, primary)


def as_server_user(steps: Steps, name: str, **arguments: t.Any) -> Result:
    """Run a module as the server's account, which, unlike root, cannot read everything."""
    arguments = steps.modules.arguments(name, backup_id=steps.id, **arguments)
    return run_module_as(name, arguments, python=binaries.server_python())


@BOTH
def test_unreadable_file(steps: Steps, primary: Server) -> None:
    """The copy fails and names the file; after a repair the same backup continues and keeps its files."""
    secret = own_file(primary.data / "secret", "x", mode=0)
    assert not as_server_user(steps, "backup_start", fast=True).get("failed")
    result = as_server_user(steps, "backup_copy")
    assert result["failed"]
    assert result["code"] == "unreadable"
    assert f"Cannot read {secret}: Permission denied" in result["msg"]
    assert f"user {server_user().name}" in result["msg"]
    assert steps.fails("backup_stop")["code"] == "copy_not_finished"
    secret.unlink()
    steps.finish()


@contextlib.contextmanager
def small_file_system(sandbox: Sandbox, megabytes: int) -> t.Iterator[pathlib.Path]:
    """Yield a repository on its own file system."""
    path = sandbox.directory("small")
    user = server_user()
    options = f"size={megabytes}m,mode=0700,uid={user.uid},gid={user.gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@ROOT
@BOTH
def test_repository_is_too_small(sandbox: Sandbox, modules: Modules, primary: Server) -> None:
    """Refused before the start, with both sizes, and nothing is written."""
    with small_file_system(sandbox, 8) as small:
        modules.common["repository"] = str(small)
        result = modules.fails("backup_start", backup_id="one")
        assert result["code"] == "repository_too_small"
        assert str(primary.value("SELECT sum(pg_tablespace_size(oid)) FROM pg_tablespace")) in result["msg"]
        assert str(8 << 20) in result["msg"]
        assert modules.ok("server_info")["problems"][0]["code"] == "repository_too_small"
        assert not os.listdir(small)


@ROOT
@BOTH
@pytest.mark.parametrize("algorithm", ["SHA256", "NONE"])
def test_disk_is_full(
    sandbox: Sandbox, modules: Modules, primary: Server, repository: pathlib.Path, algorithm: str
) -> None:
    """The copy fails with file, free and needed space; abort works on a full disk; with space the copy continues."""
    with small_file_system(sandbox, 100) as small:
        modules.common["repository"] = str(small)
        steps = Steps(modules, primary)
        steps.start()
        big = steps.big_file(120 << 20)
        result = steps.fails("backup_copy", checksum_algorithm=algorithm)
        assert result["code"] == "disk_full", result
        assert f"Cannot write {steps.work}" in result["msg"]
        assert "No space left on device" in result["msg"]
        assert "B are free, and" in result["msg"]
        assert not (steps.work / "data" / BIG_FILE).exists(), "the incomplete file has freed its space"
        assert steps.fails("backup_stop")["code"] == "copy_not_finished"
        big.unlink()
        assert steps.ok("backup_copy", checksum_algorithm=algorithm)["finished"]
        steps.finish()
        all_is_well(sandbox, small, primary)


def fill(directory: pathlib.Path) -> pathlib.Path:
    """Fill the file system to the last byte and return the file that does."""
    path = directory / "ballast"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(PAGE))
    return path


@ROOT
@BOTH
def test_not_a_byte_is_left(sandbox: Sandbox, modules: Modules, primary: Server, repository: pathlib.Path) -> None:
    """Other programs fill the disk: the copy reports it, abort removes the backup, and stop keeps the label."""
    with small_file_system(sandbox, 40) as small:
        modules.common["repository"] = str(small)
        given_up = Steps(modules, primary, "given-up")
        given_up.start()
        ballast = fill(small)
        assert "No space left on device" in given_up.fails("backup_copy")["msg"]
        assert given_up.ok("backup_abort")["state"] == "absent"
        ballast.unlink()

        steps = Steps(modules, primary)
        steps.start()
        steps.ok("backup_copy")
        seen = (steps.work / "owner.json").stat().st_mtime_ns
        os.kill(steps.keeper, signal.SIGSTOP)
        try:
            stop = Background(lambda: steps.run("backup_stop"))
            wait_until(lambda: (steps.work / "owner.json").stat().st_mtime_ns != seen, "stop is under way")
            ballast = fill(small)
        finally:
            os.kill(steps.keeper, signal.SIGCONT)
        assert "No space left on device" in stop.result()["msg"]
        assert steps.state["label_file"]
        assert (steps.fails("backup_stop")["code"], steps.published.exists()) == ("os_error", False)
        ballast.unlink()
        steps.finish()
        all_is_well(sandbox, small, primary)


@ROOT
def test_last_word_of_the_copy(sandbox: Sandbox) -> None:
    """Space is reserved for the final record when other programs have taken all the rest."""
    with small_file_system(sandbox, 1) as small:
        (small / "copy").mkdir()
        recorder = _job.Recorder(str(small / "copy"))
        recorder.begin()
        fill(small)
        recorder.finish(state="failed", error="e" * PAGE)
        assert read_json(small / "copy" / "progress.json")["error"] == "e" * PAGE


@BOTH
def test_exclusions(sandbox: Sandbox, steps: Steps, primary: Server) -> None:
    """Files useless after a restore are excluded; links and special files are reported; a link can be followed."""
    primary.sql("CREATE UNLOGGED TABLE unlogged AS SELECT i FROM generate_series(1, 1000) i")
    primary.sql("SELECT pg_create_physical_replication_slot('kept_for_ever', true)")
    elsewhere = own_file(sandbox.directory("elsewhere") / "settings.conf", "# elsewhere\n")
    (primary.data / "settings.conf").symlink_to(elsewhere)
    run(["mkfifo", primary.data / "pipe"])
    run(["mkdir", "-p", primary.data / "base" / "pgsql_tmp"])
    own_file(primary.data / "base" / "pgsql_tmp" / "pgsql_tmp1.0", "sort")
    unlogged = relation(primary, "unlogged")
    with contextlib.closing(primary.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE passing AS SELECT i FROM generate_series(1, 1000) i")
        cursor.execute("SELECT pg_relation_filepath('passing')")
        (temporary,) = cursor.fetchone()
        steps.start()
        result = steps.ok("backup_copy")
    special = {one["path"]: (one["kind"], one["target"]) for one in result["special_files"]}
    assert special == {"settings.conf": ("symlink", str(elsewhere)), "pipe": ("fifo", "")}
    data = steps.work / "data"
    for path in (unlogged, temporary, "base/pgsql_tmp", "pg_replslot/kept_for_ever", "settings.conf", "pipe"):
        assert (primary.data / path).exists() or path == temporary, path
        assert not (data / path).exists(), path
    assert (data / f"{unlogged}_init").is_file()
    assert (data / "pg_replslot").is_dir()
    steps.finish()

    followed = Steps(steps.modules, primary, "followed")
    followed.start()
    result = followed.ok("backup_copy", follow_symlinks=True)
    assert [one["path"] for one in result["special_files"]] == ["pipe"]
    followed.finish()
    copy = followed.published / "data" / "settings.conf"
    assert not copy.is_symlink()
    assert copy.read_text() == "# elsewhere\n"
    assert manifest(followed.published)["settings.conf"] == copy.stat().st_size


@BOTH
def test_copy_process_is_killed(sandbox: Sandbox, steps: Steps, primary: Server) -> None:
    """The session survives, and the next call keeps the files already copied."""
    steps.start()
    with steps.copying() as copy:
        wait_until(lambda: steps.progress.get("done_files", 0) > 100, f"files are copied: {steps.progress}")
        leader, *workers = steps.copy_processes()
        os.kill(leader, signal.SIGKILL)
        result = copy.result()
        wait_until(lambda: not steps.copy_processes(), f"the workers {workers} have ended")
    assert workers
    assert result["code"] == "copy_killed"
    assert "killed" in result["msg"]
    assert steps.fails("backup_stop")["code"] == "copy_not_finished"
    assert steps.ok("backup_copy")["reused_files"] > 100
    steps.finish()
    restores(sandbox, steps, primary)


def test_one_worker_is_killed(steps: Steps) -> None:
    """The other workers stop, and the copy reports what happened."""
    steps.start()
    with steps.copying() as copy:
        os.kill(steps.copy_processes()[1], signal.SIGKILL)
        result = copy.result()
    assert result["code"] == "copy_worker_died"
    assert "signal 9" in result["msg"]
    wait_until(lambda: not steps.copy_processes(), "all have ended")
    steps.finish()


@BOTH
def test_task_is_killed(steps: Steps) -> None:
    """The copy does not need the task that started it, and the next task finds it."""
    steps.start()
    with steps.copying(256 << 20) as copy:
        copy.kill()
        leader = steps.progress["pid"]
        result = steps.ok("backup_copy")
    assert result["finished"]
    assert result["reused_files"] == 0
    assert steps.progress["pid"] == leader
    steps.finish()


def test_two_tasks_copy(steps: Steps) -> None:
    """A second call while the copy runs waits for the same one."""
    steps.start()
    with steps.copying(256 << 20) as copy:
        second = Background(lambda: steps.run("backup_copy"))
        results = [copy.result(), second.result()]
    assert [one["finished"] for one in results] == [True, True]
    assert results[0]["files"] == results[1]["files"]
    steps.finish()
