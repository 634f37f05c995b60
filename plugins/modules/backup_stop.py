#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_stop
short_description: Stop a base backup and write its label, map and manifest
version_added: 0.1.0
description:
  - Runs C(pg_backup_stop) in the session of M(pgfleet.basebackup.backup_start) without waiting inside the server.
    Writes C(backup_label), C(tablespace_map) and C(backup_manifest), byte for byte and durably.
  - Returns the WAL files that a restore needs. The backup is not complete before they are archived, see
    M(pgfleet.basebackup.wal_archived). For a standby's backup the WAL must first be switched on the primary, see
    M(pgfleet.basebackup.wal_switch).
  - With RV(wal=include) the module copies that WAL from the server's C(pg_wal) into the backup's. The backup is then
    complete. The session ends, and with it the replication slot that kept the WAL. The unfinished last segment of a
    standby is copied only up to the stop LSN. If WAL was removed before it was copied, the backup is void.
  - A backup during which a tablespace was created is void, because a restored server would attach itself to the
    original directory, which may be live.
  - A copy made by your own step (a snapshot, rsync) is adopted if it is in C(data/) and C(tablespaces/<oid>/) of the
    backup. The module removes from it what PostgreSQL's own base backup omits, copies C(global/pg_control) again as the
    last file, and computes the checksums.
options:
  checksum_algorithm:
    description: Algorithm of the checksums of a copy made by your own step; see M(pgfleet.basebackup.backup_copy).
    type: str
    choices: [SHA224, SHA256, SHA384, SHA512, CRC32C, NONE]
    default: SHA256
  jobs:
    description: Number of files of a copy made by your own step that are read at the same time.
    type: int
    default: 2
extends_documentation_fragment:
  - pgfleet.basebackup.handle
  - pgfleet.basebackup.handle.backup_id
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.unused
  - pgfleet.basebackup.attributes.step
  - pgfleet.basebackup.attributes
seealso:
  - module: pgfleet.basebackup.wal_switch
  - module: pgfleet.basebackup.wal_archived
  - module: pgfleet.basebackup.backup_publish
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Stop the backup
  pgfleet.basebackup.backup_stop:
    repository: /srv/backups
    cluster: main
    backup_id: "{{ backup.backup_id }}"
  register: stop

- name: Wait for its WAL
  pgfleet.basebackup.wal_archived:
    required_wal: "{{ stop.required_wal }}"
    system_identifier: "{{ stop.system_identifier }}"
"""

RETURN = r"""
state:
  description: V(stopped); V(complete) or V(published) if the backup had already got that far.
  type: str
  returned: success
  sample: stopped
start_lsn:
  description: LSN at which the backup starts.
  type: str
  returned: success
  sample: 0/2000028
stop_lsn:
  description: LSN at which the backup ends.
  type: str
  returned: success
  sample: 0/2000120
start_timeline:
  description: The timeline at start.
  type: int
  returned: success
  sample: 1
stop_timeline:
  description: The timeline at the end; it differs if the upstream of a standby was promoted meanwhile.
  type: int
  returned: success
  sample: 1
from_standby:
  description: Whether the server is a standby.
  type: bool
  returned: success
system_identifier:
  description: The cluster's identifier.
  type: str
  returned: success
  sample: "7710880042689923079"
wal_segment_size:
  description: Size of a WAL segment in bytes.
  type: int
  returned: success
  sample: 16777216
wal_ranges:
  description: The WAL that a restore replays, newest timeline first.
  type: list
  elements: dict
  returned: success
  sample:
    - end: 0/2000120
      start: 0/2000028
      timeline: 1
required_wal:
  description: Names of the WAL segments and history files that a restore needs.
  type: list
  elements: str
  returned: success
  sample: ["000000010000000000000002"]
wal:
  description:
    - Where a restore finds its WAL, see M(pgfleet.basebackup.backup_start). V(include) and V(none) need no
      M(pgfleet.basebackup.wal_archived).
  type: str
  returned: success
  sample: archive
manifest_checksum:
  description: The checksum of C(backup_manifest).
  type: str
  returned: success
directory:
  description: The backup's directory.
  type: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import activity_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.stop import Stop, release, result
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.checksums import new_hash
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.detached import DONE
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import (
    backup_of,
    handle,
    handle_argument_spec,
    require_positive,
    run,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import FAILED, STARTED


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            handle_argument_spec(),
            checksum_algorithm={
                "type": "str",
                "choices": ["SHA224", "SHA256", "SHA384", "SHA512", "CRC32C", "NONE"],
                "default": "SHA256",
            },
            jobs={"type": "int", "default": 2},
        ),
        supports_check_mode=True,
    )
    params = module.params

    def work() -> dict[str, object]:
        require_positive(params, "jobs")
        new_hash(params["checksum_algorithm"])
        backup = backup_of(module)
        if backup is None:
            return dict(handle(module), changed=True, msg="The backup would be stopped; it is not started yet.")
        record = backup.load()
        if record.state == FAILED:
            raise BackupError(f"The backup {backup.id} is void: {record.error}", code="void")
        if record.state != STARTED:
            if not module.check_mode:
                release(backup, record)
            return result(backup, record, False, f"The backup {backup.id} was stopped already.")
        if module.check_mode:
            activity = activity_of(backup)
            if activity.state == FAILED:
                raise BackupError(f"The backup {backup.id} is void: {activity.reason}", code="void")
            if activity.progress and activity.progress.get("state") != DONE:
                raise BackupError(f"The copy of the backup {backup.id} is not finished.", code="copy_not_finished")
            return dict(handle(module), changed=True, msg=f"The backup {backup.id} would be stopped.")
        return Stop(backup, params["checksum_algorithm"], params["jobs"]).run()

    run(module, work)


if __name__ == "__main__":
    main()
