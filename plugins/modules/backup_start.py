#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_start
short_description: Start a base backup and keep its session
version_added: 0.1.0
description:
  - Runs C(pg_backup_start) (C(pg_start_backup) in PostgreSQL 14, always non-exclusive) in a session that a small
    detached process on the database host keeps until M(pgfleet.basebackup.backup_stop). Returns when the server is in
    backup mode, which, depending on O(fast), takes a whole checkpoint.
  - Every problem that M(pgfleet.basebackup.server_info) would report is refused before anything is touched.
  - The process is visible as C(python3 -I /proc/self/fd/<number> <repository>/<cluster>/in_progress/<id>/session) and,
    in the server, by its C(application_name). Its program is handed over in memory; nothing in the repository is run.
    It ends by itself after O(session_timeout), or when no module has contacted it for O(session_idle_timeout).
options:
  backup_id:
    description:
      - Name of the new backup, a plain file name. The default is UTC time plus kind, for example
        V(20261122T081500Z-full).
      - With the id of a backup whose session is alive, nothing is changed. With the id of a backup whose session has
        ended, the module fails.
    type: str
  label:
    description:
      - The label in C(backup_label), at most 1024 bytes, without control characters.
      - The default contains the names of the cluster and the backup.
    type: str
  fast:
    description:
      - Begin with an immediate checkpoint, at the cost of an I/O spike, instead of one that is spread over
        C(checkpoint_timeout) times C(checkpoint_completion_target).
    type: bool
    default: false
  session_timeout:
    description:
      - Duration after which the session ends in any case, and the backup with it. Set it to more than the duration of
        your longest backup.
    type: str
    default: 24 hours
  session_idle_timeout:
    description:
      - Duration without a module or a running copy after which the session ends.
    type: str
    default: 1 hour
  external_archive:
    description:
      - For O(wal=archive). Another program archives the WAL, so the server's own archiving is not checked and
        C(archive_mode=off) is accepted.
    type: bool
    default: false
  wal:
    description:
      - Where a restore finds the WAL that the backup needs.
      - V(archive) relies on the archive; M(pgfleet.basebackup.backup_publish) requires proof that the archive has it.
      - V(include) copies it into the backup at stop, so that neither an archive nor, for a standby, a switch on the
        primary is needed. Until then a temporary replication slot makes the server keep its WAL, so C(pg_wal) grows
        while the backup runs. The login role needs the attribute C(REPLICATION), and the server needs a free slot.
      - V(none) leaves it to you. No module waits for the WAL, and the backup's record says that nothing was proven.
    type: str
    choices: [archive, include, none]
    default: archive
    version_added: 0.2.0
  concurrent:
    description:
      - What to do if there is another unfinished backup of this cluster that can still be finished.
      - V(allow) starts another one, as PostgreSQL does; V(skip) starts none and returns RV(skipped_busy=true); V(fail)
        fails.
    type: str
    choices: [allow, skip, fail]
    default: allow
  resume:
    description:
      - Continue an unfinished backup of this cluster whose run has died, instead of starting a new one.
      - Unfinished backups whose session has ended, or that were started with another O(wal), are removed, with a
        warning.
      - Cannot be combined with O(backup_id), which names the backup to continue.
    type: bool
    default: false
  max_age:
    description:
      - With O(resume), a stopped backup that is older than this and still waits for its WAL is not continued. It is
        removed, with a warning, once a new one has been started. A duration, for example V(20 hours). Without it a
        stopped backup is continued however old it is.
    type: str
  takeover_after:
    description:
      - For O(resume), duration of silence after which the run that is working on an unfinished backup counts as dead.
      - Set it to more than the duration of your longest own step between the modules.
    type: str
    default: 30 seconds
  owner:
    description:
      - Name of this run, for example V(deploy@controller job 42). Other runs that find the backup unfinished report
        this name.
    type: str
extends_documentation_fragment:
  - pgfleet.basebackup.handle
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.connects
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes.step
  - pgfleet.basebackup.attributes
attributes:
  idempotent:
    support: partial
    details:
      - With O(backup_id) a second call changes nothing while the session is alive. Without it each call starts a
        backup.
