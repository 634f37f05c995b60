# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter pgfleet.basebackup.live_nodes."""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._live_nodes import nodes

DOCUMENTATION = r"""
name: live_nodes
short_description: Decide whom to ask before a primary is restored
version_added: 0.3.0
description:
  - Private to the collection, no stability is promised. The role P(pgfleet.basebackup.pg_recover#role) uses it.
  - It reads the variables of the role and of the other hosts, and changes nothing.
options:
  _input:
    description: The variables and results that C(vars/main.yml) of the role lists.
    type: dict
    required: true
  hostvars:
    description: The variables of all hosts.
    type: dict
    required: true
  hosts:
    description: The hosts of the play.
    type: list
    elements: str
    required: true
  groups:
    description: The groups of the inventory.
    type: dict
    required: true
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Show whom the role would ask
  ansible.builtin.debug:
    msg: "{{ __pg_recover_facts | pgfleet.basebackup.live_nodes(hostvars, ansible_play_hosts_all, groups) }}"
"""

RETURN = r"""
_value:
  description: The hosts to ask, each with C(host) and how to log in to its server; the first is the host itself.
  type: list
  elements: dict
"""


def live_nodes(
    facts: t.Mapping[str, t.Any],
    hostvars: t.Mapping[str, t.Any],
    hosts: t.Sequence[str],
    groups: t.Mapping[str, t.Sequence[str]],
) -> list[dict[str, t.Any]]:
    """Return whom the role asks."""
    return nodes(facts, hostvars, hosts, groups)


class FilterModule:
    """The class in which Ansible finds the filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"live_nodes": live_nodes}
