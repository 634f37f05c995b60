#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: server_settings
short_description: Set parameters of a PostgreSQL server by ALTER SYSTEM
version_added: 0.2.0
description:
  - Sets parameters in C(postgresql.auto.conf), reloads the configuration, and reports which parameters wait for a
    restart. It never restarts the server.
  - A value that the configuration files already have, in whatever spelling or unit, is not changed again, even if it
    still waits for a restart.
  - Names, values and privileges are checked before anything is changed. If the server still refuses a value, the
    changes made before it are reverted.
options:
  settings:
    description:
      - Parameters with their values. V(null) removes the parameter from C(postgresql.auto.conf).
      - Values can have units, as in C(postgresql.conf). For C(shared_preload_libraries) and the like use a list or a
        text with commas.
      - The values are logged, and shown by C(--diff). Use C(no_log) for a task whose values are secret.
    type: dict
    default: {}
  names:
    description: Further parameters to return in RV(configured) and RV(running).
    type: list
    elements: str
    default: []
  load:
    description:
      - Libraries to C(LOAD) into the session first, so that the server knows their parameters and checks their values,
        for example V(basic_archive).
      - A library that is not installed is returned in RV(missing_libraries). That is a failure only if O(settings) has
        one of its parameters.
    type: list
    elements: str
    default: []
  reload:
    description: Reload the configuration after a change, and wait until the server has read it.
    type: bool
    default: true
extends_documentation_fragment:
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.connects
  - pgfleet.basebackup.attributes
attributes:
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - A login role that may not read C(pg_file_settings) does not see a value that waits for a restart, and sets it
        again.
notes:
  - The login role must be a superuser. On PostgreSQL 15 and later it is enough to grant it C(ALTER SYSTEM) on each
    parameter, and C(EXECUTE) on C(pg_reload_conf()).
seealso:
  - name: ALTER SYSTEM
    description: The command that the module runs.
    link: https://www.postgresql.org/docs/current/sql-altersystem.html
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: WAL is archived by basic_archive
  pgfleet.basebackup.server_settings:
    load: [basic_archive]
    names: [wal_level, archive_command]
    settings:
      archive_mode: "on"
      archive_library: basic_archive
      basic_archive.archive_directory: /srv/wal
  register: settings

- name: Show whether a restart is needed
  ansible.builtin.debug:
    msg: "{{ settings.pending_restart }}"
"""

RETURN = r"""
pending_restart:
  description:
    - All parameters of the server, set by this task or not, whose value in the configuration files waits for a restart.
  type: list
  elements: str
  returned: success
  sample: [archive_mode]
configured:
  description:
    - For each name in O(settings) and O(names), the value in the configuration files, or the built-in one. It takes
      effect after a restart at the latest. In check mode, the value that it would have.
    - V(null) if unknown, for example for a parameter that the server does not have.
  type: dict
  returned: success
  sample:
    archive_mode: "on"
running:
  description: For the same names, the value that the server runs with, as C(SHOW) prints it.
  type: dict
  returned: success
  sample:
    archive_mode: "off"
missing_libraries:
  description: Libraries in O(load) that are not installed.
  type: list
  elements: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import (
    Connection,
    login_argument_spec,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.settings import Parameters, as_lines, running


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            settings={"type": "dict", "default": {}},
            names={"type": "list", "elements": "str", "default": []},
            load={"type": "list", "elements": "str", "default": []},
            reload={"type": "bool", "default": True},
        ),
        supports_check_mode=True,
    )
    params = module.params

    def work() -> dict[str, object]:
        names = [*params["settings"], *params["names"]]
        with Connection(params) as connection:
            server = Parameters(connection, names, params["load"])
            changes = server.plan(params["settings"])
            if changes:
                server.require_rights(changes, params["reload"])
            pending = server.pending_restart(changes)
            if changes and not module.check_mode:
                server.apply(changes)
                if params["reload"]:
                    server.reload()
                    pending = server.pending_restart()
            configured = {name: server.value(name) for name in names}
            configured.update((change.name, server.value_after(change)) for change in changes)
            changed = ", ".join(change.name for change in changes)
            msg = (
                f"{'Would change' if module.check_mode else 'Changed'}: {changed}." if changes else "Nothing to change."
            )
            if pending:
                msg += f" Waiting for a restart: {', '.join(pending)}."
            return {
                "changed": bool(changes),
                "msg": msg,
                "diff": {"before": as_lines(changes, after=False), "after": as_lines(changes, after=True)},
                "pending_restart": pending,
                "configured": configured,
                "running": running(connection, names),
                "missing_libraries": server.missing_libraries,
            }

    run(module, work)


if __name__ == "__main__":
    main()
