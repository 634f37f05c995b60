# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter pgfleet.basebackup.primary."""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._primary import find

DOCUMENTATION = r"""
name: primary
short_description: Find the primary of a standby for the role pg_backup
version_added: 0.3.0
description:
  - Private to the collection, no stability is promised. The role P(pgfleet.basebackup.pg_backup#role) uses it, once to
    learn which server to ask, and again with that server's answer.
  - The primary is the one that C(pg_backup_primary) names, else the host of the play whose server is the primary of the
    same cluster, else the one that the standby's upstreams lead to.
positional: hostvars, hosts
options:
  _input:
    description: The variables and results that C(vars/main.yml) of the role lists.
    type: dict
    required: true
  hostvars:
    description: The variables of the hosts. Only those of the hosts of the play and of the primary are read.
    type: dict
    required: true
  hosts:
    description: The hosts of the play.
    type: list
    elements: str
    required: true
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Find the server to ask
  ansible.builtin.set_fact:
    __pg_backup_primary: "{{ __pg_backup_facts | pgfleet.basebackup.primary(hostvars, ansible_play_hosts_all) }}"
"""

RETURN = r"""
_value:
  description: How the primary is reached.
  type: dict
  contains:
    several:
      description: A message when several hosts of the play are primaries of the cluster, else empty.
      type: str
    purpose:
      description: O(pgfleet.basebackup.server_info#module:purpose) for the server to ask.
      type: str
    find_primary:
      description: O(pgfleet.basebackup.server_info#module:find_primary) for the server to ask.
      type: bool
    delegate:
      description: The host to delegate to.
      type: str
    login_host:
      description: Host of the server, as reached from the host to delegate to.
      type: str
    login_port:
      description: Its port.
      type: int
    login_unix_socket:
      description: Directory of its socket.
      type: str
    name:
      description: What messages call it; empty when it was not found.
      type: str
    problems:
      description: What is wrong with it, with C(code), C(msg) and C(hint).
      type: list
      elements: dict
"""


def primary(facts: t.Mapping[str, t.Any], hostvars: t.Mapping[str, t.Any], hosts: t.Iterable[str]) -> dict[str, t.Any]:
    """Return how the primary is reached, and what is wrong with it."""
    return find(facts, hostvars, hosts)


class FilterModule:
    """The class in which Ansible finds the filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"primary": primary}
