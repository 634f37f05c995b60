# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make molecule``: run the scenarios in extensions/molecule on a temporary primary and its standby.

The scenarios find the two as hosts ``primary`` and ``standby`` of the group ``databases`` in the inventory file that
``PGFLEET_INVENTORY`` names, with login, repository and interpreter as variables, and ``molecule_archive`` and
``molecule_binaries`` for the verification.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import yaml

from tests.harness import binaries
from tests.harness.modules import CLONE
from tests.harness.playbook import ansible_environment, bin_path, host_vars
from tests.harness.sandbox import Sandbox


def main() -> int:
    """Run ``molecule test`` with the arguments given; without any, run all scenarios."""
    with Sandbox() as sandbox:
        primary = sandbox.primary(tablespaces=["extra"])
        standby = sandbox.standby(primary)
        common = {
            "pg_backup_repository": str(sandbox.directory("repository")),
            "molecule_archive": str(primary.archive),
            "molecule_binaries": str(pathlib.Path(binaries.tool(primary.major, "postgres")).parent),
        }
        hosts = {server.name: {**host_vars(server), **common} for server in (primary, standby)}
        inventory = sandbox.root / "inventory.yml"
        inventory.write_text(yaml.safe_dump({"databases": {"hosts": hosts}}))
        env = {**ansible_environment(sandbox.directory("molecule", mode=0o755)), "PGFLEET_INVENTORY": str(inventory)}
        # Molecule writes its state below the home; the terminal's width must not wrap the output.
        env.update(HOME=str(sandbox.root / "molecule"), COLUMNS="120", PGFLEET_ROOT=str(sandbox.root))
        command = [bin_path("molecule"), "test", *(sys.argv[1:] or ["--all"])]
        return subprocess.run(command, cwd=CLONE / "extensions", env={**os.environ, **env}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
