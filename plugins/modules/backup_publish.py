#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_publish
short_description: Publish a base backup whose WAL is archived or included
version_added: 0.1.0
description:
  - Moves a stopped backup from C(in_progress/) to C(backups/) with one rename, after everything in it is durable. So
    everything under C(backups/) is always complete.
  - Refuses unless O(proof) covers every WAL file that a restore needs, or the backup includes all of them. A backup
    that was started with C(wal=none) needs neither.
options:
  proof:
    description:
      - The RV(pgfleet.basebackup.wal_archived#module:proof) of M(pgfleet.basebackup.wal_archived). It is kept in the
        backup's record.
      - Required for a backup that was started with C(wal=archive), ignored for any other.
    type: dict
extends_documentation_fragment:
  - pgfleet.basebackup.handle
  - pgfleet.basebackup.handle.backup_id
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.unused
  - pgfleet.basebackup.attributes.step
  - pgfleet.basebackup.attributes
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Publish
  pgfleet.basebackup.backup_publish:
    repository: /srv/backups
    cluster: main
    backup_id: "{{ backup.backup_id }}"
    proof: "{{ archived.proof }}"
"""

RETURN = r"""
directory:
  description: The published backup's directory; its C(data/) is a data directory that C(cp) can restore.
  type: str
  returned: success
  sample: /srv/backups/main/backups/20261122T081500Z-full
state:
  description: V(published); in check mode the present state of the backup.
  type: str
  returned: success
  sample: published
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.publish import (
    publish,
    refuse_unproven,
    wal_sentence,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import (
    backup_of,
    handle,
    handle_argument_spec,
    run,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=dict(handle_argument_spec(), proof={"type": "dict"}), supports_check_mode=True)

    def work() -> dict[str, object]:
        # Who has the proof may publish: a run that waited long for it may have been taken over meanwhile.
        backup = backup_of(module, claimed=False)
        if backup is None:
            return dict(
                handle(module),
                changed=True,
                state="absent",
                msg="The backup would be published; it is not started yet.",
            )
        if backup.published:
            msg = f"The backup {backup.id} is published already."
            return dict(handle(module), changed=False, state="published", directory=backup.path, msg=msg)
        if module.check_mode:
            record = backup.load()
            try:
                refuse_unproven(backup, record, module.params["proof"])
            except BackupError as exc:
                if exc.code != "not_stopped":
                    raise
            msg = f"The backup {backup.id} would be published."
            return dict(handle(module), changed=True, state=record.state, directory=backup.path, msg=msg)
        changed = publish(backup, module.params["proof"])
        msg = f"The backup {backup.id} is published{'' if changed else ' already'}." + wal_sentence(backup.load())
        return dict(handle(module), changed=changed, state="published", directory=backup.path, msg=msg)

    run(module, work)


if __name__ == "__main__":
    main()
