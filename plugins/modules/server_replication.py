#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: server_replication
short_description: Report who streams from a server, and wait until it replicates again
version_added: 0.3.0
description:
  - Reports the standbys that stream from a server, and from whom it streams.
  - With O(started_after) it waits until the server has been restarted, accepts connections, and replicates as before. A
    standby must then have all WAL that its upstream had when the wait began.
options:
  started_after:
    description:
      - The RV(started_at) of the server before its restart. It makes the module wait.
    type: float
  role:
    description:
      - What the server was before. If it has another role now, after a switchover, O(senders) are not waited for.
    type: str
    choices: [primary, standby]
    default: primary
  streams:
    description: Whether a standby must stream.
    type: bool
    default: true
  senders:
    description: The names of the standbys that must stream from this server, as RV(senders) has them.
    type: list
    elements: str
    default: []
  timeout:
    description: How long to wait, a duration.
    type: str
    default: 2 minutes
extends_documentation_fragment:
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.connects
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes
notes:
  - The login role must be a superuser or a member of C(pg_monitor); otherwise C(state) and RV(receiver_status) are
    unknown. To ask a standby's upstream for its position the role must be able to read C(primary_conninfo), and the
    module must run as the server's operating system user.
seealso:
  - module: pgfleet.basebackup.wal_hold
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Before the restart
  pgfleet.basebackup.server_replication:
  become: true
  become_user: postgres
  register: before

- name: Restart
  ansible.builtin.service:
    name: postgresql@18-main
    state: restarted

- name: Wait until the server is back, and replicates
  pgfleet.basebackup.server_replication:
    started_after: "{{ before.started_at }}"
    role: "{{ before.role }}"
    streams: "{{ before.receiver_status == 'streaming' }}"
    senders: "{{ before.senders | map(attribute='name') }}"
  become: true
  become_user: postgres
"""

RETURN = r"""
role:
  description: What the server is, V(primary) or V(standby).
  type: str
  returned: success
system_identifier:
  description: The cluster's system identifier.
  type: str
  returned: success
data_directory:
  description: The data directory; empty when the role may not see it.
  type: str
  returned: success
started_at:
  description: When the server was started, seconds since 1970.
  type: float
  returned: success
has_upstream:
  description: Whether a standby has a C(primary_conninfo).
  type: bool
  returned: success
upstream:
  description: Host and port of the upstream that the standby is connected to; empty when there is none.
  type: str
  returned: success
  sample: pg1:5432
receiver_status:
  description: The status of the standby's WAL receiver; empty when there is none.
  type: str
  returned: success
  sample: streaming
receiver_slot:
  description: The replication slot that the standby uses; empty when there is none.
  type: str
  returned: success
senders:
  description: The standbys that are connected to this server. Backups and copiers of WAL are left out.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its C(application_name) and address.
      type: str
    state:
      description: The state of the connection, as C(pg_stat_replication) has it.
      type: str
    slot_name:
      description: The replication slot that it uses; empty when there is none.
      type: str
idle_slots:
  description: Physical replication slots that have been used and have no connection now.
  type: list
  elements: str
  returned: success
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import duration, read_durations, run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import (
    Connection,
    login_argument_spec,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.replication import (
    Expected,
    replication,
    wait_replicates,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            started_after={"type": "float"},
            role={"type": "str", "choices": ["primary", "standby"], "default": "primary"},
            streams={"type": "bool", "default": True},
            senders={"type": "list", "elements": "str", "default": []},
            timeout=duration("2 minutes"),
        ),
        supports_check_mode=True,
    )
    params = module.params

    def work() -> dict[str, t.Any]:
        read_durations(params, positive="timeout")
        if params["started_after"] is not None:
            expected = Expected(params["started_after"], params["role"], params["streams"], tuple(params["senders"]))
            wait_replicates(params, expected, params["timeout"])
        with Connection(params) as connection:
            found = replication(connection)
        what = f"It is a {found['role']}"
        if found["role"] == "standby":
            what += f"; its receiver is {found['receiver_status'] or 'not connected'}"
        return dict(found, changed=False, msg=f"{what}; {len(found['senders'])} standbys are connected to it.")

    run(module, work)


if __name__ == "__main__":
    main()
