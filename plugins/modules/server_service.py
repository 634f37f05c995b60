#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: server_service
short_description: Start, stop or restart a unit of systemd with few rights
version_added: 0.3.0
description:
  - Starts, stops or restarts the unit of a server. Run it as the user that Ansible logs in as. As root it calls
    C(systemctl), otherwise C(sudo -n systemctl), for which a narrow rule of sudo is enough.
  - If there is no such rule and the task has C(become) to root, the module becomes root as usual, with the password if
    that is set.
  - The right is tested before anything is changed, also in check mode. A refusal contains the line of sudoers that is
    missing.
  - It does not wait for the end of a long recovery. A started unit counts when it has a main process; wait with
    M(pgfleet.basebackup.recovery_info).
options:
  unit:
    description: The unit, with or without C(.service).
    type: str
    required: true
  state:
    description:
      - V(started) ensures that the unit has a main process, V(stopped) that it is inactive.
      - V(restarted) restarts it in each call.
    type: str
    choices: [started, stopped, restarted]
    required: true
  rights:
    description: Further states whose right is tested before anything is changed.
    type: list
    elements: str
    choices: [started, stopped, restarted]
    default: []
  scope:
    description:
      - V(user) is for a unit of the manager of the user that runs the module (C(systemctl --user)).
    type: str
    choices: [system, user]
    default: system
  timeout:
    description: How long to wait. A duration.
    type: str
    default: 5 minutes
extends_documentation_fragment:
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes.ungrouped
attributes:
  idempotent:
    support: partial
    details:
      - With O(state=restarted) each call restarts the unit.
requirements:
  - systemd
seealso:
  - module: pgfleet.basebackup.process_info
  - module: pgfleet.basebackup.server_state
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Test the right to restart the server
  pgfleet.basebackup.server_service:
    unit: postgresql@18-main
    state: restarted
  check_mode: true

- name: Restart it
  pgfleet.basebackup.server_service:
    unit: postgresql@18-main
    state: restarted
"""

RETURN = r"""
unit:
  description: The unit with its suffix.
  type: str
  returned: success
running:
  description: Whether the unit has a main process now, or would in check mode.
  type: bool
  returned: success
was_running:
  description: Whether it had one before.
  type: bool
  returned: success
main_pid:
  description: The main process, 0 without one.
  type: int
  returned: success
sudoers:
  description: The line that is missing.
  type: str
  returned: when the right is missing
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import duration, read_durations, run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.service import VERBS, Service


def main() -> None:
    """Run the module."""
    states = ["started", "stopped", "restarted"]
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "state": {"type": "str", "choices": states, "required": True},
            "rights": {"type": "list", "elements": "str", "choices": states, "default": []},
            "scope": {"type": "str", "choices": ["system", "user"], "default": "system"},
            "timeout": duration("5 minutes"),
        },
        supports_check_mode=True,
    )
    params = module.params

    def work() -> dict[str, object]:
        read_durations(params, positive="timeout")
        state = params["state"]
        service = Service(params["unit"], params["scope"] == "user")
        service.require([state, *params["rights"]])
        before = service.unit()
        running = before.active in ("active", "activating", "reloading", "deactivating")
        changed = state == "restarted" or running != (state == "started")
        verb = f"{VERBS[state]}{'p' if state == 'stopped' else ''}ed"
        if not changed:
            after, what = before, "is active" if running else "is not active"
        elif module.check_mode:
            after, what = before, f"would be {verb}"
        else:
            after, what = service.reach(state, params["timeout"]), f"was {verb}"
        now = after.active in ("active", "activating", "reloading")
        return {
            "changed": changed,
            "unit": service.name,
            "running": state != "stopped" if module.check_mode else now,
            "was_running": running,
            "main_pid": after.main_pid,
            "msg": f"The unit {service.name} {what}.",
        }

    run(module, work)


if __name__ == "__main__":
    main()
