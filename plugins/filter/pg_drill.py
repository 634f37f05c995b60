# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter pgfleet.basebackup.pg_drill."""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._pg_drill import DrillRun

DOCUMENTATION = r"""
name: pg_drill
short_description: Decide and report for the role pg_drill
version_added: 0.3.0
description:
  - Private to the collection, no stability is promised. The role P(pgfleet.basebackup.pg_drill#role) uses it.
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
    msg: "{{ (__pg_drill_facts | pgfleet.basebackup.pg_drill).plan }}"
"""

RETURN = r"""
_value:
  description: The decisions and messages.
  type: dict
  contains:
    proven:
      description: Whether a recent drill has proven a backup.
      type: bool
    recovery_target:
      description: The default recovery target; empty when another is named.
      type: str
    settings:
      description: Settings of the drill's server.
      type: dict
    connect_params:
      description: Connection parameters of the superuser on the restored server.
      type: dict
    stoppers:
      description: What would stop the drill, with C(code), C(msg) and C(hint).
      type: list
      elements: dict
    plan:
      description: What would be done.
      type: list
      elements: str
    bad:
      description: The checks that failed.
      type: list
      elements: dict
    backup_id:
      description: The backup.
      type: str
    msg:
      description: The message of the drill's result.
      type: str
    fresh:
      description: The result of the role before a drill.
      type: dict
    record:
      description: The drill's entry in the record of the backup.
      type: dict
    result:
      description: The result of the role after a drill.
      type: dict
"""


def pg_drill(facts: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what the role decides and reports."""
    return DrillRun(facts).answer()


class FilterModule:
    """The class in which Ansible finds the filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"pg_drill": pg_drill}
