#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: wal_archive_info
short_description: Report what a WAL archive contains and how far backups can be recovered with it
version_added: 0.2.0
description:
  - Lists a directory with archived WAL. Reports, for each timeline, which segments it has and which are missing in
    between. Also reports missing history files, foreign files, how fast the archive grows, and the age of the newest
    segment.
  - With O(repository) and O(cluster) it also reports, for each published backup, whether the archive has the WAL that
    it needs, and up to which transaction it can be recovered. For that it reads the last segments, including compressed
    ones.
  - No server is needed, and nothing is changed.
options:
  repository:
    description: Absolute path of the repository; requires O(cluster). Without it no backups are reported.
    type: path
  cluster:
    description: Name of the cluster in the repository; only with O(repository).
    type: str
  wal_segment_size:
    description: Size of a WAL segment in bytes. The default is read from the newest segment.
    type: int
  system_identifier:
    description:
      - The cluster's identifier. The default is that of O(cluster), else the one in the newest segment.
    type: str
  growth_window:
    description:
      - The period over which RV(bytes_per_hour) is measured, a duration.
    type: str
    default: 24 hours
  check_headers:
    description:
      - Which segments are opened to check that they belong to this cluster and contain the WAL that their name says.
        V(ends) are the first and the last segment of each part without a gap. V(all) takes long for a large archive.
    type: str
    choices: [ends, all]
    default: ends
extends_documentation_fragment:
  - pgfleet.basebackup.archive
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.unused
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes.info
notes:
  - Without O(archive_directory) the module reads C(<repository>/<cluster>/wal).
seealso:
  - module: pgfleet.basebackup.backup_info
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Inspect the archive of a cluster
  pgfleet.basebackup.wal_archive_info:
    repository: /srv/backups
    cluster: main
  register: wal

- name: Fail if something is missing
  ansible.builtin.assert:
    that: wal.problems | length == 0
    fail_msg: "{{ wal.problems | join(' ') }}"

- name: Fail if nothing was archived for an hour
  ansible.builtin.assert:
    that: (wal.newest_age_seconds or 0) < 3600

- name: Open every segment of an archive that belongs to no repository
  pgfleet.basebackup.wal_archive_info:
    archive_directory: /srv/wal
    wal_segment_size: 16777216
    system_identifier: "7710880042689923079"
    check_headers: all
"""

RETURN = r"""
archive_directory:
  description: The directory that was examined.
  type: str
  returned: success
wal_segment_size:
  description: Size of a segment in bytes.
  type: int
  returned: success
system_identifier:
  description: The cluster that the archive is assumed to belong to; null if it is empty and none was named.
  type: str
  returned: success
timelines:
  description: The timelines that have segments, or a gap, in the archive.
  type: list
  elements: dict
  returned: success
  contains:
    timeline:
      description: The timeline.
      type: int
    first:
      description: Its first segment; null when all are missing.
      type: str
    last:
      description: Its last segment; null when all are missing.
      type: str
    segments:
      description: How many there are.
      type: int
    gaps:
      description: What is missing in between, and between it and the timeline that follows it.
      type: list
      elements: dict
      contains:
        after:
          description: The segment before the gap.
          type: str
        before:
          description: The segment after it, possibly on a newer timeline.
          type: str
        missing:
          description: The missing files, at most 100 of them.
          type: list
          elements: str
        count:
          description: How many are missing.
          type: int
missing_histories:
  description: Missing history files of timelines that are in the archive.
  type: list
  elements: str
  returned: success
partials:
  description: Unfinished last segments of abandoned timelines, C(.partial). Recovery does not use them.
  type: list
  elements: str
  returned: success
foreign:
  description: Segments of another cluster or position, or with a damaged first page, see O(check_headers).
  type: list
  elements: str
  returned: success
temporary:
  description: Files that are being archived, or that a crash has left.
  type: list
  elements: str
  returned: success
unknown:
  description: All other files.
  type: list
  elements: str
  returned: success
files:
  description: Number of segments, histories, backup histories and partial segments.
  type: int
  returned: success
bytes:
  description: Their size, as stored.
  type: int
  returned: success
bytes_per_hour:
  description: Growth in the last O(growth_window), as stored; null if the archive is younger than a minute.
  type: int
  returned: success
newest:
  description: The segment that was archived last.
  type: str
  returned: success
newest_age_seconds:
  description: How long ago it was archived.
  type: float
  returned: success
backups:
  description: The published backups, by id.
  type: list
  elements: dict
  returned: success
  contains:
    backup_id:
      description: The backup.
      type: str
    wal:
      description:
        - V(present) if the archive has all that it needs, V(incomplete) if not, V(included) if the backup itself has
          it, V(none) if it was made without WAL and the archive does not have it.
      type: str
    missing:
      description: Files that it needs and the archive does not have.
      type: list
      elements: str
    recoverable_until:
      description:
        - Time of the last transaction up to which it can be recovered, in UTC with microseconds. PostgreSQL refuses
          later times, because recovery never reaches them.
        - Null if no transaction ended since the backup, or the backup cannot be recovered.
      type: str
    recoverable_until_lsn:
      description: Start of the last record up to which it can be recovered; null if it cannot be recovered.
      type: str
    timeline:
      description: The timeline of that point.
      type: int
    problem:
      description: What is wrong; null if nothing is.
      type: str
problems:
  description: What needs attention, as sentences.
  type: list
  elements: str
  returned: success
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._catalogue.recoverable import archive_info
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import (
    archive_argument_spec,
    duration,
    read_durations,
    run,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Repository
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import login_argument_spec
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import DirectoryArchive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archived import require_segment_size
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.report import detect


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            **archive_argument_spec(command=False),
            repository={"type": "path"},
            cluster={"type": "str"},
            wal_segment_size={"type": "int"},
            system_identifier={"type": "str"},
            growth_window=duration("24 hours"),
            check_headers={"type": "str", "choices": ["ends", "all"], "default": "ends"},
        ),
        required_together=[("repository", "cluster")],
        required_one_of=[("repository", "archive_directory")],
        supports_check_mode=True,
    )
    params = module.params

    def work() -> dict[str, object]:
        read_durations(params, positive="growth_window")
        cluster = None
        if params["repository"]:
            cluster = Repository(params["repository"], read_only=True).cluster(params["cluster"])
        directory = params["archive_directory"] or (cluster.archive if cluster else "")
        if not os.path.isdir(directory):
            raise BackupError(
                f"The archive {directory} is not a directory of this host.",
                code="archive_missing",
                hint=f"Set {option('archive_directory')}, or set up an archive with the role pg_archive.",
            )
        identifier = params["system_identifier"] or (cluster.system_identifier() if cluster else None)
        if identifier and not identifier.isdigit():
            raise BackupError("system_identifier must be a number.", code="bad_number")
        found_size, found_identifier = detect(directory)
        size = params["wal_segment_size"] or found_size or 16777216
        require_segment_size(size)
        archive = DirectoryArchive(directory, size, int(identifier) if identifier else found_identifier)
        info = archive_info(archive, cluster, params["growth_window"], params["check_headers"] == "all")
        problems = len(info["problems"])
        return {
            "changed": False,
            "archive_directory": directory,
            "wal_segment_size": size,
            "system_identifier": identifier or (str(found_identifier) if found_identifier else None),
            **info,
            "msg": f"{info['files']} files in {directory}, {problems or 'no'} problem{'' if problems == 1 else 's'}.",
        }

    run(module, work)


if __name__ == "__main__":
    main()
