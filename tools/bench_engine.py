# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that the benchmark runs in their own process, so that the memory of the work and its workers is known.

``copy`` takes its options as JSON in the second argument. ``restore`` runs the module backup_restore; the second
argument is its number of jobs. The last word of the output is the peak in kB.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import sys

from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.copy import copy_cluster, copy_control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.tree import scan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.detached import Job, Recorder


def report(jobs: int) -> None:
    """Write the peak memory of this process and its workers."""
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(own + jobs * children, file=sys.stderr)


def copy() -> None:
    """Copy a data directory."""
    options = json.loads(sys.argv[2])
    source, target = os.fsencode(options["source"]), os.fsencode(options["target"])
    algorithm, sync = options["algorithm"], options["sync"]
    copy_cluster(
        scan(source, 18, options["catalog_version"]), target, target + b".jsonl", jobs=options["jobs"],
        algorithm=algorithm, sync=sync, check=lambda: None, progress=lambda _bytes, _files: None,
    )  # fmt: skip
    if options["control"]:
        copy_control(source, target, algorithm=algorithm, sync=sync)
    report(options["jobs"])


def restore() -> None:
    """Run the module with its work in this process instead of a detached one."""
    # Not at the top: the import takes longer than a small copy.
    from ansible_collections.pgfleet.basebackup.plugins.modules import backup_restore

    def launch(self: Job, lock: int) -> None:
        self.make_folder()
        recorder = Recorder(self.folder)
        recorder.begin()
        self._run(recorder)

    setattr(Job, "launch", launch)  # noqa: B010 - mypy rejects an assignment
    atexit.register(report, int(sys.argv.pop()))
    # The module would read its parameters from a file named by an argument.
    sys.argv.pop()
    backup_restore.main()


if __name__ == "__main__":
    {"copy": copy, "restore": restore}[sys.argv[1]]()
