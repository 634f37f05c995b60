# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long work in slices, so that its progress is shown and the connection may break.

Private to pgfleet.basebackup: no stability is promised.

The work itself is a detached process on the database host. Each slice is a call of the module with ``wait_timeout``,
which returns ``finished``, and ``progress`` while that is false.
"""

from __future__ import annotations

import os
import time
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.units import readable_bytes, seconds

display = Display()

# The module must run more often than every takeover_after seconds of backup_start.
LONGEST_SLICE = 10
DEFAULT_INTERVAL = 10


def describe(host: str, subject: str, progress: t.Mapping[str, t.Any]) -> str:
    """Return one line of progress."""
    text = f"[{host}] {subject}: {progress.get('percent') or 0:.0f} %"
    text += f", {readable_bytes(progress.get('done_bytes') or 0)} of {readable_bytes(progress.get('total_bytes') or 0)}"
    if progress.get("bytes_per_second"):
        text += f", {readable_bytes(progress['bytes_per_second'])}/s"
    if progress.get("seconds_left") is not None:
        minutes, seconds = divmod(int(progress["seconds_left"]), 60)
        text += f", about {minutes}:{seconds:02d} min left"
    return text


class SlicedAction(ActionBase):
    """The controller's side of a module whose work continues between its calls: ``noun`` names that work, and
    ``subject`` the argument or return value that a line of progress begins with."""

    noun = "work"
    subject = "backup_id"
    _supports_check_mode = True
    _supports_async = True

    def prepare(self, arguments: dict[str, t.Any]) -> None:
        """Complete the module's arguments, once for all slices of a task."""

    def run(self, tmp: t.Optional[str] = None, task_vars: t.Optional[dict[str, t.Any]] = None) -> dict[str, t.Any]:
        """Call the module until the work is done; the result is that of the last call."""
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = dict(self._task.args)
        if self._task.async_val or self._task.check_mode:
            result.update(
                self._execute_module(module_args=arguments, task_vars=task_vars, wrap_async=bool(self._task.async_val))
            )
            return result
        if "wait_timeout" in arguments:
            # The user polls.
            result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
            return result
        try:
            given = arguments.get("progress_interval")
            interval = seconds(DEFAULT_INTERVAL if given is None else given, "progress_interval")
        except BackupError:
            # The module refuses it, too, with the name of the caller's variable.
            result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
            return result
        self.prepare(arguments)
        arguments["wait_timeout"] = max(min(interval or LONGEST_SLICE, LONGEST_SLICE), 1)
        controller = os.getppid()
        shown = time.monotonic()
        changed = False
        while True:
            answer = self._execute_module(module_args=arguments, task_vars=task_vars)
            changed = changed or bool(answer.get("changed"))
            if answer.get("finished") is not False or answer.get("failed"):
                break
            if os.getppid() != controller:
                raise AnsibleActionFail(f"The controller has ended; the {self.noun} continues on the host.")
            if interval and time.monotonic() >= shown + interval - 1:
                shown = time.monotonic()
                progress = answer.get("progress") or {}
                subject = answer.get(self.subject) or arguments.get(self.subject)
                display.display(describe(task_vars.get("inventory_hostname", ""), str(subject), progress))
        result.update(answer, changed=changed and not answer.get("failed"))
        return result
