#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_verify
short_description: Check that a published base backup is undamaged
version_added: 0.2.0
description:
  - Reads a published backup and fails if it is damaged, naming every bad file. Nothing is changed; read access to the
    repository is enough.
  - Neither a server nor PostgreSQL's programs are needed. If C(pg_verifybackup) is installed, it can be run too.
  - A detached process on the host does the work, and the controller shows its progress. The process ends when no call
    has asked for it for 15 minutes.
options:
  backup_id:
    description: The backup. V(latest) is the published backup that ended last.
    type: str
    default: latest
  levels:
    description:
      - What is checked. The other levels include V(quick).
      - V(quick) checks the metadata, C(backup_label), C(tablespace_map), C(global/pg_control), C(backup_manifest), the
        links to the tablespaces, and the presence and size of every file.
      - V(full) also reads every file, including the WAL that the backup includes, and compares its checksum.
      - V(wal) also reads the WAL that a restore needs, from the backup if that includes its WAL, else from the archive.
        Each segment must belong to the cluster, and its records must follow each other as far as the backup needs them;
        checksums of single WAL records are not computed.
    type: list
    elements: str
    choices: [quick, full, wal]
    default: [quick]
  jobs:
    description: Number of files that are read at the same time.
    type: int
    default: 2
  pg_verifybackup:
    description:
      - Also run PostgreSQL's own C(pg_verifybackup), with checksums if O(levels) has V(full). The backup fails if
        either finds a problem.
      - It accepts some damage that this module finds, for example a changed C(postgresql.auto.conf), an added
        C(recovery.signal), or WAL that does not belong in C(pg_wal).
    type: bool
    default: false
  bin_directory:
    description:
      - Directory of PostgreSQL's programs, of the major version of the backup.
      - By default the module searches C(PATH) and the usual directories of packages.
    type: path
extends_documentation_fragment:
  - pgfleet.basebackup.handle
  - pgfleet.basebackup.archive
  - pgfleet.basebackup.archive.command
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.unused
  - pgfleet.basebackup.detached
  - pgfleet.basebackup.detached.run_id
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes.info
notes:
  - Without O(archive_directory) and O(restore_command) the WAL is taken from the C(wal) directory of the cluster in the
    repository.
  - With O(wait_timeout) above 0 O(run_id) is required; without it the verification is not detached.
seealso:
  - module: pgfleet.basebackup.backup_info
  - module: pgfleet.basebackup.backup_restore
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Check the newest backup
  pgfleet.basebackup.backup_verify:
    repository: /srv/backups
    cluster: main

- name: Read everything, and the WAL in the archive
  pgfleet.basebackup.backup_verify:
    repository: /srv/backups
    cluster: main
    backup_id: 20261122T030000Z
    levels: [full, wal]
    archive_directory: /srv/wal
    jobs: 4
    progress_interval: 60

- name: The same, and PostgreSQL's own program must agree
  pgfleet.basebackup.backup_verify:
    repository: /srv/backups
    cluster: main
    levels: [full]
    pg_verifybackup: true
    bin_directory: /usr/lib/postgresql/18/bin
"""

RETURN = r"""
finished:
  description: Whether the verification is done.
  type: bool
  returned: success
backup_id:
  description: The backup that was verified.
  type: str
  returned: always
directory:
  description: Where it lies.
  type: str
  returned: when finished
bad_files:
  description: What is wrong with the backup.
  type: list
  elements: dict
  returned: when finished, and when the backup is damaged
  contains:
    path:
      description: The file as C(backup_manifest) names it, or the name of a WAL file of the archive.
      type: str
    problem:
      description:
        - One of V(missing), V(surplus), V(size), V(checksum), V(damaged) (its content is not what it must be), V(link)
          (a tablespace's link does not lead into the backup), V(not_a_file), V(unreadable), V(wal_missing),
          V(history_missing), V(bad_segment), V(bad_history), V(pg_verifybackup).
      type: str
    msg:
      description: The same as a sentence.
      type: str
  sample:
    - msg: It has 8192 bytes; 16384 were backed up.
      path: base/5/1259
      problem: size
files:
  description: Number of files that have the right size; V(full) reads all of them.
  type: int
  returned: when finished
  sample: 1301
bytes:
  description: Their size.
  type: int
  returned: when finished
  sample: 39845888
unchecked_files:
  description: Number of files for which only the size could be checked, because the backup was made without checksums.
  type: int
  returned: when finished, with the level V(full)
  sample: 0
wal_files:
  description: Number of WAL files that were read.
  type: int
  returned: when finished and WAL was read
  sample: 2
seconds:
  description: Duration in seconds.
  type: float
  returned: when finished
  sample: 0.21
pg_verifybackup:
  description: The result of PostgreSQL's program.
  type: dict
  returned: when finished, with O(pg_verifybackup=true)
  contains:
    ok:
      description: Whether it accepted the backup.
      type: bool
    output:
      description: Its output.
      type: str
progress:
  description: Progress of the verification.
  type: dict
  returned: when not finished
  contains:
    percent:
      description: Percent of the bytes.
      type: float
    done_bytes:
      description: Bytes read.
      type: int
    total_bytes:
      description: Bytes to read.
      type: int
    bytes_per_second:
      description: The rate so far.
      type: int
    seconds_left:
      description: Estimate of the time left in seconds.
      type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import (
    archive_argument_spec,
    cluster_argument_spec,
    detached_argument_spec,
    handle,
    read_durations,
    require_positive,
    run,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Repository
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import login_argument_spec
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.detached import VerificationJob
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.verification import (
    Options,
    chosen,
    damage,
    verify,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            cluster_argument_spec(),
            **login_argument_spec(),
            **archive_argument_spec(),
            **detached_argument_spec(run_id=True),
            backup_id={"type": "str", "default": "latest"},
            levels={"type": "list", "elements": "str", "choices": ["quick", "full", "wal"], "default": ["quick"]},
            jobs={"type": "int", "default": 2},
            pg_verifybackup={"type": "bool", "default": False},
            bin_directory={"type": "path"},
        ),
        mutually_exclusive=[("archive_directory", "restore_command")],
        supports_check_mode=True,
    )
    params = module.params

    def nobody_stops_it() -> None:
        """Without a detached process the task itself is what can be ended."""

    def work() -> dict[str, object]:
        read_durations(params, may_be_zero="progress_interval wait_timeout")
        require_positive(params, "jobs")
        options = Options(**{name: params[name] for name in Options._fields})
        cluster = Repository(params["repository"], read_only=True).cluster(params["cluster"])
        if params["wait_timeout"] <= 0:
            result = verify(chosen(cluster, params["backup_id"]), options, nobody_stops_it)
        else:
            if not params["run_id"]:
                raise BackupError(
                    "With wait_timeout a run_id is needed, to find the verification again.", code="run_id"
                )
            job = VerificationJob(cluster, params["backup_id"], params["run_id"], options)
            step = job.step(params["wait_timeout"])
            if step.result is None:
                known = {**handle(module), "backup_id": step.record.get("backup_id") or params["backup_id"]}
                return dict(known, changed=False, **step.progress("verified"))
            result = dict(step.result)
        error = damage(result)
        if error is not None:
            raise error
        msg = f"The backup {result['backup_id']} is undamaged: {result['files']} files, {result['bytes']} bytes."
        return dict(handle(module), **{**result, "changed": False, "finished": True, "msg": msg})

    run(module, work)


if __name__ == "__main__":
    main()
