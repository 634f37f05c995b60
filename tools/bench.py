# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure how fast copies and restores are, against ``cp -a`` and ``pg_basebackup``; prints Markdown tables.

Every contender runs once in each round; the median of the rounds counts. Times are those of whole processes, including
the start of the interpreter. Files are in the page cache when they are read.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

from tests.harness.playbook import host_vars, run_playbook
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.harness.user import own_directory

from .bench_measure import ENGINE, MB, Bench, Contender, Run, Target, cp, pg_basebackup
from .bench_restore import measure_restore

COLLECTIONS = pathlib.Path(sys.prefix) / "collections"


def engine(source: pathlib.Path, catalog_version: int, jobs: int, algorithm: str, sync: bool, control: bool) -> Run:
    """Return a run of the copy engine in its own process; the peak includes its workers' memory."""

    def run(target: pathlib.Path) -> int:
        options = {
            "source": str(source),
            "target": str(target),
            "catalog_version": catalog_version,
            "jobs": jobs,
            "algorithm": algorithm,
            "sync": sync,
            "control": control,
        }
        done = subprocess.run(
            [sys.executable, "-c", ENGINE.read_text(), "copy", json.dumps(options)],
            env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
            check=True,
            capture_output=True,
            text=True,
        )
        return int(done.stderr.split()[-1])

    return run


def engines(source: pathlib.Path, catalog_version: int, sync: bool, control: bool = True) -> list[Contender]:
    """Return the engine with one and two jobs, with and without checksums."""
    return [
        Contender(f"{algorithm} jobs={jobs}", engine(source, catalog_version, jobs, algorithm, sync, control))
        for algorithm in ("SHA256", "NONE")
        for jobs in (1, 2)
    ]


def make_cluster(sandbox: Sandbox, scale: int, incompressible: int) -> tuple[Server, int]:
    """Return a server with pgbench's tables and a table of ``incompressible`` MB, and its catalogue version."""
    server = sandbox.primary(archive=False, max_wal_size="128MB", min_wal_size="32MB", max_wal_senders=4)
    server.pgbench_init(scale)
    # 62 random UUIDs are 992 bytes a row, stored inline and uncompressed.
    server.sql("CREATE TABLE noise (id int, junk bytea)")
    server.sql("ALTER TABLE noise ALTER junk SET STORAGE PLAIN")
    server.sql(
        "INSERT INTO noise SELECT n, (SELECT string_agg(uuid_send(gen_random_uuid()), '') FROM generate_series(1, 62)"
        f" WHERE n > 0) FROM generate_series(1, {incompressible * 1000}) n"
    )
    server.sql("CHECKPOINT")
    server.sql("CHECKPOINT")
    return server, int(server.value("SELECT catalog_version_no FROM pg_control_system()"))


