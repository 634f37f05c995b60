# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter pgfleet.basebackup.pg_archive."""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._pg_archive import Fleet

DOCUMENTATION = r"""
name: pg_archive
short_description: Decide which nodes the role pg_archive restarts, and in which order
version_added: 0.3.0
description:
  - Private to the collection, no stability is promised. The role P(pgfleet.basebackup.pg_archive#role) uses it.
  - It reads what the hosts of the play have recorded so far, and changes nothing.
positional: hostvars
options:
  _input:
    description: The variables and results that C(vars/main.yml) of the role lists.
    type: dict
    required: true
  hostvars:
    description: The variables of the hosts. Only those of the hosts of the play are read.
    type: dict
    required: true
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Decide
  ansible.builtin.set_fact:
    __pg_archive_fleet: "{{ __pg_archive_facts | pgfleet.basebackup.pg_archive(hostvars) }}"
"""

RETURN = r"""
_value:
  description: The decisions and messages.
  type: dict
  contains:
    needed:
      description: Whether any host of the play is to be restarted.
      type: bool
    turns:
      description: How many nodes the largest cluster has that are to be restarted.
      type: int
    turn:
      description: When this host is restarted, from 1 on; 0 if it is not.
      type: int
    refusal:
      description: Why no node of this host's cluster is restarted; empty when they are.
      type: str
    stopped:
      description: Why this host is not restarted although its turn has come; empty when it is.
      type: str
    plan:
      description: The order of restarts in this host's cluster; empty when there are none.
      type: str
    waiting:
      description: The nodes of this host's cluster that wait for a restart; empty when it waits for none.
      type: str
    divided:
      description: That the nodes of this host's cluster archive to different directories; empty when they do not.
      type: str
    hold_timeout:
      description: How long WAL is kept at most for a restart, a duration.
      type: str
"""


def pg_archive(facts: t.Mapping[str, t.Any], hostvars: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what the role decides."""
    return Fleet(facts, hostvars).answer()


class FilterModule:
    """The class in which Ansible finds the filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"pg_archive": pg_archive}
