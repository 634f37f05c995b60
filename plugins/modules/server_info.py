#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: server_info
short_description: Check whether a PostgreSQL server can be backed up, and report what would stop it
version_added: 0.1.0
description:
  - Reads version, role, data directory, tablespaces, archiving and the privileges of the login role, and changes
    nothing.
  - RV(problems) lists everything that would stop a backup, each with the exact SQL or setting that resolves it.
options:
  purpose:
    description:
      - V(backup) checks whether this server can be backed up on this host.
      - V(wal_switch) checks whether this server, a primary, can finish and archive the WAL that a standby's backup
        needs. The data directory need not be on the host that runs the module.
    type: str
    choices: [backup, wal_switch]
    default: backup
  external_archive:
    description:
      - Another program archives the WAL (for example C(pg_receivewal)), so the server's own archiving is not checked.
      - With O(wal=archive) this is the only way to accept C(archive_mode=off).
    type: bool
    default: false
  wal:
    description:
      - Where a restore finds the WAL, see M(pgfleet.basebackup.backup_start). V(include) checks the replication slot;
        V(include) and V(none) do not check archiving.
    type: str
    choices: [archive, include, none]
    default: archive
    version_added: 0.2.0
  find_primary:
    description:
      - On a standby, follow the upstreams over libpq to the primary, with the same login, and return it as RV(primary).
    type: bool
    default: false
  repository:
    description:
      - Also check whether a backup can be stored in this repository, including its free space.
    type: path
  cluster:
    description:
      - Name of the cluster in O(repository); required with it.
    type: str
extends_documentation_fragment:
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.connects
  - pgfleet.basebackup.attributes.info
seealso:
  - module: pgfleet.basebackup.backup_start
  - name: Making a Base Backup Using the Low Level API
    description: The procedure on which the checks are based.
    link: https://www.postgresql.org/docs/current/continuous-archiving.html
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Inspect the server
  pgfleet.basebackup.server_info:
    login_user: backup
  register: server

- name: Show what would stop a backup
  ansible.builtin.debug:
    msg: "{{ item.msg }} {{ item.hint }}"
  loop: "{{ server.problems }}"

- name: Find the primary of a standby
  pgfleet.basebackup.server_info:
    find_primary: true
"""

RETURN = r"""
ready:
  description: Whether a backup can be taken, that is, whether RV(problems) is empty.
  type: bool
  returned: success
problems:
  description: What would stop a backup.
  type: list
  elements: dict
  returned: success
  contains:
    code:
      description: A stable word for programs.
      type: str
    msg:
      description: What is wrong.
      type: str
    hint:
      description: The SQL, setting or command that resolves it.
      type: str
  sample:
    - code: no_privilege_backup_start
      msg: The role backup lacks pg_backup_start(text, boolean).
      hint: >-
        As a superuser, in the database postgres:
        GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO backup;
version:
  description: The server's version.
  type: str
  returned: success
  sample: "18.3"
version_num:
  description: The version as a number.
  type: int
  returned: success
  sample: 180003
major:
  description: The major version.
  type: int
  returned: success
  sample: 18
address:
  description: Host and port that the module connected to.
  type: str
  returned: success
  sample: 127.0.0.1:5432
role:
  description: V(primary) or V(standby).
  type: str
  returned: success
  sample: primary
system_identifier:
  description: The cluster's identifier, the same on a primary and its standbys.
  type: str
  returned: success
  sample: "7710880042689923079"
timeline:
  description: The timeline that a primary writes, or that a standby receives.
  type: int
  returned: success
  sample: 1
login_role:
  description: The role of the session.
  type: str
  returned: success
  sample: backup
login_db:
  description: The database of the session.
  type: str
  returned: success
  sample: postgres
port:
  description: The server's port.
  type: int
  returned: success
  sample: 5432
started_at:
  description: When the server was started, in seconds since the epoch.
  type: float
  returned: success
  sample: 1795334400.5
pooling_proxy:
  description: Whether the connection goes through a pooling proxy.
  type: bool
  returned: success
data_directory:
  description: The data directory; null if the role may not read the setting.
  type: str
  returned: success
  sample: /var/lib/postgresql/18/main
stats_temp_directory:
  description: The setting of that name, PostgreSQL 14 only.
  type: str
  returned: success
wal_segment_size:
  description: Size of a WAL segment in bytes.
  type: int
  returned: success
  sample: 16777216
block_size:
  description: Size of a data page in bytes.
  type: int
  returned: success
  sample: 8192
catalog_version:
  description: The catalogue version, part of the name of a tablespace's folder.
  type: int
  returned: success
  sample: 202506291
data_checksums:
  description: Whether data pages have checksums.
  type: bool
  returned: success
wal_level:
  description: The setting of that name.
  type: str
  returned: success
  sample: replica
full_page_writes:
  description: The setting of that name.
  type: bool
  returned: success
