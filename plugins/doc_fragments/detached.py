# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Modules whose work is a detached process on the host, watched from the controller."""

    DOCUMENTATION = r"""
options:
  progress_interval:
    description:
      - Duration between two lines of progress on the controller; V(0) shows none.
    type: str
    default: 10 seconds
  wait_timeout:
    description:
      - Duration after which the call returns with RV(ignore:finished=false) while the work continues; V(0) waits until
        it is done.
      - The action plugin of this name sets it. Set it only if you run the module without that plugin.
    type: str
    default: "0"
attributes:
  action:
    description:
      - Indicates this has a corresponding action plugin so some parts of the options can be executed on the controller.
    support: full
  async:
    description: Supports being used with the C(async) keyword.
    support: full
    details:
      - Without live progress.
"""

    RUN_ID = r"""
options:
  run_id:
    description:
      - Name of the task's run, by which a later call of the same task finds its work again. Any text that no other task
        uses.
      - The action plugin of this name sets it.
    type: str
"""
