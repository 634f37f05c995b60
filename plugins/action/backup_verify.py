# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the verification in slices; see the module."""

from __future__ import annotations

import typing as t
import uuid

from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._slices import SlicedAction


class ActionModule(SlicedAction):
    """The controller's side of C(pgfleet.basebackup.backup_verify)."""

    noun = "verification"

    def prepare(self, arguments: dict[str, t.Any]) -> None:
        """Give this task's verification an id, by which only its own slices find it."""
        arguments["run_id"] = uuid.uuid4().hex