seealso:
  - module: pgfleet.basebackup.backup_copy
  - module: pgfleet.basebackup.backup_stop
  - module: pgfleet.basebackup.backup_abort
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Start a backup
  pgfleet.basebackup.backup_start:
    repository: /srv/backups
    cluster: main
    fast: true
  register: backup

- name: Copy the files
  pgfleet.basebackup.backup_copy:
    repository: /srv/backups
    cluster: main
    backup_id: "{{ backup.backup_id }}"
"""

RETURN = r"""
repository:
  description: The repository, symbolic links resolved.
  type: str
  returned: success
  sample: /srv/backups
cluster:
  description: The cluster's name.
  type: str
  returned: success
  sample: main
backup_id:
  description: The backup, for the next steps. With RV(skipped_busy=true) the backup of the other run.
  type: str
  returned: success
  sample: 20261122T081500Z-full
state:
  description:
    - V(running) after start; V(copied), V(stopping), V(stopped) or V(complete) if an unfinished backup is continued;
      V(absent) in check mode.
  type: str
  returned: success
  sample: running
resumed:
  description: Whether an unfinished backup is continued.
  type: bool
  returned: success
skipped_busy:
  description: Whether nothing was started because another run is working on a backup of this cluster.
  type: bool
  returned: success
busy:
  description:
    - Which run is working on the other backup, since when (seconds since the epoch), and the progress of its copy.
  type: dict
  returned: when RV(skipped_busy=true)
wal:
  description: The O(wal) that the backup was started with.
  type: str
  returned: when RV(skipped_busy=false)
  sample: archive
directory:
  description: The backup's directory.
  type: str
  returned: when the backup exists
  sample: /srv/backups/main/in_progress/20261122T081500Z-full
start_lsn:
  description: LSN at which the backup starts.
  type: str
  returned: when the backup exists
  sample: 0/2000028
start_wal_file:
  description: The first WAL segment that a restore needs.
  type: str
  returned: when the backup exists
  sample: "000000010000000000000002"
timeline:
  description: The timeline at start.
  type: int
  returned: when the backup exists
  sample: 1
from_standby:
  description: Whether the server is a standby.
  type: bool
  returned: success
started_at:
  description: When start returned, in seconds since the epoch.
  type: float
  returned: when the backup exists
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.preflight import (
    problems_of_backup,
    refuse_place,
    repository_problems,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.start import Start
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.label import check_label_text
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import (
    cluster_argument_spec,
    cluster_of,
    duration,
    read_durations,
    run,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import check_name
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import (
    Connection,
    connection_kwargs,
    login_argument_spec,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.facts import server_info


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            cluster_argument_spec(),
            **login_argument_spec(),
            backup_id={"type": "str"},
            label={"type": "str"},
            fast={"type": "bool", "default": False},
            session_timeout=duration("24 hours"),
            session_idle_timeout=duration("1 hour"),
            external_archive={"type": "bool", "default": False},
            wal={"type": "str", "choices": ["archive", "include", "none"], "default": "archive"},
            concurrent={"type": "str", "choices": ["allow", "skip", "fail"], "default": "allow"},
            resume={"type": "bool", "default": False},
            max_age=duration(),
            takeover_after=duration("30 seconds"),
            owner={"type": "str"},
        ),
        supports_check_mode=True,
    )
    params = module.params

    def work() -> dict[str, object]:
        cluster = cluster_of(module)
        read_durations(params, "session_timeout session_idle_timeout takeover_after", may_be_zero="max_age")
        if params["backup_id"]:
            check_name(params["backup_id"], "The backup_id")
        check_label_text(params["label"] or "")
        connection_kwargs(params, "")
        with Connection(params) as connection:
            info = server_info(connection)
        refuse_place(cluster, info)
        cluster.refuse_other(info["system_identifier"])
        problems = problems_of_backup(info, params["external_archive"], params["wal"])
        problems += repository_problems(info, params["repository"], params["cluster"])[0]
        start = Start(cluster, params, info, problems)
        return start.predict() if module.check_mode else dict(start.run(), warnings=start.warnings)

    run(module, work)


if __name__ == "__main__":
    main()
