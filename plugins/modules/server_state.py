#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: server_state
short_description: Start, stop or restart a server that nobody manages
version_added: 0.2.0
description:
  - Starts, stops or restarts the server of a data directory as C(pg_ctl) does. Use it for a copy, for a drill, and for
    a server without a service. A server that a unit of systemd, Patroni, another supervisor or a container runs is
    refused; see M(pgfleet.basebackup.process_info) and M(pgfleet.basebackup.server_service).
  - A start names C(data_directory), C(config_file), C(hba_file), C(ident_file) and C(external_pid_file) on the command
    line, because C(data_directory) in a configuration file beats C(-D). What has started is checked, and stopped again
    if it is not the server of O(data_directory).
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
  unit:
    description:
      - The unit of systemd that has started or restarted the server. With it the module starts nothing; it checks that
        the server runs on O(data_directory) and under this unit, with O(state=restarted) also that it accepts
        connections.
    type: str
    version_added: 0.3.0
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
run_by:
  description:
    - Who runs the server now, or ran it before it was stopped, and with what; null when it does not run. The fields
      are those of M(pgfleet.basebackup.process_info).
  type: dict
  returned: success
log:
  description: The last lines of the log.
  type: list
  elements: str
  returned: when the server does not start or does not accept connections in time
"""

import os
import typing as t

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
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.process import (
    ServerProcess,
    run_by,
    server_process,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.programs import find
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.running import find_server
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.under_unit import check_unit
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.way import refuse_managed


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            data_directory={"type": "path", "required": True},
            state={"type": "str", "choices": ["started", "stopped", "restarted"], "required": True},
            mode={"type": "str", "choices": ["smart", "fast", "immediate"], "default": "fast"},
            timeout=duration("5 minutes"),
            unit={"type": "str"},
            bin_directory={"type": "path"},
            config_file={"type": "path"},
            log_file={"type": "path"},
        ),
        supports_check_mode=True,
    )
    params = module.params
    directory = params["data_directory"]
    subject = f"The server on {directory}"

    def facts(process: t.Optional[ServerProcess]) -> t.Optional[dict[str, object]]:
        return run_by(process) if process else None

    def started() -> dict[str, object]:
        programs = os.path.dirname(find("postgres", major_of(directory), params["bin_directory"]))
        log_file = params["log_file"] or os.path.join(directory, "startup.log")
        found = {"bin_directory": programs, "log_file": log_file, "data_directory": directory, "was_running": False}
        before = server_process(directory)
        if before is not None:
            answer = dict(found, changed=False, running=True, was_running=True, run_by=facts(before))
            return dict(answer, msg=f"The server on {directory} runs.")
        refuse_managed(directory, "started")
        if module.check_mode:
            return dict(found, changed=True, running=True, run_by=None, msg=f"{subject} would be started.")
        process = start(directory, programs, params["config_file"], log_file, params)
        what = "was started" if process else "was started and has shut down at its recovery target"
        after = facts(server_process(directory))
        return dict(found, changed=True, running=process is not None, run_by=after, msg=f"{subject} {what}.")

    def stopped() -> dict[str, object]:
        before = find_server(directory) and server_process(directory)
        refuse_managed(directory, "stopped")
        if module.check_mode:
            changed = find_server(directory) is not None
        else:
            changed = stop(directory, params["mode"], params["timeout"])
        what = "does not run" if not changed else "would be stopped" if module.check_mode else "was stopped"
        answer = {"changed": changed, "running": False, "was_running": changed, "data_directory": directory}
        return dict(answer, run_by=facts(before), msg=f"{subject} {what}.")

    def restarted() -> dict[str, object]:
        before = examine(directory)
        refuse_managed(directory, "restarted")
        answer = {"changed": True, "running": True, "was_running": True, "data_directory": directory}
        if module.check_mode:
            return dict(answer, run_by=facts(before), msg=f"{subject} would be restarted.")
        after = restart(directory, params["bin_directory"], params["mode"], params["timeout"], params)
        answer.update(bin_directory=after.programs, log_file=after.log_file)
        return dict(answer, run_by=facts(server_process(directory)), msg=f"{subject} was restarted.")

    def checked() -> dict[str, object]:
        answer = {"changed": False, "was_running": True, "data_directory": directory}
        process = check_unit(directory, params["unit"], params["state"] == "restarted", params["timeout"])
        what = f"runs under the unit {params['unit']}" if process else "has shut down at its recovery target"
        return dict(answer, running=process is not None, run_by=facts(process), msg=f"{subject} {what}.")

    def work() -> dict[str, object]:
        read_durations(params, may_be_zero="timeout")
        if not os.path.isabs(directory):
            raise BackupError(f"{option('data_directory')} must be an absolute path, not {directory}.", code="bad_path")
        if params["unit"] and params["state"] != "stopped":
            return checked()
        return {"started": started, "stopped": stopped, "restarted": restarted}[params["state"]]()

    run(module, work)


if __name__ == "__main__":
    main()
