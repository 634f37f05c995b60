# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter pgfleet.basebackup.pg_backup."""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._pg_backup import BackupRun

DOCUMENTATION = r"""
name: pg_backup
short_description: Decide and report for the role pg_backup
version_added: 0.3.0
description:
  - Private to the collection, no stability is promised. The role P(pgfleet.basebackup.pg_backup#role) uses it.
  - It reads the variables of the role and the results of its modules so far, and changes nothing.
options:
  _input:
    description: The variables and results that C(vars/main.yml) of the role lists.
    type: dict
    required: true
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Show what would be done
  ansible.builtin.debug:
    msg: "{{ (__pg_backup_facts | pgfleet.basebackup.pg_backup).plan }}"
"""

RETURN = r"""
_value:
  description: The decisions and messages.
  type: dict
  contains:
    due:
      description: Whether a backup is to be taken or continued.
      type: bool
    in_hand:
      description: Whether the run has a backup to work on.
      type: bool
    needs_primary:
      description: Whether the primary must finish the last WAL segment.
      type: bool
    needs_archive:
      description: Whether to wait until the WAL is archived.
      type: bool
    needs_switch:
      description: Whether the WAL is to be switched on the primary.
      type: bool
    gives_up:
      description: After a failure, whether the backup is void and to be removed.
      type: bool
    asks_primary:
      description: Whether the primary's archiver is responsible for the WAL of a standby's backup.
      type: bool
    archiver:
      description: The host whose archiver is responsible, as C(delegate), and the login there.
      type: dict
    stoppers:
      description: What would stop the backup, with C(code), C(msg) and C(hint).
      type: list
      elements: dict
    refusal:
      description: Why a backup of a standby is not begun; empty when nothing prevents it.
      type: str
    plan:
      description: What would be done.
      type: list
      elements: str
    handle:
      description: The handle of the backup.
      type: dict
    result:
      description: The result of the role so far.
      type: dict
    failure:
      description: The result of the role after a failure.
      type: dict
"""


def pg_backup(facts: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what the role decides and reports."""
    return BackupRun(facts).answer()


class FilterModule:
    """The class in which Ansible finds the filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"pg_backup": pg_backup}
