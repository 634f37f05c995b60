#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: recovery_info
short_description: Report how far a server has recovered, and wait for it
version_added: 0.2.0
description:
  - Reports up to which LSN and which transaction a server has recovered, and whether recovery has ended.
  - With O(wait_for) the module waits for that point. With O(data_directory), the wait ends at once if the server dies,
    and the failure shows the end of its log.
options:
  data_directory:
    description:
      - The server's data directory. With it, the module distinguishes a server that does not answer from one that has
        died, recognises one that has shut down at its recovery target (RV(reached=shutdown)), and refuses another
        server that answers in its place. Without it the module knows only what answers.
      - The module must then run as the server's operating system user.
    type: path
  log_file:
    description: The server's log; its end is part of the failure if the server has died. Not read by default.
    type: path
  wait_for:
    description:
      - V(none) asks once and fails if the server does not answer.
      - V(consistent) waits until the server answers queries, during recovery or after it.
      - V(target) waits until recovery has reached its target, or the end of the WAL without one. It was then promoted,
        paused, or has shut down, as C(recovery_target_action) says. A standby without a target never reaches it.
    type: str
    choices: [none, consistent, target]
    default: none
  timeout:
    description: How long to wait, a duration. Recovery continues afterwards.
    type: str
    default: 1 hour
  interval:
    description: Duration between two checks.
    type: str
    default: 1 second
extends_documentation_fragment:
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.connects
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes.info
seealso:
  - module: pgfleet.basebackup.backup_restore
  - module: pgfleet.basebackup.sql_check
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Wait until recovery has reached its target
  pgfleet.basebackup.recovery_info:
    login_unix_socket: /run/postgresql
    data_directory: /var/lib/postgresql/18/main
    log_file: /var/lib/postgresql/18/main/startup.log
    wait_for: target
    timeout: 7200
    interval: 10
  register: recovery

- name: Show how far it recovered
  ansible.builtin.debug:
    msg: "{{ recovery.reached }} at {{ recovery.replay_lsn }}, {{ recovery.last_transaction_at }}"
"""

RETURN = r"""
reached:
  description:
    - V(promoted) means that recovery has ended, V(paused) or V(shutdown) that it is at the target, V(consistent) that
      it continues.
    - A server that was shut down by other means during recovery is also reported as V(shutdown).
  type: str
  returned: success
  sample: promoted
running:
  description: Whether the server runs.
  type: bool
  returned: success
in_recovery:
  description: Whether it is in recovery, or a standby.
  type: bool
  returned: success
paused:
  description: Whether replay is paused.
  type: bool
  returned: success
replay_lsn:
  description: The end of the last record that was replayed; null if the server was started without recovery.
  type: str
  returned: success
  sample: 0/5000148
last_transaction_at:
  description:
    - Commit or abort time of the last transaction that was replayed, in UTC with microseconds; null if there was none
      since the server's start, or the server has shut down.
  type: str
  returned: success
  sample: "2026-11-22T11:32:07.123456Z"
timeline:
  description: The server's timeline.
  type: int
  returned: success
  sample: 2
system_identifier:
  description: The cluster's identifier.
  type: str
  returned: success
data_checksums:
  description: Whether data checksums are on.
  type: bool
  returned: success
log:
  description: The last lines of O(log_file).
  type: list
  elements: str
  returned: when the server has died
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import duration, read_durations, run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import (
    login_argument_spec,
    require_psycopg2,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.recovery import Waiter


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            data_directory={"type": "path"},
            log_file={"type": "path"},
            wait_for={"type": "str", "choices": ["none", "consistent", "target"], "default": "none"},
            timeout=duration("1 hour"),
            interval=duration("1 second"),
        ),
        supports_check_mode=True,
    )
    params = module.params

    def work() -> dict[str, object]:
        require_psycopg2()
        read_durations(params, positive="interval", may_be_zero="timeout")
        names = ("data_directory", "log_file", "wait_for", "timeout", "interval")
        answer = Waiter(params, *(params[name] for name in names)).wait()
        answer.pop("may_pause", None)
        where = f"{answer['reached']} at {answer['replay_lsn']} on timeline {answer['timeline']}"
        last = answer["last_transaction_at"]
        msg = f"Recovery: {where}, last transaction {f'at {last}' if last else 'unknown'}."
        return dict(answer, changed=False, msg=msg)

    run(module, work)


if __name__ == "__main__":
    main()
