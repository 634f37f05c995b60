# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding PostgreSQL's programs on this host.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option

# Where the packages of Debian and of the PostgreSQL project put the programs of one major version.
PACKAGED = ("/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin")


def find(name: str, major: int, bin_directory: t.Optional[str] = None, pid: t.Optional[int] = None) -> str:
    """Return the path of PostgreSQL's program ``name`` of the major version ``major``.

    It is looked for in ``bin_directory`` alone when that is given. Otherwise the order is: where the running server
    with the process id ``pid`` has its programs, ``PATH``, the directories of packages. Raises :class:`BackupError`,
    code ``programs_missing``, when none has it in this version.
    """
    found = []
    places = [bin_directory] if bin_directory else _places(name, major, pid)
    for place in places:
        program = os.path.join(place, name)
        version = _version_of(program)
        if version == major:
            return program
        if version is not None:
            found.append(f"{program} is of version {version}")
    raise BackupError(
        f"There is no {name} of PostgreSQL {major} in {', '.join(places)}{': ' if found else ''}{', '.join(found)}.",
        code="programs_missing",
        hint=f"Install the package of PostgreSQL {major} that has it, or set {option('bin_directory')}.",
    )


def _places(name: str, major: int, pid: t.Optional[int]) -> list[str]:
    places = []
    if pid is not None:
        try:
            # After an upgrade of the package the path ends in " (deleted)"; the directory is still the right one.
            places.append(os.path.dirname(os.readlink(f"/proc/{pid}/exe")))
        except OSError:
            # The process has ended, or is another account's.
            pass
    in_path = shutil.which(name)
    places += [os.path.dirname(in_path)] if in_path else []
    return places + [place.format(major) for place in PACKAGED]


def _version_of(program: str) -> t.Optional[int]:
    try:
        # pylint: disable=ansible-bad-function  # module_utils have no AnsibleModule, whose run_command this would be
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return None
    found = re.search(rb"\(PostgreSQL\) (\d+)", done.stdout)
    return int(found.group(1)) if found else None
