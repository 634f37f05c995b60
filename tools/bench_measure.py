# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the benchmark measures: contenders in turn, medians, ratios, targets, and the reference programs."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import time
import typing as t

from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server

MB = 1_000_000
# Passed as text to the database hosts' Python, whose user may not be able to read the clone.
ENGINE = pathlib.Path(__file__).with_name("bench_engine.py")

# Copies to the directory and returns its peak memory in kB, 0 if not measured.
Run = t.Callable[[pathlib.Path], int]


@dataclasses.dataclass
class Contender:
    """A program to measure, its preparation before each run, and its results."""

    name: str
    run: Run
    prepare: t.Callable[[], None] | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)
    peak: int = 0

    @property
    def median(self) -> float:
        """The median of the rounds, in seconds."""
        return statistics.median(self.seconds)


@dataclasses.dataclass
class Target:
    """``name`` must take at most ``limit`` times as long as ``against``."""

    name: str
    against: str
    limit: float


class Bench:
    """The directories of one run of the benchmark."""

    def __init__(self, sandbox: Sandbox, runs: int) -> None:
        self.sandbox = sandbox
        self.runs = runs
        self._made = 0

    def measure(self, title: str, contenders: t.Sequence[Contender], targets: t.Sequence[Target]) -> None:
        """Run all contenders in turn and print a table and the targets."""
        for _round in range(self.runs):
            for contender in contenders:
                self._made += 1
                target = self.sandbox.directory(f"copy-{self._made}")
                if contender.prepare:
                    contender.prepare()
                os.sync()
                begun = time.monotonic()
                peak = contender.run(target)
                contender.seconds.append(time.monotonic() - begun)
                contender.peak = max(contender.peak, peak)
                empty(target)
        report(title, contenders, targets)


def empty(directory: pathlib.Path) -> None:
    """Free the space of a copy but keep its files: after many deletions ext4 is slow to find free inodes."""
    for parent, _names, files in os.walk(directory):
        for name in files:
            os.truncate(os.path.join(parent, name), 0)


def report(title: str, contenders: t.Sequence[Contender], targets: t.Sequence[Target]) -> None:
    """Print the medians, their spread and ratios."""
    print(f"\n### {title}\n")
    bases = list(dict.fromkeys(target.against for target in targets))
    by_name = {contender.name: contender for contender in contenders}
    print("| | median s | min–max s | peak MB |" + "".join(f" × {base} |" for base in bases))
    print("|---|---|---|---|" + "---|" * len(bases))
    for one in contenders:
        ratios = "".join(f" {one.median / by_name[base].median:.2f} |" for base in bases)
        peak = f"{one.peak * 1024 / MB:.0f}" if one.peak else ""
        print(f"| {one.name} | {one.median:.2f} | {min(one.seconds):.2f}–{max(one.seconds):.2f} | {peak} |{ratios}")
    print()
    for target in targets:
        ratio = by_name[target.name].median / by_name[target.against].median
        verdict = "reached" if ratio <= target.limit else "MISSED"
        print(f"- {target.name}: {ratio:.2f} × {target.against}, target {target.limit}: {verdict}")
    sys.stdout.flush()


def cp(source: pathlib.Path) -> Run:
    """Return a run of ``cp -a``."""

    def run(target: pathlib.Path) -> int:
        subprocess.run(["cp", "-a", source, target / "data"], check=True)
        return 0

    return run


def pg_basebackup(server: Server, algorithm: str, sync: bool) -> Run:
    """Return a run of ``pg_basebackup -Fp`` without WAL."""

    def run(target: pathlib.Path) -> int:
        options = ["-Fp", "-X", "none", "-c", "fast", "--no-estimate-size", f"--manifest-checksums={algorithm}"]
        server.tool("pg_basebackup", "-D", target / "data", *options, *([] if sync else ["--no-sync"]), timeout=600)
        return 0

    return run
