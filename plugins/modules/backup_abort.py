#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_abort
short_description: Abandon an unfinished base backup
version_added: 0.1.0
description:
  - Ends the session, waits until the copy has stopped, and removes the unfinished backup, or keeps it marked as failed.
  - A published backup is never touched. Nothing is done for a backup that does not exist or that another run has taken
    over.
options:
  keep:
    description:
      - Keep the files for inspection, marked as failed. They are not a backup and cannot become one.
      - They stay until this module is called without O(keep).
    type: bool
    default: false
  timeout:
    description: How long to wait for the session and the copy to end, a duration.
    type: str
    default: 1 minute
extends_documentation_fragment:
  - pgfleet.basebackup.handle
  - pgfleet.basebackup.handle.backup_id
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.unused
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes.step
  - pgfleet.basebackup.attributes
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Abandon the backup
  pgfleet.basebackup.backup_abort:
    repository: /srv/backups
    cluster: main
    backup_id: "{{ backup.backup_id }}"
"""

RETURN = r"""
state:
  description: V(absent); V(failed) with O(keep=true); V(published) or V(taken_over) if nothing was done.
  type: str
  returned: success
  sample: absent
"""

import errno

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.abort import abort
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import activity_of, claim
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import (
    cluster_of,
    duration,
    handle,
    handle_argument_spec,
    read_durations,
    run,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import FAILED


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            handle_argument_spec(), keep={"type": "bool", "default": False}, timeout=duration("1 minute")
        ),
        supports_check_mode=True,
    )
    params = module.params

    def answer(changed: bool, state: str, msg: str) -> dict[str, object]:
        return dict(handle(module), changed=changed, state=state, msg=msg)

    def work() -> dict[str, object]:
        read_durations(params, positive="timeout")
        backup = cluster_of(module).find(params["backup_id"])
        if backup is None:
            return answer(False, "absent", f"There is no backup {params['backup_id']}.")
        if backup.published:
            return answer(False, "published", f"The backup {backup.id} is published and is left alone.")
        activity = activity_of(backup)
        if params["owner"] and activity.owner not in (None, params["owner"]):
            return answer(False, "taken_over", f"{activity.describe(backup)}; it is left alone.")
        if params["keep"] and activity.kept:
            return answer(False, FAILED, f"The backup {backup.id} is marked as failed already.")
        if not activity.here and activity.state != FAILED:
            raise BackupError(
                f"The session of the backup {backup.id} belongs to another host.",
                code="other_host",
                hint="Give it up on the host that started it; backup.json names it.",
            )
        if module.check_mode:
            return answer(True, activity.state, f"The backup {backup.id} would be given up.")
        try:
            try:
                claim(backup, params["owner"])
            except OSError as exc:
                # A full disk must not protect what fills it.
                if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
            abort(backup, params["keep"], params["timeout"])
        except BackupError as exc:
            # A start that is given up cleans up itself, and may have done so first.
            if params["keep"] or exc.code != "unknown_backup":
                raise
        return answer(True, FAILED if params["keep"] else "absent", f"The backup {backup.id} was given up.")

    run(module, work)


if __name__ == "__main__":
    main()
