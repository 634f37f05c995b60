#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: live_relatives
short_description: Find the live servers that are connected with a data directory
version_added: 0.3.0
description:
  - Returns the standbys that stream from the server of a data directory, and the live server that this one follows if
    it is a standby.
  - Ask it before a data directory is replaced. After a restore to an earlier point standbys can never follow their
    primary again, and a standby that is restored as a primary is a second one.
  - The upstream is reached as the standby reaches it, with its C(primary_conninfo). The standby need not run.
options:
  data_directory:
    description: Absolute path of the data directory. It need not exist.
    type: path
    required: true
extends_documentation_fragment:
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.connects
  - pgfleet.basebackup.attributes.info
notes:
  - It must run as the server's operating system user.
  - Without a login that may read C(pg_stat_replication) the titles of the server's processes are read. They do not
    distinguish a standby from C(pg_receivewal) or a subscriber.
seealso:
  - module: pgfleet.basebackup.server_info
  - module: pgfleet.basebackup.backup_restore
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Which live servers are connected with this data directory?
  pgfleet.basebackup.live_relatives:
    data_directory: /var/lib/postgresql/18/main
  become: true
  become_user: postgres
"""

RETURN = r"""
standbys:
  description: The standbys that stream from the server.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its C(application_name), else the role that it logs in as.
      type: str
    address:
      description: Its address; empty for a local socket.
      type: str
    lsn:
      description: LSN up to which it has replayed, else up to which WAL was sent to it; empty if it is not known.
      type: str
upstream:
  description: The live server that this standby follows; null if it is no standby, or that server does not answer.
  type: dict
  returned: success
  contains:
    address:
      description: Host and port.
      type: str
    system_identifier:
      description: Its system identifier.
      type: str
    timeline:
      description: Its timeline.
      type: int
    lsn:
      description: Its LSN.
      type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import login_argument_spec
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.relatives import standbys_of, upstream_of


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(login_argument_spec(), data_directory={"type": "path", "required": True}),
        supports_check_mode=True,
    )
    directory = module.params["data_directory"]

    def work() -> dict[str, object]:
        if not os.path.isabs(directory):
            raise BackupError(f"{option('data_directory')} must be an absolute path, not {directory}.", code="bad_path")
        standbys = [one._asdict() for one in standbys_of(directory, module.params)]
        upstream = upstream_of(directory)
        return {
            "changed": False,
            "standbys": standbys,
            "upstream": upstream._asdict() if upstream else None,
            "msg": f"{len(standbys)} standby(s) of {directory}, {'an' if upstream else 'no'} upstream.",
        }

    run(module, work)


if __name__ == "__main__":
    main()
