#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: server_state
short_description: Start, stop or restart a server that no service manager controls
version_added: 0.2.0
description:
  - Starts, stops or restarts the server of a data directory with C(pg_ctl). Use it for a restored server before its
    service takes over, for a drill, and for a server without a service.
  - The module identifies a server by its working directory, never by the number in C(postmaster.pid) alone, which after
    a reboot may belong to another server.
options:
  data_directory:
    description: Absolute path of the data directory.
    type: path
    required: true
  state:
    description:
      - V(started) ensures that the server runs. It may still be in recovery when the module returns; wait with
        M(pgfleet.basebackup.recovery_info).
      - V(stopped) ensures that no server runs, even if there is no data directory.
      - V(restarted) (since 0.3.0) stops a running server, starts it with the same command line and the same log file,
        and waits until it accepts connections. It refuses a server that does not run, because a cluster manager or an
        administrator may have stopped it.
    type: str
    choices: [started, stopped, restarted]
    required: true
  mode:
    description:
      - How to stop. V(smart) waits for the clients, V(fast) ends their sessions, V(immediate) leaves crash recovery to
        the next start.
    type: str
    choices: [smart, fast, immediate]
    default: fast
  timeout:
    description:
      - How long to wait until the server has stopped, and with O(state=restarted) as long again until it accepts
        connections. A duration.
    type: str
    default: 5 minutes
  bin_directory:
    description:
      - Directory of PostgreSQL's programs. Without it the module searches C(PATH), C(/usr/lib/postgresql/<major>/bin)
        and C(/usr/pgsql-<major>/bin). The major version must be that of the data directory. A running server is
        restarted with the programs that it runs from.
    type: path
  config_file:
    description:
      - The C(postgresql.conf), if it is outside the data directory. The default is the one in the data directory.
    type: path
  log_file:
    description:
      - File for what the server writes until its own logging begins. The default is C(startup.log) in
        O(data_directory).
      - A server that is restarted keeps the file that it writes to.
    type: path
extends_documentation_fragment:
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.unused
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes
attributes:
  idempotent:
    support: partial
    details:
      - With O(state=restarted) each call restarts the server.
notes:
  - It must run as the server's operating system user.
seealso:
  - module: pgfleet.basebackup.recovery_info
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Start the restored server
  pgfleet.basebackup.server_state:
    data_directory: /var/lib/postgresql/18/main
    state: started
    bin_directory: /usr/lib/postgresql/18/bin
    config_file: /etc/postgresql/18/main/postgresql.conf
    log_file: /var/log/postgresql/startup.log

- name: Stop it
  pgfleet.basebackup.server_state:
    data_directory: /var/lib/postgresql/18/main
    state: stopped
    mode: fast
    timeout: 600

- name: Restart a server without a service, for a parameter that needs it
  pgfleet.basebackup.server_state:
    data_directory: /var/lib/postgresql/18/main
    state: restarted
"""

RETURN = r"""
running:
  description: Whether the server runs now, or would in check mode.
  type: bool
  returned: success
was_running:
  description: Whether the server ran before.
  type: bool
  returned: success
data_directory:
  description: The data directory.
  type: str
  returned: success
bin_directory:
  description: Where PostgreSQL's programs are.
  type: str
  returned: when O(state=started), or O(state=restarted) outside check mode
log_file:
  description: The log of the server's start.
  type: str
  returned: when O(state=started), or O(state=restarted) outside check mode
log:
  description: The last lines of the log.
  type: list
  elements: str
  returned: when the server does not start or does not accept connections in time
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import duration, read_durations, run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import login_argument_spec
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.pg_ctl import (
    examine,
    major_of,
    restart,
    start,
    stop,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.programs import find
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.running import find_server, main_process


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            data_directory={"type": "path", "required": True},
            state={"type": "str", "choices": ["started", "stopped", "restarted"], "required": True},
            mode={"type": "str", "choices": ["smart", "fast", "immediate"], "default": "fast"},
            timeout=duration("5 minutes"),
            bin_directory={"type": "path"},
            config_file={"type": "path"},
            log_file={"type": "path"},
        ),
        supports_check_mode=True,
    )
    params = module.params
    directory = params["data_directory"]

    def started() -> dict[str, object]:
        programs = os.path.dirname(find("pg_ctl", major_of(directory), params["bin_directory"]))
        log_file = params["log_file"] or os.path.join(directory, "startup.log")
        found = {"bin_directory": programs, "log_file": log_file, "data_directory": directory, "was_running": False}
        if main_process(directory) is not None:
            return dict(found, changed=False, running=True, was_running=True, msg=f"The server on {directory} runs.")
        if module.check_mode:
            return dict(found, changed=True, running=True, msg=f"The server on {directory} would be started.")
        process = start(directory, programs, params["config_file"], log_file, params)
        what = "was started" if process else "was started and has shut down at its recovery target"
        return dict(found, changed=True, running=process is not None, msg=f"The server on {directory} {what}.")

    def stopped() -> dict[str, object]:
        if module.check_mode:
            changed = find_server(directory) is not None
        else:
            changed = stop(directory, params["mode"], params["timeout"])
        what = "does not run" if not changed else "would be stopped" if module.check_mode else "was stopped"
        msg = f"The server on {directory} {what}."
        return {"changed": changed, "running": False, "was_running": changed, "data_directory": directory, "msg": msg}

    def restarted() -> dict[str, object]:
        examine(directory)
        answer = {"changed": True, "running": True, "was_running": True, "data_directory": directory}
        if module.check_mode:
            return dict(answer, msg=f"The server on {directory} would be restarted.")
        after = restart(directory, params["bin_directory"], params["mode"], params["timeout"], params)
        found = {"bin_directory": after.programs, "log_file": after.log_file}
        return dict(answer, **found, msg=f"The server on {directory} was restarted.")

    def work() -> dict[str, object]:
        read_durations(params, may_be_zero="timeout")
        if not os.path.isabs(directory):
            raise BackupError(f"{option('data_directory')} must be an absolute path, not {directory}.", code="bad_path")
        return {"started": started, "stopped": stopped, "restarted": restarted}[params["state"]]()

    run(module, work)


if __name__ == "__main__":
    main()
