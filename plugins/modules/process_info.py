#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: process_info
short_description: Show who runs the server of a data directory, and with what
version_added: 0.3.0
description:
  - Finds the running server of a data directory and returns who runs it (a unit of systemd, Patroni or another
    supervisor, a container, or only C(pg_ctl)), its configuration files, programs, sockets, log and account.
  - No login is needed; everything is read from C(/proc), C(postmaster.pid) and the configuration files.
  - With O(state) it also returns how the server can be brought into that state, and fails when only others may do it.
options:
  data_directory:
    description: Absolute path of the data directory.
    type: path
    required: true
  state:
    description: What is about to be done with the server.
    type: str
    choices: [started, stopped, restarted]
  service:
    description:
      - The unit that is to be used. The module finds the unit by itself; one that is not the server's is refused.
    type: str
    default: ""
  run_by:
    description:
      - RV(run_by) of the server when it ran, from an earlier call or from the record of a backup. It is used only if
        the server does not run and it was on the same data directory.
    type: dict
    default: {}
extends_documentation_fragment:
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.unused
  - pgfleet.basebackup.attributes.info
notes:
  - It must run as the server's operating system user.
seealso:
  - module: pgfleet.basebackup.server_service
  - module: pgfleet.basebackup.server_state
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Who runs the server?
  pgfleet.basebackup.process_info:
    data_directory: /var/lib/postgresql/18/main
  register: server

- name: Show it
  ansible.builtin.debug:
    msg: "{{ server.run_by.kind }} {{ server.run_by.unit }}"
"""

RETURN = r"""
running:
  description: Whether the server runs.
  type: bool
  returned: success
data_directory:
  description: The data directory.
  type: str
  returned: success
way:
  description:
    - V(unit) for M(pgfleet.basebackup.server_service), V(user_unit) for the same with
      O(pgfleet.basebackup.server_service#module:scope=user), V(pg_ctl) for M(pgfleet.basebackup.server_state).
  type: str
  returned: when O(state) is given
unit:
  description: The unit to be used, empty without one.
  type: str
  returned: when O(state) is given
run_by:
  description: Who runs the server, and with what; null when it does not run.
  type: dict
  returned: success
  contains:
    kind:
      description:
        - V(systemd) is a unit of the system, V(systemd_user) one of a user's manager.
        - V(patroni) and V(supervisor) start a stopped server again or act when it stops.
        - V(container) is a process 1 that is no init system, or another namespace.
        - V(none) is a server that was started by hand.
      type: str
    unit:
      description: The unit of systemd in whose control group the server is, empty without one.
      type: str
    program:
      description: The program of the supervisor, empty without one.
      type: str
    pid:
      description: The process of the supervisor, null without one.
      type: int
    main_pid:
      description: The main process of the server.
      type: int
    data_directory:
      description: Its working directory.
      type: str
    config_file:
      description: Its C(postgresql.conf).
      type: str
    hba_file:
      description: Its C(pg_hba.conf).
      type: str
    ident_file:
      description: Its C(pg_ident.conf).
      type: str
    external_pid_file:
      description: Its additional file with the process id, empty without one.
      type: str
    bin_directory:
      description: Where its programs are.
      type: str
    socket_directories:
      description: The directories of its sockets.
      type: list
      elements: str
    port:
      description: Its port, 0 when unknown.
      type: int
    log_file:
      description: The file that it writes its log to, empty when it is no file.
      type: str
    os_user:
      description: The account that it runs as.
      type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import login_argument_spec
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.process import run_by, server_process
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.way import way_of


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            data_directory={"type": "path", "required": True},
            state={"type": "str", "choices": ["started", "stopped", "restarted"]},
            service={"type": "str", "default": ""},
            run_by={"type": "dict", "default": {}},
        ),
        supports_check_mode=True,
    )
    params = module.params
    directory = params["data_directory"]

    def work() -> dict[str, object]:
        if not os.path.isabs(directory):
            raise BackupError(f"{option('data_directory')} must be an absolute path, not {directory}.", code="bad_path")
        process = server_process(directory)
        facts = run_by(process) if process else None
        answer = {"changed": False, "running": process is not None, "data_directory": directory, "run_by": facts}
        if params["state"]:
            way = way_of(directory, process, params["state"], params["service"], params["run_by"] or {})
            answer.update(way=way.by, unit=way.unit)
        what = f"runs as process {process.pid}" if process else "does not run"
        return dict(answer, msg=f"The server on {directory} {what}.")

    run(module, work)


if __name__ == "__main__":
    main()
