# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How far to recover, in PostgreSQL's terms."""

    DOCUMENTATION = r"""
options:
  recovery_target:
    description:
      - V(immediate) ends recovery at the end of the backup. At most one target can be given. Without a target recovery
        goes to the end of the WAL.
    type: str
  recovery_target_time:
    description:
      - Time up to which to recover, with its offset from UTC, for example V(2026-11-22 03:14:00+01).
      - No such target by default.
    type: str
  recovery_target_lsn:
    description: WAL location up to which to recover, for example V(0/5A000148). No such target by default.
    type: str
  recovery_target_xid:
    description: Transaction up to whose end to recover, for example V(812345). No such target by default.
    type: str
  recovery_target_name:
    description:
      - Restore point to which to recover, the name given to C(pg_create_restore_point). No such target by default.
    type: str
  recovery_target_inclusive:
    description: Whether to stop after the target, or just before it. See PostgreSQL's parameter of this name.
    type: bool
    default: true
  recovery_target_timeline:
    description: V(latest), V(current), or the number of a timeline, for example V(3).
    type: str
    default: latest
  recovery_target_action:
    description: What the server does at the target.
    type: str
    choices: [pause, promote, shutdown]
    default: promote
"""
