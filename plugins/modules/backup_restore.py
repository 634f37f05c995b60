#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_restore
short_description: Restore a published base backup into a data directory
version_added: 0.2.0
description:
  - Chooses a backup, by name or by recovery target, copies it to a data directory and its tablespaces, and configures
    the recovery. You start the server; see the role P(pgfleet.basebackup.pg_recover#role).
  - The module first makes a plan. What cannot work is refused before anything is touched, with all reasons at once.
    Check mode returns the reasons with the whole plan.
  - Each file is verified while it is copied. The first file with a wrong checksum stops the restore, and the failure
    names it.
  - C(global/pg_control), without which PostgreSQL does not start, is the first file that is removed and the last one
    that is written. The same call continues an interrupted restore, and keeps what was already done.
  - A detached process on the host does the work, and the controller shows its progress.
options:
  backup_id:
    description:
      - The backup. By default, or with V(latest), the newest one from which the target can be reached.
    type: str
  data_directory:
    description:
      - Absolute path of the data directory. It is created if it does not exist.
      - A directory that is not empty is refused without O(delta) or O(replace), and in any case if a server runs in it.
    type: path
    required: true
  delta:
    description:
      - Restore over the existing data directory. Files with the right size and checksum are kept, others are replaced,
        and surplus ones are removed, except the server's logs in C(log) and C(pg_log).
    type: bool
    default: false
  replace:
    description:
      - Rename the existing data directory to C(<data_directory>.replaced-<time>), and the contents of its tablespaces
        to C(replaced-<time>) in their directories. It remains a whole data directory, and nothing is deleted.
    type: bool
    default: false
  force:
    description:
      - Restore again even if this exact restore (same arguments, same backup) has already been done. By default such a
        data directory is not touched, whatever its server has changed in it since.
    type: bool
    default: false
  tablespace_mapping:
    description:
      - New locations of tablespaces, by oid or old location. Takes precedence over O(tablespace_directory).
      - A location that another cluster on the host uses is refused.
    type: dict
    default: {}
  tablespace_directory:
    description:
      - Directory below which all tablespaces are restored, each under its oid. Without it and without
        O(tablespace_mapping) they go to their original locations.
    type: path
  waldir:
    description:
      - Directory that C(pg_wal) becomes a symbolic link to. It must be empty or absent.
      - By default C(pg_wal) is a directory; with O(delta) an existing link remains.
    type: path
  allow_group_access:
    description: Use the modes 0750 and 0640 instead of 0700 and 0600, as C(initdb --allow-group-access) does.
    type: bool
    default: false
  save_wal_to:
    description:
      - Where to save WAL from the old data directory that was never archived. It is saved before anything is removed.
      - The default is C(<data_directory>.saved_wal-<time>).
      - With O(restore_as=primary) recovery uses the part of it that continues the archive.
    type: path
  restore_as:
    description:
      - V(primary) becomes a primary on a new timeline when recovery ends.
      - V(standby) follows O(primary_conninfo).
      - V(copy) becomes a primary for tests. It listens on its local socket only, loads no libraries
        (C(shared_preload_libraries) and its relatives) and runs no event triggers; it has no archiving, logical
        replication or synchronous standbys. Its logs are in its own data directory, and parameters that are too low for
        recovery are raised. O(settings) can ask for each of these, for example C(listen_addresses).
    type: str
    choices: [primary, standby, copy]
    default: primary
  primary_conninfo:
    description: Connection string of a standby to its primary. Without it the standby is fed from the archive only.
    type: str
  primary_slot_name:
    description: Replication slot of a standby on its primary. By default it uses none.
    type: str
  port:
    description: Port of the restored server. The default is the one in its configuration.
    type: int
  settings:
    description:
      - Further settings, written to C(postgresql.auto.conf). The recovery settings and the connection to the primary
        have their own options; those of the source are removed.
    type: dict
    default: {}
  source_settings:
    description:
      - Whether the settings in the backup's C(postgresql.auto.conf), those of C(ALTER SYSTEM) at the source, remain in
        force under O(settings).
    type: bool
    default: true
    version_added: 0.3.0
  config_file:
    description:
      - The C(postgresql.conf) that the server will use, if it is outside the data directory. It is only read, to check
        that no parameter is lower than recovery needs.
    type: path
  jobs:
    description: Number of files that are copied at the same time.
    type: int
    default: 2
  sync:
    description: Flush files and directories to disk. Without it a crash of the host can damage the restored files.
    type: bool
    default: true
extends_documentation_fragment:
  - pgfleet.basebackup.handle
  - pgfleet.basebackup.recovery_target
  - pgfleet.basebackup.archive
  - pgfleet.basebackup.archive.command
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.unused
  - pgfleet.basebackup.detached
  - pgfleet.basebackup.detached.run_id
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes
notes:
  - Without O(archive_directory) and O(restore_command) the WAL is taken from the C(wal) directory of the cluster in the
    repository, if it exists. With O(restore_command) alone, times, transactions and names cannot be checked before the
    restore. Without it, the restored server gets a command that reads the directory.
  - Run the module as the operating system user of the server, not as root.
  - With O(run_id) a later call of the same task knows that its restore is done, with or without O(force). Without it
    each call with O(force) restores again.
  - The files C(postgresql.auto.conf), C(tablespace_map), C(recovery.signal) and C(standby.signal) are rewritten.
  - In check mode with O(delta) the existing files are read and compared.
  - Replay recreates a tablespace that was created after the backup, in its original directory. If another server of the
    same cluster on this host uses that directory, a restore to a point after the creation is refused.
seealso:
  - module: pgfleet.basebackup.backup_verify
  - module: pgfleet.basebackup.backup_info
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Restore the newest backup, to be recovered to the end of the archive
  pgfleet.basebackup.backup_restore:
    repository: /srv/backups
    cluster: main
    data_directory: /var/lib/postgresql/18/main
  become: true
  become_user: postgres

- name: Go back to just before an accident, copying only what differs
  pgfleet.basebackup.backup_restore:
    repository: /srv/backups
    cluster: main
    data_directory: /var/lib/postgresql/18/main
    recovery_target_time: "2026-11-22 03:14:00+00"
    delta: true

- name: A copy beside the live server
  pgfleet.basebackup.backup_restore:
    repository: /srv/backups
    cluster: main
    data_directory: /srv/copy/data
    tablespace_directory: /srv/copy/tablespaces
    restore_as: copy
    port: 5499
    settings:
      shared_buffers: 256MB
      cluster_name: copy of main

- name: A named backup over the remains of the old server, with tablespaces and WAL on other disks
  pgfleet.basebackup.backup_restore:
    repository: /srv/backups
    cluster: main
    backup_id: 20261122T030000Z-full
    data_directory: /var/lib/postgresql/18/main
    replace: true
    tablespace_mapping:
      /srv/old/fast: /srv/new/fast
      "16402": /srv/new/archive
    waldir: /srv/wal_disk/main
    config_file: /etc/postgresql/18/main/postgresql.conf
    jobs: 4
    progress_interval: 60

- name: Go back to the timeline that a wrong recovery left
  pgfleet.basebackup.backup_restore:
    repository: /srv/backups
    cluster: main
    data_directory: /var/lib/postgresql/18/main
    archive_directory: /srv/wal
    recovery_target_name: before release 42
    recovery_target_timeline: "1"
    delta: true
    save_wal_to: /srv/saved/main

- name: A new standby
  pgfleet.basebackup.backup_restore:
    repository: /srv/backups
    cluster: main
    data_directory: /var/lib/postgresql/18/main
    restore_as: standby
    primary_conninfo: host=db1 user=replicator
    primary_slot_name: db2
"""

RETURN = r"""
finished:
  description: Whether the restore is done.
  type: bool
  returned: success
restorable:
  description: Whether the restore is possible.
  type: bool
  returned: in check mode
backup_id:
  description: The backup.
  type: str
  returned: when one was chosen
why:
  description: Why this backup was chosen.
  type: str
  returned: when one was chosen
data_directory:
  description: The data directory, with symbolic links resolved.
  type: str
  returned: success
tablespaces:
  description: The locations of the tablespaces, by oid.
  type: dict
  returned: when they are known
  sample:
    "16385": /srv/copy/tablespaces/16385
restore_as:
  description: What the restored server becomes.
  type: str
  returned: success
target:
  description: The recovery target in words.
  type: str
  returned: success
plan:
  description: What is done; in check mode, what would be done.
  type: dict
  returned: success, and when it is refused
  contains:
    files:
      description: Files of the backup.
      type: int
    bytes:
      description: Their size.
      type: int
    keep_files:
      description: Existing files that are right.
      type: int
    keep_bytes:
      description: Their size.
      type: int
    copy_files:
      description: Files that are copied.
      type: int
    copy_bytes:
      description: Their size.
      type: int
    replace_files:
      description: Existing files that are wrong.
      type: int
    remove_files:
      description: Existing files, links and directory trees that are not in the backup.
      type: int
    wal_needed:
      description: WAL files that recovery needs.
      type: list
      elements: str
    wal_missing:
      description: Those that are missing.
      type: list
      elements: str
    recoverable_until:
      description: Time of the newest transaction in the archive.
      type: str
    room:
      description: Each file system, with the bytes that are needed and that are free.
      type: list
      elements: dict
    estimated_seconds:
      description: Estimated duration of the copy, based on that of the backup.
      type: float
    refusals:
      description: Every reason to refuse the restore, with RV(ignore:code), RV(ignore:msg) and RV(ignore:hint).
      type: list
      elements: dict
    warnings:
      description: What the administrator should know.
      type: list
      elements: str
    parameters:
      description: Parameters that are lower than at the source.
      type: list
      elements: dict
    unarchived_wal:
      description: WAL files of the old data directory that were not archived.
      type: list
      elements: str
    used_wal:
      description: The files among them that recovery can use.
      type: list
      elements: str
    saved_wal:
      description: Where the unarchived WAL is.
      type: str
    moved_aside:
      description: Where the old data directory is.
      type: str
    config_files_outside:
      description: Configuration files of the source outside its data directory, which are not in the backup.
      type: list
      elements: str
    config_file:
      description:
        - The C(postgresql.conf) that the server will use, if it is outside the data directory; empty for the one in the
          backup; null if there is none at all on this host.
      type: str
      version_added: 0.3.0
    run_by:
      description:
        - Who ran the server that was backed up, and with what, as M(pgfleet.basebackup.process_info) returns it.
        - Null if it is unknown.
      type: dict
      version_added: 0.3.0
    restore_command:
      description: The command that the server will use.
      type: str
reused_files:
  description: Files that an interrupted restore had finished.
  type: int
  returned: when finished
seconds:
  description: Duration of the copy in seconds.
  type: float
  returned: when finished
bytes_per_second:
  description: The rate at which files were compared and copied.
  type: int
  returned: when finished
progress:
  description: Progress of the restore; see M(pgfleet.basebackup.backup_copy).
  type: dict
  returned: when not finished
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import (
    archive_argument_spec,
    cluster_argument_spec,
    detached_argument_spec,
    read_durations,
    recovery_target_argument_spec,
    require_positive,
    run,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.run import Run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import login_argument_spec


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            cluster_argument_spec(),
            **login_argument_spec(),
            **recovery_target_argument_spec(),
            **archive_argument_spec(),
            **detached_argument_spec(run_id=True),
            backup_id={"type": "str"},
            data_directory={"type": "path", "required": True},
            delta={"type": "bool", "default": False},
            replace={"type": "bool", "default": False},
            force={"type": "bool", "default": False},
            tablespace_mapping={"type": "dict", "default": {}},
            tablespace_directory={"type": "path"},
            waldir={"type": "path"},
            allow_group_access={"type": "bool", "default": False},
            save_wal_to={"type": "path"},
            restore_as={"type": "str", "choices": ["primary", "standby", "copy"], "default": "primary"},
            primary_conninfo={"type": "str", "no_log": True},
            primary_slot_name={"type": "str"},
            port={"type": "int"},
            settings={"type": "dict", "default": {}},
            source_settings={"type": "bool", "default": True},
            config_file={"type": "path"},
            jobs={"type": "int", "default": 2},
            sync={"type": "bool", "default": True},
        ),
        mutually_exclusive=[("delta", "replace")],
        supports_check_mode=True,
    )

    def work() -> dict[str, t.Any]:
        read_durations(module.params, may_be_zero="progress_interval wait_timeout")
        require_positive(module.params, "jobs")
        return Run(module.params).predict() if module.check_mode else Run(module.params).step()

    run(module, work)


if __name__ == "__main__":
    main()