tablespaces:
  description: The tablespaces besides C(pg_default) and C(pg_global).
  type: list
  elements: dict
  returned: success
  contains:
    oid:
      description: The tablespace's oid.
      type: int
    name:
      description: Its name.
      type: str
    location:
      description: Its directory.
      type: str
    in_place:
      description: Whether it is inside the data directory.
      type: bool
    size:
      description: Its size in bytes; null if the role may not read it.
      type: int
size:
  description: Size of all tablespaces in bytes; null without the role C(pg_monitor).
  type: int
  returned: success
  sample: 39845888
config_files_outside:
  description: Configuration files outside the data directory. A base backup does not contain them.
  type: list
  elements: str
  returned: success
  sample: [/etc/postgresql/18/main/postgresql.conf]
run_by:
  description:
    - Who runs the server, and with what; null if it is not on this host or belongs to another account. The fields are
      those of M(pgfleet.basebackup.process_info).
  type: dict
  returned: success
archiving:
  description: The state of WAL archiving on this server.
  type: dict
  returned: success
  contains:
    mode:
      description: The setting C(archive_mode).
      type: str
    command_set:
      description: Whether an C(archive_command) is set. The command is not shown, because it can contain secrets.
      type: bool
    library:
      description: The setting C(archive_library).
      type: str
    archived_count:
      description: Files archived since the statistics were reset.
      type: int
    last_archived_wal:
      description: The last file archived.
      type: str
    last_archived_time:
      description: When that was.
      type: str
    failed_count:
      description: Failed attempts since the statistics were reset.
      type: int
    last_failed_wal:
      description: The last file that failed.
      type: str
    last_failed_time:
      description: When that was.
      type: str
    failing:
      description: Whether the last attempt failed.
      type: bool
standby:
  description: The state of a standby; null on a primary.
  type: dict
  returned: success
  contains:
    upstream_host:
      description: Host that it streams from; null if unknown.
      type: str
    upstream_port:
      description: Port of that server.
      type: int
    receiver_status:
      description: State of the WAL receiver.
      type: str
    receive_lsn:
      description: LSN up to which WAL was received.
      type: str
    replay_lsn:
      description: LSN up to which WAL was replayed.
      type: str
    replay_lag_seconds:
      description: Age of the last replayed transaction; 0 if everything received has been replayed.
      type: float
replication_slots:
  description: The replication slots of the server.
  type: dict
  returned: success
  version_added: 0.2.0
  contains:
    max:
      description: The setting C(max_replication_slots).
      type: int
    used:
      description: How many exist.
      type: int
    idle_timeout:
      description: The setting C(idle_replication_slot_timeout) in seconds; 0 means no limit.
      type: int
privileges:
  description: What the login role may do, each checked separately.
  type: dict
  returned: success
  sample:
    backup_start: true
    backup_stop: true
    ls_archive_statusdir: true
    ls_waldir: true
    pg_monitor: true
    pg_read_all_settings: true
    replication: true
    switch_wal: false
primary:
  description:
    - The facts of the primary, as this module returns them with O(purpose=wal_switch), with C(login_host) and
      C(login_port).
    - With C(error) only, if the primary could not be reached.
  type: dict
  returned: when O(find_primary=true) and the server is a standby
repository_free_bytes:
  description: Free bytes in O(repository); null if it cannot be used.
  type: int
  returned: when O(repository) is given
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.preflight import (
    problems_of_backup,
    problems_of_primary,
    repository_problems,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import (
    Connection,
    login_argument_spec,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.facts import find_primary, server_info


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            purpose={"type": "str", "choices": ["backup", "wal_switch"], "default": "backup"},
            external_archive={"type": "bool", "default": False},
            wal={"type": "str", "choices": ["archive", "include", "none"], "default": "archive"},
            find_primary={"type": "bool", "default": False},
            repository={"type": "path"},
            cluster={"type": "str"},
        ),
        required_by={"repository": ["cluster"]},
        supports_check_mode=True,
    )
    params = module.params

    def work() -> dict[str, object]:
        with Connection(params) as connection:
            info = server_info(connection)
            judge = problems_of_backup if params["purpose"] == "backup" else problems_of_primary
            info["problems"] = judge(info, params["external_archive"], params["wal"])
        if params["find_primary"] and info["role"] == "standby":
            try:
                primary = find_primary(params, info)
                problems = problems_of_primary(primary, params["external_archive"], params["wal"])
                info["primary"] = dict(primary, problems=problems)
            except BackupError as exc:
                info["primary"] = {"error": exc.as_result()["msg"]}
        if params["repository"]:
            found, info["repository_free_bytes"] = repository_problems(info, params["repository"], params["cluster"])
            info["problems"] += found
        info["ready"] = not info["problems"]
        count = len(info["problems"])
        state = "ready" if info["ready"] else f"not ready: {count} problem{'s' if count > 1 else ''}"
        info["msg"] = f"The {info['role']} at {info['address']} is {state}."
        return dict(info, changed=False)

    run(module, work)


if __name__ == "__main__":
    main()
