# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's own judge, ``pg_verifybackup``, where it is installed.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup

# Where the packages of the distributions and of the PostgreSQL project put it.
PLACES = ("/usr/lib/postgresql/{major}/bin", "/usr/pgsql-{major}/bin")


LARGEST_OUTPUT = 100000


POLL_INTERVAL = 0.1


def find_tool(directory: t.Optional[str], major: int) -> str:
    """Return the path of ``pg_verifybackup`` of the major version, in ``directory`` when that is given.

    Raises :class:`BackupError`, code ``tool_missing``, when it is not there or of another version: it reads the
    manifests of its own version only.
    """
    places = (
        [directory] if directory else [*(place.format(major=major) for place in PLACES), os.environ.get("PATH", "")]
    )
    tool = shutil.which("pg_verifybackup", path=os.pathsep.join(places))
    found = "there is none"
    if tool:
        # run_command belongs to a module, and this runs where none is left.
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            [tool, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False
        )
        found = f"{tool} is {done.stdout.decode('utf-8', 'replace').strip()!r}"
        if f" {major}." in found or f" {major}devel" in found:
            return tool
    raise BackupError(
        f"pg_verifybackup of PostgreSQL {major} is needed, but {found}.",
        code="tool_missing",
        hint=f"Set {option('bin_directory')} to the directory of PostgreSQL's programs.",
    )


def run_tool(tool: str, backup: Backup, checksums: bool, wal: bool, check: t.Callable[[], None]) -> dict[str, t.Any]:
    """Run ``pg_verifybackup`` and return ``ok`` and ``output``; with ``wal`` it reads the WAL in the backup, too.

    ``check`` is called ten times a second; when it raises, the program is ended.
    """
    command = [tool, *([] if checksums else ["--skip-checksums"]), *([] if wal else ["--no-parse-wal"])]
    with tempfile.TemporaryFile() as output:
        # run_command belongs to a module, and knows no way to end what it started.
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
