# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's own ``pg_verifybackup``, where it is installed.

Private to pgfleet.basebackup. Room ``_verify``: whether a published backup is still what was published; it only reads.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup

LARGEST_OUTPUT = 100000
POLL_INTERVAL = 0.1


def run_tool(tool: str, backup: Backup, checksums: bool, wal: bool, check: t.Callable[[], None]) -> dict[str, t.Any]:
    """Run ``pg_verifybackup`` and return ``ok`` and ``output``; with ``wal`` it reads the WAL in the backup, too.

    ``check`` is called ten times a second; when it raises, the program is ended.
    """
    command = [tool, *([] if checksums else ["--skip-checksums"]), *([] if wal else ["--no-parse-wal"])]
    with tempfile.TemporaryFile() as output:
        # run_command belongs to a module, and cannot end the program early.
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function
            [os.fsencode(one) for one in command] + [backup.layout().data],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
        )
        try:
            while process.poll() is None:
                check()
                time.sleep(POLL_INTERVAL)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        text = output.read(LARGEST_OUTPUT).decode("utf-8", "replace").strip()
    return {"ok": process.returncode == 0, "output": text}
