# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the module as the login user, and as root only if that user may not use the unit; see the module."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """The controller's side of C(pgfleet.basebackup.server_service)."""

    _supports_check_mode = True

    def run(self, tmp: t.Optional[str] = None, task_vars: t.Optional[dict[str, t.Any]] = None) -> dict[str, t.Any]:
        """Return the module's result; when root cannot be had either, that of the login user, which has the rule."""
        result = super().run(tmp, task_vars)
        become = self._connection.become
        if become is None or self._task.args.get("scope") == "user":
            result.update(self._execute_module(task_vars=task_vars))
            return result
        self._connection.set_become_plugin(None)
        try:
            answer = self._execute_module(task_vars=task_vars)
        finally:
            self._connection.set_become_plugin(become)
        if answer.get("code") == "no_right_to_unit":
            try:
                as_root = self._execute_module(task_vars=task_vars)
            except AnsibleError as exc:
                as_root = {"failed": True, "msg": str(exc)}
            # Without a code it is no answer of the module: root could not be had.
            if not as_root.get("failed") or as_root.get("code"):
                answer = as_root
        result.update(answer)
        return result
