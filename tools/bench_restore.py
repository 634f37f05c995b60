# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark's restores: full ones against ``cp -a``, and repairs of a damaged directory."""

from __future__ import annotations

import json
import os
import pathlib
import random
import typing as t

from tests.harness import binaries
from tests.harness.modules import Modules, payload, run_module_as
from tests.harness.servers import Server
from tests.harness.user import run

from .bench_measure import ENGINE, MB, Bench, Contender, Run, Target, cp, pg_basebackup


class Restores:
    """Restores of one backup, which holds its own WAL."""

    def __init__(self, server: Server, repository: pathlib.Path) -> None:
        common: dict[str, t.Any] = {"repository": str(repository), "cluster": "main", "backup_id": "one"}
        modules = Modules(server, as_server=True, **common)
        modules.ok("backup_start", fast=True, wal="include")
        for name in ("backup_copy", "backup_stop", "backup_publish"):
            modules.ok(name)
        self.common = {**common, "recovery_target": "immediate", "restore_as": "copy", "sync": False}
        self.backup = repository / "main" / "backups" / "one"

    def arguments(self, target: pathlib.Path) -> dict[str, t.Any]:
        """Return the arguments of a restore without fsync."""
        return {**self.common, "data_directory": str(target)}

    def run(self, target: pathlib.Path, **options: t.Any) -> None:
        """Restore with the module, as a task does."""
        arguments = {**self.arguments(target), **options}
        result = run_module_as("backup_restore", arguments, python=binaries.server_python(), timeout=600)
        assert not result.get("failed"), result

    def full(self, jobs: int, sync: bool) -> Run:
        """Return a restore into an empty directory."""

        def restore(target: pathlib.Path) -> int:
            self.run(target / "data", jobs=jobs, sync=sync)
            return 0

        return restore

    def peak(self, target: pathlib.Path, jobs: int = 2, **options: t.Any) -> int:
        """Return the peak memory in kB of a restore, including its workers; its time would not be the module's."""
        command = [binaries.server_python(), "-c", ENGINE.read_text(), "restore", str(jobs)]
        stdin = json.dumps({"ANSIBLE_MODULE_ARGS": {**self.arguments(target), "jobs": jobs, **options}})
        done = run(command, env={"PYTHONPATH": str(payload())}, stdin=stdin, timeout=600)
        return int(done.stderr.split()[-1])

    def delta(self, place: pathlib.Path, share: float, sync: bool) -> Contender:
        """Return the repair of a directory with ``share`` of its bytes in damaged files; each run damages it first."""
        chance = random.Random(1)  # noqa: S311 - the same files in every run, no secret

        def repair(_target: pathlib.Path) -> int:
            self.run(place, sync=sync, delta=True, force=True)
            return 0

        def damage() -> None:
            files = sorted(path for path in (place / "base").rglob("*") if path.is_file())
            wanted = share * sum(path.stat().st_size for path in files)
            chance.shuffle(files)
            for path in files:
                size = path.stat().st_size
                if 0 < size <= wanted:
                    with path.open("r+b") as file:
                        file.seek(chance.randrange(size))
                        file.write(b"\xff\x00damage")
                        file.truncate(size)
                    wanted -= size

        return Contender(f"delta of {share:.0%}", repair, prepare=damage)


def measure_restore(bench: Bench, server: Server) -> None:
    """Measure full restores and repairs of a cluster, without and with fsync."""
    restores = Restores(server, bench.sandbox.directory("restore-repository"))
    data = restores.backup / "data"
    size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
    print(f"A backup of {size / MB:.0f} MB, {os.cpu_count()} cores.")
    place = bench.sandbox.directory("repaired") / "data"
    restores.run(place)
    for sync in (False, True):
        full = [Contender(f"full jobs={jobs}", restores.full(jobs, sync)) for jobs in (1, 2)]
        delta = restores.delta(place, 0.01, sync)
        others = [Contender("pg_basebackup SHA256", pg_basebackup(server, "SHA256", sync))]
        targets = [Target("delta of 1%", "full jobs=2", 0.5)]
        if not sync:
            others.append(Contender("cp -a", cp(data)))
            targets.insert(0, Target("full jobs=2", "cp -a", 1.2))
            for contender, jobs in zip(full, (1, 2), strict=True):
                target = bench.sandbox.directory(f"peak-{jobs}") / "data"
                contender.peak = restores.peak(target, jobs=jobs)
            delta.peak = restores.peak(place, delta=True, force=True)
        bench.measure(f"Restore, {'with' if sync else 'without'} fsync", [*full, delta, *others], targets)
