# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What the attributes of the modules mean."""

    DOCUMENTATION = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/pgfleet.basebackup.basebackup) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - pgfleet.basebackup.basebackup
  check_mode:
    description: Can run in C(check_mode) and return the changed status prediction without modifying the target.
    support: full
  diff_mode:
    description: Returns details on what has changed, or would change in C(check_mode), in diff mode.
    support: none
  idempotent:
    description: A second call with the same arguments changes nothing, unless something else has changed the state.
    support: full
  platform:
    description: Operating systems that the module runs on.
    platforms: Linux
    support: full
"""

    INFO = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/pgfleet.basebackup.basebackup) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - pgfleet.basebackup.basebackup
  check_mode:
    description: Can run in C(check_mode) and return the changed status prediction without modifying the target.
    support: full
    details:
      - The module changes nothing.
  diff_mode:
    description: Returns details on what has changed, or would change in C(check_mode), in diff mode.
    support: N/A
    details:
      - The module changes nothing.
  idempotent:
    description: A second call with the same arguments changes nothing, unless something else has changed the state.
    support: full
    details:
      - The module changes nothing.
  platform:
    description: Operating systems that the module runs on.
    platforms: Linux
    support: full
"""

    # To be listed before DOCUMENTATION: of two fragments that describe an attribute, the first wins.
    STEP = r"""
options: {}
attributes:
  action_group:
    description: >-
      Use C(group/pgfleet.basebackup.basebackup) in C(module_defaults) to set the login defaults for this module, and
      C(group/pgfleet.basebackup.handle) to set the backup that it works on.
    membership:
      - pgfleet.basebackup.basebackup
      - pgfleet.basebackup.handle
"""

    UNGROUPED = r"""
options: {}
attributes:
  action_group:
    description: The module is in none of the action groups.
    support: none
    membership: []
  check_mode:
    description: Can run in C(check_mode) and return the changed status prediction without modifying the target.
    support: full
  diff_mode:
    description: Returns details on what has changed, or would change in C(check_mode), in diff mode.
    support: none
  idempotent:
    description: A second call with the same arguments changes nothing, unless something else has changed the state.
    support: full
  platform:
    description: Operating systems that the module runs on.
    platforms: Linux
    support: full
"""
