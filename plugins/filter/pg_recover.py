# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter pgfleet.basebackup.pg_recover."""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._pg_recover import RecoverRun

DOCUMENTATION = r"""
name: pg_recover
short_description: Decide and report for the role pg_recover
version_added: 0.3.0
description:
  - Private to the collection, no stability is promised. The role P(pgfleet.basebackup.pg_recover#role) uses it.
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
    msg: "{{ (__pg_recover_facts | pgfleet.basebackup.pg_recover).plan }}"
"""

RETURN = r"""
_value:
  description: The decisions and messages.
  type: dict
  contains:
    data_directory:
      description: The directory to restore to; empty when it is unknown.
      type: str
    connect_params:
      description: Connection parameters of the restored server.
      type: dict
    log_file:
      description: File for the server's first messages.
      type: str
    no_place:
      description: Why the directory to restore to is unknown; empty when it is known.
      type: str
    running:
      description: Whether a server runs in the data directory.
      type: bool
    done:
      description: Whether the same restore has been done already.
      type: bool
    changed:
      description: Whether the restore has changed something, or would do so.
      type: bool
    asks_nodes:
      description: Whether other live nodes of the cluster matter.
      type: bool
    states:
      description: The states into which the role will bring the server.
      type: list
      elements: str
    run_by:
      description: Who runs the server, or ran it when it was backed up.
      type: dict
    config_file:
      description: The configuration file outside the data directory; empty without one.
      type: str
    to_start:
      description: Whether the server is to be started.
      type: bool
    refusal:
      description: The refusals of the restore; empty when there are none.
      type: str
    plan:
      description: What would be done.
      type: list
      elements: str
    left:
      description: The steps that are left to the administrator.
      type: list
      elements: str
    result:
      description: The result of the role.
      type: dict
    failure:
      description: The result of the role after a failure.
      type: dict
"""


def pg_recover(facts: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what the role decides and reports."""
    return RecoverRun(facts).answer()


class FilterModule:
    """The class in which Ansible finds the filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"pg_recover": pg_recover}
