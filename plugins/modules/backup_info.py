#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_info
short_description: List the base backups of a repository
version_added: 0.1.0
description:
  - Returns the published and the unfinished backups of one cluster or of all clusters in a repository. No server is
    needed.
  - A damaged entry is reported and does not prevent the others from being listed.
options:
  repository:
    description: Absolute path of the repository.
    type: path
    required: true
  cluster:
    description: Name of a cluster. By default all clusters are listed.
    type: str
  max_age:
    description:
      - Also report whether the newest published, undamaged backup of each cluster is younger than this, as
        RV(clusters[].fresh).
      - A duration, for example V(20 hours). The age counts from the end of the backup.
    type: str
  system_identifier:
    description: With O(max_age), count only backups of this cluster.
    type: str
  proven_max_age:
    description:
      - Also report which backups were restored successfully in a drill more recently than this, as C(proven_recently).
        A cluster counts if any of its backups does. A duration.
    type: str
    version_added: 0.2.0
extends_documentation_fragment:
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.unused
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes.info
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: List all backups
  pgfleet.basebackup.backup_info:
    repository: /srv/backups
  register: catalogue

- name: Fail if a cluster has no recent backup
  ansible.builtin.assert:
    that: item.fresh
    fail_msg: "{{ item.name }} has no backup younger than 26 hours"
  loop: "{{ catalogue.clusters }}"
"""

RETURN = r"""
clusters:
  description: The clusters, by name.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: The cluster's name.
      type: str
    system_identifier:
      description: The cluster's identifier.
      type: str
    problem:
      description: What is wrong with the cluster's entry; null if nothing is.
      type: str
    fresh:
      description: Whether there is a backup younger than O(max_age); null without that option.
      type: bool
    proven_recently:
      description: Whether a drill proved a backup of the cluster within O(proven_max_age); null without that option.
      type: bool
      version_added: 0.2.0
    newest:
      description: The id of the newest published, undamaged backup; null if there is none.
      type: str
    newest_age_seconds:
      description: Its age, counted from the end of the backup.
      type: float
    backups:
      description: The published backups, oldest first.
      type: list
      elements: dict
      contains:
        backup_id:
          description: The backup.
          type: str
        directory:
          description: Its directory.
          type: str
        state:
          description: V(published), or V(damaged) with RV(clusters[].backups[].problem).
          type: str
        problem:
          description: What is wrong; null if nothing is.
          type: str
        kind:
          description: V(full).
          type: str
        label:
          description: The label given at start.
          type: str
        version:
          description: The server's version.
          type: str
        data_directory:
          description: The data directory that it was taken from.
          type: str
          version_added: 0.2.0
        from_standby:
          description: Whether it was taken from a standby.
          type: bool
        start_lsn:
          description: LSN at which the backup starts.
          type: str
        stop_lsn:
          description: LSN at which the backup ends.
          type: str
        timeline:
          description: The timeline at the end of the backup.
          type: int
        started_at:
          description: When it started, in UTC.
          type: str
        stopped_at:
          description: When it ended, in UTC.
          type: str
        age_seconds:
          description: Its age, counted from the end of the backup.
          type: float
        bytes:
          description: Size of its files.
          type: int
        files:
          description: Number of its files.
          type: int
        copy_seconds:
          description: Duration of the copy in seconds.
          type: float
        required_wal:
          description: The WAL files that a restore needs.
          type: list
          elements: str
        wal:
          description:
            - Where those files are, V(archive) or V(include) (in the backup itself); V(none) if that was never checked.
          type: str
          version_added: 0.2.0
        wal_proven_by:
          description: How their presence was proven; V(none) if it was not.
          type: str
        proven_at:
          description: When a drill last restored it successfully, in UTC; null if none did.
          type: str
          version_added: 0.2.0
        proven_by:
          description: Who ran that drill, and on which host.
          type: str
          version_added: 0.2.0
        proven_until:
          description: Time of the newest transaction that was present after that drill's recovery; null if unknown.
          type: str
          version_added: 0.2.0
        proven_recently:
          description: Whether a drill proved it within O(proven_max_age); null without that option.
          type: bool
          version_added: 0.2.0
        last_drill:
          description:
            - The last drill, successful or not, as RV(pgfleet.basebackup.backup_proven#module:result); null if there
              was none.
          type: dict
          version_added: 0.2.0
    unfinished:
      description: The backups in progress.
      type: list
      elements: dict
      contains:
        backup_id:
          description: The backup.
          type: str
        directory:
          description: Its directory.
          type: str
        state:
          description:
            - V(starting), V(running), V(copied), V(stopping), V(stopped) or V(complete), all of which can be finished,
              or V(failed).
          type: str
        problem:
          description: Why it failed.
          type: str
        working:
          description: Whether a process is working on it now.
          type: bool
        session_alive:
          description: Whether its session is alive.
          type: bool
        owner:
          description: The run that is, or was last, working on it.
          type: str
        since:
          description: Since when, in UTC.
          type: str
        silent_seconds:
          description: Seconds since that run last reported.
          type: float
        percent:
          description: Progress of the copy; null before it begins.
          type: float
        age_seconds:
          description: Seconds since the backup was started.
          type: float
    not_ours:
      description:
        - What lies among the backups and is not one, such as a symbolic link or a directory of another user. Nothing
          reads, writes or removes it.
      type: list
      elements: dict
      version_added: 0.3.0
      contains:
        directory:
          description: Its path.
          type: str
        reason:
          description: Why it is not a backup of ours.
          type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._catalogue.listing import catalogue
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import duration, read_durations, run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Repository
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import login_argument_spec


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            repository={"type": "path", "required": True},
            cluster={"type": "str"},
            max_age=duration(),
            system_identifier={"type": "str"},
            proven_max_age=duration(),
        ),
        supports_check_mode=True,
    )
    params = module.params

    def work() -> dict[str, object]:
        read_durations(params, may_be_zero="max_age proven_max_age")
        repository = Repository(params["repository"], read_only=True)
        clusters = catalogue(
            repository, params["cluster"], params["max_age"], params["system_identifier"], params["proven_max_age"]
        )
        published = sum(len(one["backups"]) for one in clusters)
        unfinished = sum(len(one["unfinished"]) for one in clusters)
        msg = f"{published} published and {unfinished} unfinished backups in {repository.path}."
        return {"changed": False, "clusters": clusters, "msg": msg}

    run(module, work)


if __name__ == "__main__":
    main()
