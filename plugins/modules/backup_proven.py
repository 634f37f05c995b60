#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_proven
short_description: Record the result of a restore drill of a backup
version_added: 0.2.0
description:
  - Adds the result of a restore drill to the backup's own record, where M(pgfleet.basebackup.backup_info) shows it. The
    last ten drills are kept. Nothing else in the backup is touched.
options:
  backup_id:
    description: The backup that was restored. It must be published.
    type: str
    required: true
  result:
    description: The result of the drill.
    type: dict
    required: true
    suboptions:
      ok:
        description: Whether the backup was restored and all checks passed.
        type: bool
        required: true
      at:
        description:
          - When the drill ended, for example V(2026-11-22T11:32:00Z). The default is now.
          - A drill with the same time, O(result.by) and O(result.host) is recorded only once.
        type: str
      by:
        description: Who ran it.
        type: str
        default: unknown
      host:
        description: Where it was restored.
        type: str
        default: unknown
      recovered_to_lsn:
        description: The end of the last record that was replayed.
        type: str
      last_transaction_at:
        description: Time of the last transaction that was replayed.
        type: str
      timeline:
        description: The timeline after recovery.
        type: int
      target:
        description: The recovery target, in words.
        type: str
      seconds:
        description: Duration of the drill in seconds.
        type: float
      msg:
        description: The outcome in one sentence.
        type: str
      checks:
        description: The checks, each with C(name), C(ok) and C(msg).
        type: list
        elements: dict
        default: []
extends_documentation_fragment:
  - pgfleet.basebackup.handle
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.unused
  - pgfleet.basebackup.attributes
seealso:
  - module: pgfleet.basebackup.backup_info
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Record that it was restored
  pgfleet.basebackup.backup_proven:
    repository: /srv/backups
    cluster: main
    backup_id: 20261122T101500Z-1f3a
    result:
      ok: true
      by: nightly job
      host: drill1
      recovered_to_lsn: "{{ recovery.replay_lsn }}"
      last_transaction_at: "{{ recovery.last_transaction_at }}"
"""

RETURN = r"""
backup_id:
  description: The backup.
  type: str
  returned: success
result:
  description: The drill as recorded.
  type: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._catalogue.drills import record
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.clock import utc
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import (
    cluster_argument_spec,
    cluster_of,
    handle,
    run,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record_file import (
    drill_result,
    parse_drill,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import login_argument_spec


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            **cluster_argument_spec(),
            backup_id={"type": "str", "required": True},
            result={
                "type": "dict",
                "required": True,
                "options": {
                    "ok": {"type": "bool", "required": True},
                    "at": {"type": "str"},
                    "by": {"type": "str", "default": "unknown"},
                    "host": {"type": "str", "default": "unknown"},
                    "recovered_to_lsn": {"type": "str"},
                    "last_transaction_at": {"type": "str"},
                    "timeline": {"type": "int"},
                    "target": {"type": "str"},
                    "seconds": {"type": "float"},
                    "msg": {"type": "str"},
                    "checks": {"type": "list", "elements": "dict", "default": []},
                },
            },
        ),
        supports_check_mode=True,
    )

    def work() -> dict[str, object]:
        backup = cluster_of(module).get(module.params["backup_id"])
        result = module.params["result"]
        drill = parse_drill({**result, "at": result["at"] or utc()})
        changed = record(backup, drill, module.check_mode)
        what = "is recorded already" if not changed else "would be recorded" if module.check_mode else "is recorded"
        msg = f"The drill of {drill.at} {what} in the backup {backup.id}."
        return dict(handle(module), changed=changed, result=drill_result(drill), msg=msg)

    run(module, work)


if __name__ == "__main__":
    main()
