# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the server that is restored will be stopped and started, and whether that can work, known before it is stopped.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._role import Facts, part

_MANAGED: t.Final = ("patroni", "supervisor", "container")
_SYSTEMD: t.Final = ("systemd", "systemd_user")


class Service:
    """The unit, or whatever runs the server of ``data_directory``.

    ``facts`` has ``process``, the result of process_info before the restore, ``way``, that with the state that comes
    first, and ``rights``, that of server_service in check mode; ``known`` is the plan, or the result of the restore.
    """

    def __init__(self, facts: Facts, known: Facts, data_directory: str) -> None:
        self.facts = facts
        self.known = known
        self.content = part(known, "plan")
        self.data_directory = data_directory
        self.running = bool(part(facts, "process").get("running"))
        self.done = bool(part(facts, "plan").get("finished"))

    @property
    def run_by(self) -> Facts:
        """Who runs the server now, else who ran it when it was backed up; empty when that is unknown."""
        return part(part(self.facts, "process"), "run_by") or part(self.content, "run_by")

    @property
    def is_same(self) -> bool:
        """Whether that was the server of this directory, not one that it is a copy of."""
        return self.running or (
            self.run_by.get("data_directory") == self.data_directory and self.facts["restore_as"] != "copy"
        )

    @property
    def states(self) -> list[str]:
        """The states into which the role, and no task of the user, will bring the server."""
        stopped = self.running and not self.done and not self.facts["hook_stop"]
        ended = self.done and (self.running or self.facts["target_action"] == "shutdown")
        started = self.facts["start"] and not ended and not self.facts["hook_start"]
        return [*(["stopped"] if stopped else []), *(["started"] if started else [])]

    @property
    def config_file(self) -> str:
        """The ``postgresql.conf`` outside the data directory with which the server is started, '' for the one in it."""
        return str(self.facts["config_file"] or self.content.get("config_file") or "")

    @property
    def log_file(self) -> str:
        """The log that a unit writes, '' when it is unknown."""
        return str(self.run_by.get("log_file") or "") if self._unit and self.is_same else ""

    @property
    def _unit(self) -> str:
        return str(part(self.facts, "way").get("unit") or "")

    @property
    def stopped_by(self) -> str:
        """Who stops the server."""
        return "your own tasks" if self.facts["hook_stop"] else self._by

    @property
    def started_by(self) -> str:
        """Who starts the server."""
        return "your own tasks" if self.facts["hook_start"] else self._by

    @property
    def _by(self) -> str:
        return f"the unit {self._unit}" if self._unit else "pg_ctl"

    @property
    def refusals(self) -> list[dict[str, str]]:
        """Why the server cannot be stopped and started, each with ``code``, ``msg``, ``hint``."""
        if not self.states:
            return []
        found = []
        for name, proof, code in (("way", "way", "not_the_server_user"), ("rights", "unit", "no_right_to_unit")):
            result = part(self.facts, name)
            if result and not result.get("skipped") and proof not in result:
                found.append(_problem(str(result.get("code") or code), str(result.get("msg") or "It is unknown."), ""))
        if not found and "started" in self.states and not self.running:
            found += self._of_start()
        if "started" in self.states and not self.running and not self.done and self.known.get("backup_id"):
            found += self._of_configuration()
        return found

    def _of_start(self) -> list[dict[str, str]]:
        """Return why a server that does not run, and ran under a manager, cannot be started as it was."""
        kind, unit = self.run_by.get("kind"), self.run_by.get("unit")
        if not self.is_same or self._unit:
            return []
        if kind in _MANAGED:
            whose = self.run_by.get("program") or kind
            msg = f"When it was backed up, the server on {self.data_directory} was managed by {whose}."
            hint = f"Let {whose} start it (pg_recover_start: false), or write your own tasks (pg_recover_hook_start)."
            return [_problem("managed_server", msg, hint)]
        if kind in _SYSTEMD and unit:
            msg = (
                f"When it was backed up, the server on {self.data_directory} ran under the unit {unit}; this host has"
                " no unit that starts a server there. Started by pg_ctl it would end with the next boot."
            )
            hint = (
                "Install the package, or make the unit and its configuration; or name this host's unit:"
                " pg_recover_service. To start it another way: pg_recover_hook_start, or pg_recover_start: false."
            )
            return [_problem("unit_missing", msg, hint)]
        return []

    def _of_configuration(self) -> list[dict[str, str]]:
        """Return why the server would find no configuration."""
        if self.content.get("config_file") is not None or "config_file" not in self.content:
            return []
        if any(one.get("code") in ("bad_conf", "unreadable") for one in self.content.get("refusals") or []):
            return []
        own = str(self.run_by.get("config_file") or "")
        outside = [own] if own else list(self.content.get("config_files_outside") or [])
        msg = "The backup has no postgresql.conf, and this host has none for it"
        msg += f": the server's was {', '.join(map(str, outside))}." if outside else "."
        hint = "Put it in place, on Debian with pg_createcluster; or name another one: pg_recover_config_file."
        return [_problem("config_missing", msg, hint)]


def _problem(code: str, msg: str, hint: str) -> dict[str, str]:
    return {"code": code, "msg": msg, "hint": hint}
