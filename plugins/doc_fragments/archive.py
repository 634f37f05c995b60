# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Where the WAL archive is, and how a file is fetched from it."""

    DOCUMENTATION = r"""
options:
  archive_directory:
    description:
      - Directory of the WAL archive on the host that runs the module, with files under their own names, plain or
        compressed (C(.gz), C(.bz2), C(.xz), C(.zst), C(.lz4)).
      - Files with C(.zst) and C(.lz4) need the commands C(zstd) and C(lz4).
    type: path
"""

    COMMAND = r"""
options:
  restore_command:
    description:
      - Command that fetches a file from the archive, PostgreSQL's C(restore_command) with V(%f) and V(%p), for example
        V(cp /srv/wal/%f %p). It is run on the host that runs the module.
    type: str
"""