def make_small_files(directory: pathlib.Path, count: int) -> pathlib.Path:
    """Create files as many empty databases have them: ``count`` files of 8 to 64 kB, 300 per directory."""
    (directory / "pg_tblspc").mkdir()
    chance = random.Random(20000)  # noqa: S311 - the same files in every run, no secret
    blob = os.urandom(1 << 20)
    for number in range(count):
        parent = directory / "base" / str(16384 + number // 300)
        if number % 300 == 0:
            parent.mkdir(parents=True)
        size = chance.randrange(1, 9) * 8192
        begin = chance.randrange(len(blob) - size)
        (parent / str(10000 + number)).write_bytes(blob[begin : begin + size])
    return directory


def measure_cluster(bench: Bench, scale: int, incompressible: int, copies: bool, restores: bool) -> None:
    """Measure a cluster of a few large files: copies of it, and restores of a backup of it."""
    server, version = make_cluster(bench.sandbox, scale, incompressible)
    if copies:
        measure_copies(bench, server, version)
    if restores:
        measure_restore(bench, server)
    server.stop()


def measure_copies(bench: Bench, server: Server, version: int) -> None:
    """Measure copies of the cluster, without and with fsync."""
    size = sum(path.stat().st_size for path in server.data.rglob("*") if path.is_file())
    print(f"Cluster of {size / MB:.0f} MB, {os.cpu_count()} cores, Python {sys.version.split()[0]}.")
    basebackups = {
        sync: [
            Contender(f"pg_basebackup {algorithm}", pg_basebackup(server, algorithm, sync))
            for algorithm in ("CRC32C", "SHA256")
        ]
        for sync in (False, True)
    }
    bench.measure(
        "Without fsync",
        [*engines(server.data, version, False), Contender("cp -a", cp(server.data)), *basebackups[False]],
        [Target("SHA256 jobs=2", "cp -a", 1.15), Target("NONE jobs=2", "cp -a", 1.0)],
    )
    bench.measure(
        "With fsync",
        [*engines(server.data, version, True), *basebackups[True]],
        [Target("SHA256 jobs=2", "pg_basebackup SHA256", 0.6)],
    )


def measure_small_files(bench: Bench, count: int) -> None:
    """Measure many small files, without fsync."""
    source = make_small_files(bench.sandbox.directory("small"), count)
    bench.measure(
        f"{count} files of 8 to 64 kB, without fsync",
        [*engines(source, 1, False, control=False), Contender("cp -a", cp(source))],
        [Target("SHA256 jobs=2", "cp -a", 1.5)],
    )


def measure_role(sandbox: Sandbox, runs: int) -> None:
    """Measure what a run of the role costs apart from the copy: on a primary, and when there is nothing to do."""
    server = sandbox.primary()
    repository = sandbox.directory("repository")
    play = [{"hosts": "all", "gather_facts": False, "roles": ["pgfleet.basebackup.pg_backup"]}]
    variables = {"pg_backup_repository": str(repository), "pg_backup_fast": True, "pg_backup_archive_interval": 0.1}
    overhead: list[float] = []
    nothing: list[float] = []
    for _round in range(runs):
        for force, seconds in ((True, overhead), (False, nothing)):
            begun = time.monotonic()
            done = run_playbook(
                play,
                {"db1": host_vars(server)},
                directory=sandbox.root,
                extra_vars={**variables, "pg_backup_force": force},
            ).ok()
            copies = [event["result"]["seconds"] for event in done.of("db1", "ok") if "seconds" in event["result"]]
            seconds.append(time.monotonic() - begun - sum(copies))
    print("\n### The role: seconds apart from the copy, including ansible-playbook's start\n")
    print("| | median s | min–max s |")
    print("|---|---|---|")
    for name, times in (("a backup of a primary", overhead), ("nothing to do", nothing)):
        print(f"| {name} | {statistics.median(times):.1f} | {min(times):.1f}–{max(times):.1f} |")
    sys.stdout.flush()
    server.stop()


def main() -> None:
    """Run the parts that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path("/var/tmp"), help="on the disk to use")
    parser.add_argument("--runs", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--scale", type=int, default=100, help="pgbench scale, about 15 MB each (default: 100)")
    parser.add_argument("--incompressible", type=int, default=800, help="MB of random data (default: 800)")
    parser.add_argument("--files", type=int, default=20_000, help="small files (default: 20000)")
    parser.add_argument("--only", choices=["cluster", "restore", "small", "role"])
    given = parser.parse_args()
    sys.path.append(str(COLLECTIONS))
    with Sandbox(own_directory(given.directory / f"pgfleet-bench-{os.getpid()}")) as sandbox:
        bench = Bench(sandbox, given.runs)
        if given.only in (None, "small"):
            measure_small_files(bench, given.files)
        copies, restores = given.only in (None, "cluster"), given.only in (None, "restore")
        if copies or restores:
            measure_cluster(bench, given.scale, given.incompressible, copies, restores)
        if given.only in (None, "role"):
            measure_role(sandbox, given.runs)


if __name__ == "__main__":
    main()
