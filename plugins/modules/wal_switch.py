#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: wal_switch
short_description: Finish the WAL segment that a base backup ends in, or the current one
version_added: 0.1.0
description:
  - Ensures that the WAL segment which contains, or ends at, O(lsn) is finished on the primary, so that it can be
    archived. A standby cannot do this itself, and on an idle primary it would never happen.
  - Idempotent by O(lsn). Several standbys of one primary, or a second run, switch once. An advisory lock serialises
    parallel calls.
options:
  lsn:
    description:
      - The stop LSN, as returned by M(pgfleet.basebackup.backup_stop).
      - Without it each call finishes the current segment, after writing a small record to it
        (C(pg_logical_emit_message)), so that even an idle primary has a segment to archive. Optional since 0.2.0.
    type: str
  system_identifier:
    description: Refuse a server of another cluster than this one.
    type: str
extends_documentation_fragment:
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.connects
  - pgfleet.basebackup.attributes
attributes:
  idempotent:
    support: partial
    details:
      - Only with O(lsn). Without it each call finishes a segment.
seealso:
  - module: pgfleet.basebackup.wal_archived
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Finish the last segment of a standby's backup
  pgfleet.basebackup.wal_switch:
    lsn: "{{ stop.stop_lsn }}"
    system_identifier: "{{ stop.system_identifier }}"
  delegate_to: primary.example.com

- name: Finish the current segment, to check whether it is archived
  pgfleet.basebackup.wal_switch:
  register: switched
"""

RETURN = r"""
segment:
  description: The segment that is finished, on the primary's timeline.
  type: str
  returned: success
  sample: "000000010000000000000003"
lsn:
  description: The requested LSN, or the one at which the current segment was finished.
  type: str
  returned: success
  sample: 0/3000060
current_lsn:
  description: The primary's insert LSN after the call.
  type: str
  returned: success
  sample: 0/4000028
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.archiver import require_cluster, switch_wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import (
    Connection,
    login_argument_spec,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.facts import server_info
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import parse_lsn


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(login_argument_spec(), lsn={"type": "str"}, system_identifier={"type": "str"}),
        supports_check_mode=True,
    )

    def work() -> dict[str, object]:
        try:
            lsn = None if module.params["lsn"] is None else parse_lsn(module.params["lsn"])
        except ValueError as exc:
            raise BackupError(f"The option lsn is not valid: {exc}", code="bad_lsn") from exc
        with Connection(module.params) as connection:
            info = server_info(connection)
            require_cluster(info, module.params["system_identifier"])
            return switch_wal(connection, info, lsn, module.check_mode)

    run(module, work)


if __name__ == "__main__":
    main()
