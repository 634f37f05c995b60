#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: amcheck
short_description: Compare the tables of a restored server with their indexes
version_added: 0.3.0
description:
  - Runs C(pg_amcheck) over all databases, and fails if it finds corruption.
  - The expressions of an index are code of the database. So C(pg_amcheck) runs as a role without rights, which is made
    for it and removed at the end.
  - It is meant for a restored copy. The extension C(amcheck) is installed in each database that does not have it, and
    remains there.
options:
  options:
    description: Further options of C(pg_amcheck).
    type: list
    elements: str
    default: [--heapallindexed]
  bin_directory:
    description: Directory of C(pg_amcheck). By default it is searched for as in M(pgfleet.basebackup.server_state).
    type: path
extends_documentation_fragment:
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.connects
  - pgfleet.basebackup.attributes
attributes:
  check_mode:
    support: none
  diff_mode:
    support: none
  idempotent:
    support: full
seealso:
  - module: pgfleet.basebackup.sql_check
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Every index has the rows of its table
  pgfleet.basebackup.amcheck:
    login_unix_socket: /run/postgresql
    options: [--heapallindexed, --jobs=4]
"""

RETURN = r"""
rc:
  description: Exit status of C(pg_amcheck); 2 is corruption.
  type: int
  returned: when it could be run
  sample: 0
output:
  description: The first 100,000 bytes of its output.
  type: str
  returned: when it could be run
  sample: ""
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.amcheck import run_amcheck
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import login_argument_spec


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            options={"type": "list", "elements": "str", "default": ["--heapallindexed"]},
            bin_directory={"type": "path"},
        ),
    )
    params = module.params

    def work() -> dict[str, object]:
        done = run_amcheck(params, params["bin_directory"], params["options"])
        if done["rc"] != 0:
            said = " ".join(str(done["output"]).split()) or "no message"
            raise BackupError(
                f"pg_amcheck ended with the status {done['rc']}: {said}",
                code="amcheck_failed",
                hint="If it names relations, they are corrupt. Were they so at the source? Run pg_amcheck there.",
                **done,
            )
        return {"changed": False, **done, "msg": str(done["output"]) or "No corruption was found."}

    run(module, work)


if __name__ == "__main__":
    main()
