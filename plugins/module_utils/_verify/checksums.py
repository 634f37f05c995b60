# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checking a backup's files against their checksums.

Private to pgfleet.basebackup. Room ``_verify``: whether a published backup is still what was published; it only reads.
"""

from __future__ import annotations

import json
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.copier import FileCopier
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.workers import Reporter, batches, run_workers
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.quick import BadFile, Found, bad_file


def wrong_checksums(
    files: t.Sequence[Found],
    jobs: int,
    check: t.Callable[[], None],
    progress: t.Callable[[int, int], None],
) -> t.Iterator[BadFile]:
    """Yield the bad ones of ``files``, whose content is not what was backed up: ``checksum``, or ``unreadable``.

    Files without a checksum are skipped. ``jobs`` processes read. ``check`` is called ten times a second and stops
    them by raising; ``progress`` gets the bytes and files done.
    """
    work = [one for one in files if one.entry.algorithm]
    done_bytes = done_files = 0

    def hash_files(batch: t.Sequence[Found], reporter: Reporter) -> None:
        copiers: dict[str, FileCopier] = {}
        for one in batch:
            algorithm = str(one.entry.algorithm)
            if algorithm not in copiers:
                copiers[algorithm] = FileCopier(algorithm, False, reporter.advance)
            reporter.finish(_finding(one, copiers[algorithm]))

    tasks = batches(work, [one.entry.size for one in work])
    for report in run_workers(tasks, hash_files, jobs, check):
        done_bytes += report.done_bytes
        done_files += report.files
        progress(done_bytes, done_files)
        for line in report.lines.splitlines():
            yield json.loads(line)


def _finding(one: Found, copier: FileCopier) -> bytes:
    """Return a worker's line: nothing for a good file."""
    name = printable(one.entry.path)
    try:
        copied = copier.hash(one.place)
    except BackupError as exc:
        if exc.code != "unreadable":
            raise
        return json.dumps(bad_file(name, "unreadable", exc.msg)).encode("ascii") + b"\n"
    if copied.checksum == one.entry.checksum and copied.size == one.entry.size:
        return b""
    msg = f"Its {one.entry.algorithm} is {copied.checksum} instead of {one.entry.checksum}."
    return json.dumps(bad_file(name, "checksum", msg)).encode("ascii") + b"\n"
