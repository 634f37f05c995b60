#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_copy
short_description: Copy the files of a started base backup
version_added: 0.1.0
description:
  - Copies the data directory and all tablespaces of the running server into the backup, except what PostgreSQL's own
    base backup omits. Each file is copied up to the size that it has when it is opened. C(global/pg_control) comes
    last.
  - The copying process is detached on the database host and renews the session's lease. It continues when the task, the
    connection or the controller dies. The same call later finds the process, or resumes the copy and keeps the files
    already copied. If the session is lost, the copy stops at once.
  - The controller shows the progress while the copy runs.
options:
  jobs:
    description: Number of files that are copied at the same time.
    type: int
    default: 2
  checksum_algorithm:
    description:
      - Algorithm of the checksums in C(backup_manifest). Each file is read once for both copy and checksum.
      - V(CRC32C) needs the Python package C(crc32c) on the database host. V(NONE) copies without checksums; the kernel
        copies.
    type: str
    choices: [SHA224, SHA256, SHA384, SHA512, CRC32C, NONE]
    default: SHA256
  sync:
    description:
      - Flush files and directories to disk before the copy counts as done. Disable only in tests, because a crash of
        the host could then damage the backup unnoticed.
    type: bool
    default: true
  follow_symlinks:
    description:
      - Copy the targets of symbolic links in the data directory, for example a C(postgresql.conf) kept elsewhere. By
        default such links are omitted, as PostgreSQL does, and reported. This does not apply to tablespaces and
        C(pg_wal).
    type: bool
    default: false
extends_documentation_fragment:
  - pgfleet.basebackup.handle
  - pgfleet.basebackup.handle.backup_id
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.unused
  - pgfleet.basebackup.detached
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes.step
  - pgfleet.basebackup.attributes
seealso:
  - module: pgfleet.basebackup.backup_start
  - module: pgfleet.basebackup.backup_stop
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Copy the files, four at a time
  pgfleet.basebackup.backup_copy:
    repository: /srv/backups
    cluster: main
    backup_id: "{{ backup.backup_id }}"
    jobs: 4
    progress_interval: 60
"""

RETURN = r"""
finished:
  description: Whether the copy is done.
  type: bool
  returned: success
files:
  description: Number of files in the copy.
  type: int
  returned: when finished
  sample: 1301
bytes:
  description: Their size.
  type: int
  returned: when finished
  sample: 39845888
seconds:
  description: Duration of the copy in its last process.
  type: float
  returned: when finished
  sample: 0.21
bytes_per_second:
  description: The rate during that time.
  type: int
  returned: when finished
  sample: 189742323
reused_files:
  description: Files kept from an earlier, interrupted call.
  type: int
  returned: when finished
  sample: 0
vanished_files:
  description: Files that the server removed before they could be copied, which is normal.
  type: int
  returned: when finished
  sample: 0
special_files:
  description: Symbolic links, FIFOs, sockets and devices that are not in the backup.
  type: list
  elements: dict
  returned: when finished
  contains:
    path:
      description: Path in the data directory.
      type: str
    kind:
      description: V(symlink), V(fifo), V(socket) or V(device).
      type: str
    target:
      description: Target of a link.
      type: str
  sample:
    - kind: symlink
      path: postgresql.conf
      target: /etc/postgresql/postgresql.conf
progress:
  description: Progress of the copy.
  type: dict
  returned: when not finished
  contains:
    percent:
      description: Percent of the bytes.
      type: float
    done_bytes:
      description: Bytes copied.
      type: int
    total_bytes:
      description: Bytes to copy.
      type: int
    bytes_per_second:
      description: The rate so far.
      type: int
    seconds_left:
      description: Estimate of the time left in seconds.
      type: int
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import progress_of, session_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.copy_process import CopyJob, scan_source
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.checksums import new_hash
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.detached import DONE
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import (
    backup_of,
    detached_argument_spec,
    handle,
    handle_argument_spec,
    read_durations,
    require_positive,
    run,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import STARTED
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session.session import require_alive

RESULTS = (
    "files",
    "bytes",
    "seconds",
    "bytes_per_second",
    "reused_files",
    "vanished_files",
    "special_files",
    "checksum_algorithm",
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            handle_argument_spec(),
            **detached_argument_spec(),
            jobs={"type": "int", "default": 2},
            checksum_algorithm={
                "type": "str",
                "choices": ["SHA224", "SHA256", "SHA384", "SHA512", "CRC32C", "NONE"],
                "default": "SHA256",
            },
            sync={"type": "bool", "default": True},
            follow_symlinks={"type": "bool", "default": False},
        ),
        supports_check_mode=True,
    )
    params = module.params

    def done(record: t.Mapping[str, object], changed: bool) -> dict[str, object]:
        answer = {name: record[name] for name in RESULTS}
        verb = "were copied" if changed else "are copied already"
        msg = f"{record['files']} files, {record['bytes']} bytes {verb}."
        return dict(handle(module), **answer, finished=True, changed=changed, msg=msg)

    def work() -> dict[str, object]:
        read_durations(params, may_be_zero="progress_interval wait_timeout")
        require_positive(params, "jobs")
        new_hash(params["checksum_algorithm"])
        backup = backup_of(module)
        if backup is None:
            return dict(
                handle(module),
                changed=True,
                finished=False,
                msg="The files would be copied; the backup is not started yet.",
            )
        record = backup.load()
        progress = progress_of(backup)
        if backup.published or record.state != STARTED:
            return dict(
                handle(module), changed=False, finished=True, msg=f"The backup {backup.id} has been stopped already."
            )
        if progress.get("state") == DONE:
            return done(progress, False)
        require_alive(session_of(backup).ask("status", renew=not module.check_mode))
        if module.check_mode:
            scan = scan_source(record.server, params["follow_symlinks"])
            msg = f"{scan.total_files} files, {scan.total_bytes} bytes would be copied."
            return dict(handle(module), changed=True, finished=False, msg=msg)
        step = CopyJob(backup, record.server, params).step(params["wait_timeout"])
        if step.result is not None:
            return done(step.result, step.began)
        return dict(handle(module), changed=True, **step.progress("copied"))

    run(module, work)


if __name__ == "__main__":
    main()
