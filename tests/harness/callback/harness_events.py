# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A callback plugin that writes what happened on each host as JSON lines, for `tests.harness.playbook`."""

from __future__ import annotations

import json
import os
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: harness_events
type: aggregate
short_description: JSON lines for the test harness
description: One line for each result and one for the statistics.
options: {}
"""


class CallbackModule(CallbackBase):
    """Append to the file in PGFLEET_EVENTS."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "harness_events"
    CALLBACK_NEEDS_ENABLED = True

    def _write(self, event: dict[str, t.Any]) -> None:
        with open(os.environ["PGFLEET_EVENTS"], "a", encoding="utf-8") as file:
            file.write(json.dumps(event, default=str) + "\n")

    def _result(self, outcome: str, result: t.Any) -> None:
        content = self._clean(result)
        self._write(
            {
                "host": result._host.get_name(),
                "task": result._task.get_name(),
                "action": result._task.action,
                "outcome": outcome,
                "changed": bool(content.get("changed")),
                "result": content,
            }
        )

    @staticmethod
    def _clean(result: t.Any) -> dict[str, t.Any]:
        content = result._result
        if content.get("_ansible_no_log") or result._task.no_log:
            return {"changed": content.get("changed"), "censored": True}
        return {key: value for key, value in content.items() if not str(key).startswith("_ansible")}

    def v2_runner_on_ok(self, result: t.Any) -> None:
        """A task succeeded, changed or not."""
        self._result("ok", result)

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        """A task failed."""
        self._result("ignored" if ignore_errors else "failed", result)

    def v2_runner_on_skipped(self, result: t.Any) -> None:
        """A task was skipped."""
        self._result("skipped", result)

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        """A host was unreachable."""
        self._result("unreachable", result)

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        """The end: the recap of each host."""
        self._write({"stats": {host: stats.summarize(host) for host in stats.processed}})
