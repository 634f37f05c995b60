#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: drill_scratch
short_description: Create, seal and remove the scratch directory of a restore drill
version_added: 0.2.0
description:
  - Manages C(<directory>/<cluster>.drill), in which the role P(pgfleet.basebackup.pg_drill#role) restores a backup and
    runs a server.
  - A directory that was not created by a drill of the same user is never touched. The remains of an interrupted drill
    are removed, after its server is stopped.
options:
  directory:
    description: Absolute path of an existing directory with room for the restored cluster.
    type: path
    required: true
  cluster:
    description: Name of the database cluster.
    type: str
    required: true
  run:
    description: Name of the drill. With O(state=absent) the scratch directory of another drill is left alone.
    type: str
    required: true
  state:
    description:
      - V(present) creates it, replacing an earlier one, with the configuration of a server that is reachable only over
        its socket.
      - V(sealed) prevents the restored server from creating links to tablespaces. Replaying the creation of a
        tablespace would attach the server to the source's directory on the same host; when sealed, recovery stops there
        instead.
      - V(absent) stops the server and removes everything.
    type: str
    choices: [present, sealed, absent]
    default: present
  by:
    description: Who runs the drill; recorded in the scratch directory.
    type: str
    default: unknown
  socket_parent:
    description: Parent of the server's socket directory. Its path must be short.
    type: path
    default: /tmp
extends_documentation_fragment:
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.unused
  - pgfleet.basebackup.attributes
attributes:
  idempotent:
    support: partial
    details:
      - Each call with O(state=present) creates the scratch directory again.
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Create the directory of a drill
  pgfleet.basebackup.drill_scratch:
    directory: /srv/drills
    cluster: main
    run: drill of today
    by: deploy@controller
    socket_parent: /run/postgresql
  register: scratch

- name: Restore into it
  pgfleet.basebackup.backup_restore:
    repository: /srv/backups
    cluster: main
    data_directory: "{{ scratch.data_directory }}"
    tablespace_directory: "{{ scratch.tablespace_directory }}"
    restore_as: copy

- name: Protect the source
  pgfleet.basebackup.drill_scratch:
    directory: /srv/drills
    cluster: main
    run: drill of today
    state: sealed
"""

RETURN = r"""
directory:
  description: The scratch directory.
  type: str
  returned: success
data_directory:
  description: Where to restore to.
  type: str
  returned: success
tablespace_directory:
  description: Directory below which to restore the tablespaces.
  type: str
  returned: success
config_file:
  description: The C(postgresql.conf) of the drill.
  type: str
  returned: success
hba_file:
  description: The C(pg_hba.conf) of the drill.
  type: str
  returned: success
ident_file:
  description: The C(pg_ident.conf) of the drill.
  type: str
  returned: success
log_file:
  description: Path for the server's log.
  type: str
  returned: success
socket_directory:
  description: Directory of the server's socket.
  type: str
  returned: when O(state=present), except in check mode
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._drill.scratch import Scratch
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import login_argument_spec


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            directory={"type": "path", "required": True},
            cluster={"type": "str", "required": True},
            run={"type": "str", "required": True},
            state={"type": "str", "choices": ["present", "sealed", "absent"], "default": "present"},
            by={"type": "str", "default": "unknown"},
            socket_parent={"type": "path", "default": "/tmp"},
        ),
        supports_check_mode=True,
    )
    params, check_mode = module.params, module.check_mode
    would = "would be" if check_mode else "was"

    def work() -> dict[str, object]:
        scratch = Scratch(params["directory"], params["cluster"])
        answer: dict[str, object] = dict(scratch.places())
        if params["state"] == "absent":
            changed = scratch.remove(params["run"], check_mode)
            msg = f"{scratch.path} {would} removed." if changed else f"{scratch.path} is not of this drill."
            return dict(answer, changed=changed, msg=msg)
        marker = scratch.marker()
        if params["state"] == "sealed":
            changed = True if check_mode else scratch.seal()
            return dict(answer, changed=changed, msg=f"The links of the tablespaces in {scratch.data} {would} sealed.")
        if marker and marker.by:
            answer["warnings"] = [f"{scratch.path} was left by {marker.by} and {would} removed."]
        if not check_mode:
            answer["socket_directory"] = scratch.make(params["run"], params["by"], params["socket_parent"])
        return dict(answer, changed=True, msg=f"{scratch.path} {would} made.")

    run(module, work)


if __name__ == "__main__":
    main()
