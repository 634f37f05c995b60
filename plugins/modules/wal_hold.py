#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: wal_hold
short_description: Keep the WAL that standbys need while a server restarts
version_added: 0.3.0
description:
  - Keeps WAL by a physical replication slot, for standbys that do not use an active slot of their own.
  - Before the restart of a standby, its upstream must keep WAL. The module connects to it as the standby does, by
    C(primary_conninfo), and creates a temporary slot.
  - Before the restart of a server that standbys follow, that server must keep WAL. The slot is a lasting one until the
    server is back; then a temporary copy replaces it.
  - A detached process owns the slot. It ends with O(state=absent), and at the latest after O(hold_timeout); then the
    slot does not exist any more. While the server does not run, the process tries for a day to drop the slot.
options:
  state:
    description:
      - V(present) begins to keep WAL. V(absent) ends it.
    type: str
    choices: [present, absent]
    default: present
  holders:
    description: With O(state=absent), the RV(holders) that O(state=present) returned.
    type: list
    elements: str
    default: []
  required:
    description:
      - Whether it is a failure that WAL cannot be kept. A standby with a C(restore_command) does not require it.
    type: bool
    default: true
  hold_timeout:
    description: How long the WAL is kept at most, a duration.
    type: str
    default: 15 minutes
  timeout:
    description:
      - How long to wait until the standby, or all standbys, have received the WAL from which on it is kept. A duration.
    type: str
    default: 2 minutes
extends_documentation_fragment:
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.connects
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes
attributes:
  check_mode:
    support: full
    details:
      - The module tests whether the upstream accepts the connection, and whether slots are free.
  idempotent:
    support: partial
    details:
      - With O(state=present) each call begins anew.
notes:
  - It must run as the server's operating system user. The login role must be a superuser.
seealso:
  - module: pgfleet.basebackup.server_replication
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Keep the WAL
  pgfleet.basebackup.wal_hold:
  become: true
  become_user: postgres
  register: hold

- name: Restart
  ansible.builtin.service:
    name: postgresql@18-main
    state: restarted

- name: Give it up
  pgfleet.basebackup.wal_hold:
    state: absent
    holders: "{{ hold.holders }}"
  become: true
  become_user: postgres
"""

RETURN = r"""
holders:
  description: The processes that keep WAL.
  type: list
  elements: str
  returned: O(state=present)
  sample: ["4711:1234567"]
held:
  description: Whether all WAL that standbys need is kept, or would be; also when none of them needs it.
  type: bool
  returned: O(state=present)
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import duration, read_durations, run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import (
    Connection,
    login_argument_spec,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.replication import upstream_position
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.wal_hold import (
    OwnHolder,
    UpstreamHolder,
    end,
    needs_of,
    require_free_slots,
    wait_followed,
    wait_received,
)

ANSWER_SECONDS = 60.0


class Run:
    """One call with ``state=present``."""

    def __init__(self, module: AnsibleModule) -> None:
        self.params = module.params
        self.check_mode = module.check_mode
        self.holders: list[str] = []
        self.story: list[str] = []
        self.held = True
        with Connection(self.params) as connection:
            self.needs = needs_of(connection)
            command = connection.value("SELECT current_setting('restore_command', true)")
            self.has_archive = bool(command) and bool(connection.value("SELECT pg_is_in_recovery()"))
            if self.check_mode:
                self._test(connection)

    def _test(self, connection: Connection) -> None:
        if self.needs.upstream:
            self._attempt(lambda: upstream_position(connection), self.has_archive)
        if self.needs.names:
            self._attempt(lambda: require_free_slots(connection), False)

    def _attempt(self, step: t.Callable[[], object], optional: bool) -> None:
        try:
            step()
        except BackupError as exc:
            if self.params["required"] and not optional:
                self._give_up()
                raise BackupError(
                    f"The WAL that standbys need during the restart cannot be kept: {exc.msg}",
                    code=exc.code,
                    hint=exc.hint,
                ) from exc
            instead = " Its restore_command fetches what is missing." if optional else ""
            self.held = False
            self.story.append(f"WAL is not kept: {exc.msg}{instead}")

    def _give_up(self) -> None:
        for holder in self.holders:
            end(holder)

    def _hold_upstream(self) -> None:
        holder, lsn = UpstreamHolder(self.params, self.params["hold_timeout"]).start(ANSWER_SECONDS)
        self.holders.append(holder)
        wait_received(self.params, lsn, self.params["timeout"])
        self.story.append(f"The upstream keeps WAL from {lsn} on.")

    def _hold_own(self) -> None:
        holder, lsn = OwnHolder(self.params, self.params["hold_timeout"]).start(ANSWER_SECONDS)
        self.holders.append(holder)
        wait_followed(self.params, lsn, self.needs.names, self.params["timeout"])
        self.story.append(f"This server keeps WAL from {lsn} on, for {', '.join(self.needs.names)}.")

    def result(self) -> dict[str, t.Any]:
        """Keep what is needed and return the module's result."""
        if not self.check_mode:
            if self.needs.upstream:
                self._attempt(self._hold_upstream, self.has_archive)
            if self.needs.names:
                self._attempt(self._hold_own, False)
        elif self.needs.upstream or self.needs.names:
            self.story.append("WAL would be kept during a restart.")
        if not self.story:
            self.story.append("No WAL needs to be kept: each standby has an active slot of its own, or there is none.")
        return {"changed": bool(self.holders), "holders": self.holders, "held": self.held, "msg": " ".join(self.story)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            state={"type": "str", "choices": ["present", "absent"], "default": "present"},
            holders={"type": "list", "elements": "str", "default": []},
            required={"type": "bool", "default": True},
            hold_timeout=duration("15 minutes"),
            timeout=duration("2 minutes"),
        ),
        supports_check_mode=True,
    )

    def work() -> dict[str, t.Any]:
        read_durations(module.params, positive="hold_timeout timeout")
        if module.params["state"] == "present":
            return Run(module).result()
        if module.check_mode:
            return {"changed": False, "msg": "WAL would not be kept any more."}
        ended = [holder for holder in module.params["holders"] if end(holder)]
        return {"changed": bool(ended), "msg": f"{len(ended)} processes that kept WAL were ended."}

    run(module, work)


if __name__ == "__main__":
    main()
