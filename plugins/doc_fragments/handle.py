# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The handle that joins the steps of one backup."""

    DOCUMENTATION = r"""
options:
  repository:
    description:
      - Absolute path of the directory, on the database host, that holds the backups.
      - It must exist, belong to the user that runs the module, and not be writable by everyone. It must not be inside
        the data directory or a tablespace.
    type: path
    required: true
  cluster:
    description:
      - Name of the database cluster in the repository, a plain file name.
      - Backups of a different database cluster (by system identifier) are refused under the same name.
    type: str
    required: true
"""

    BACKUP_ID = r"""
options:
  backup_id:
    description: The backup, as returned by M(pgfleet.basebackup.backup_start).
    type: str
    required: true
  owner:
    description:
      - Name of the run that is working on the backup, for example V(deploy@controller job 42). With it a step is
        refused if another run has taken the backup over in the meantime.
      - Without it nothing is checked. Publishing checks only the proof.
    type: str
"""
