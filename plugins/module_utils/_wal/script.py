# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands that run ``pgfleet_wal.py``, for ``sh`` and with PostgreSQL's percent signs.

Private to pgfleet.basebackup. Room ``_wal``: names, records and archives of WAL; it knows no server and no backup.
"""

from __future__ import annotations

import os
import pwd
import shlex
import sys
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trust import (
    distrust,
    distrust_directory,
    trusted_users,
)

# Its name in the directory of the scripts.
SCRIPT = "pgfleet_wal.py"
COMPRESSIONS = ("none", "gzip", "zstd")


def default_directory() -> str:
    """Return the directory for the script, ``.pgfleet`` in the home of this user; "" when there is no home.

    Never in a repository: what lies there is data, which other hosts and their users may write.
    """
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""
    return os.path.join(home, ".pgfleet") if os.path.isdir(home) else ""


def installed() -> t.Optional[str]:
    """Return the path of the script in the default directory, None when it is not there or others can change it."""
    directory = default_directory()
    script = os.path.join(directory, SCRIPT)
    users = trusted_users()
    try:
        if not directory or distrust_directory(directory, users, "") or distrust(os.lstat(script), users, "", script):
            return None
        return script if os.path.isfile(script) and not os.path.islink(script) else None
    except OSError:
        return None


def quoted(word: str) -> str:
    """Return ``word`` for a command of PostgreSQL's configuration, which gives it to ``sh``."""
    return shlex.quote(word).replace("%", "%%")


def archive_command(script: str, directory: str, compression: str) -> str:
    """Return the ``archive_command`` by which ``script`` stores files in ``directory``."""
    options = "" if compression == "none" else f"--compress {compression} "
    return f'{_run(script)} archive {options}{quoted(directory)} "%p" "%f"'


def restore_command(script: str, directory: str) -> str:
    """Return the ``restore_command`` by which ``script`` fetches files from ``directory``."""
    # Without the script Python would exit with 2, which the server takes for a missing file.
    return f'[ -r {quoted(script)} ] || exit 255; {_run(script)} restore {quoted(directory)} "%f" "%p"'


def directory_of(command: str) -> str:
    """Return where an :func:`archive_command` stores files, "" when it is none."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    if "archive" not in words or len(words) < 4 or words[-2:] != ["%p", "%f"]:
        return ""
    return words[-3].replace("%%", "%")


def _run(script: str) -> str:
    return f"{quoted(sys.executable)} -I {quoted(script)}"
