# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions and messages of the role pg_drill.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import datetime
import re
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._role import (
    Facts,
    codes,
    explained,
    first_cluster,
    options_for_a_copy,
    part,
    size,
)

# Characters of a program's output that a report keeps.
LONGEST_OUTPUT: t.Final = 4000
# What ansible-core 2.21 registers of a module that crashed, with failed_when: false, has no message.
NO_MESSAGE: t.Final = "The module failed without a message; -vvv shows more."
# Nothing of the source's postgresql.auto.conf is in force. Everything by which the server could affect anything outside
# its data directory is off, and it is reached only through its socket.
SETTINGS: t.Final = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "unix_socket_group": "",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "jit": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "lc_messages": "C",
    "ssl": "off",
    "huge_pages": "off",
    "shared_buffers": "128MB",
    "autovacuum": "off",
    "fsync": "off",
    "restart_after_crash": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "default_transaction_read_only": "off",
}


class DrillRun:
    """One drill on one host; ``facts`` are the role's variables and the results of its modules so far."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.scratch = part(facts, "scratch")
        self.restored = part(facts, "restore")
        self.recovery = part(facts, "recovery")
        self.entry = first_cluster(facts)
        self.named = facts["backup_id"] not in ("", "latest")
        self.wanted = str(facts["backup_id"] if self.named else self.entry.get("newest") or "")
        found = [one for one in self.entry.get("backups") or [] if one["backup_id"] == self.wanted]
        self.backup: Facts = found[0] if found else {}
        self.backup_id = str(self.restored.get("backup_id") or self.wanted)

    def answer(self) -> dict[str, t.Any]:
        """Return all decisions and messages, by the names that the filter documents."""
        return {
            "proven": self.proven,
            # Any target that is set turns off the default one.
            "recovery_target": "" if any(self.facts["other_targets"]) else self.facts["target"],
            "settings": self.settings,
            "connect_params": self.connect_params,
            "stoppers": self.stoppers,
            "plan": self.plan,
            "bad": self.bad,
            "backup_id": self.backup_id,
            "msg": self.msg,
            "fresh": self.fresh,
            "record": self.record,
            "result": self.result,
        }

    @property
    def proven(self) -> bool:
        """Whether a recent drill has proven the backup that is set, or any backup of the cluster."""
        return bool((self.backup if self.named else self.entry).get("proven_recently"))

    @property
    def settings(self) -> dict[str, t.Any]:
        """The settings of the drill's server."""
        settings: dict[str, t.Any] = {
            **SETTINGS,
            "unix_socket_directories": self.scratch.get("socket_directory") or "",
            "hba_file": self.scratch.get("hba_file") or "",
            "ident_file": self.scratch.get("ident_file") or "",
        }
        if self._major == 14:
            settings["stats_temp_directory"] = "pg_stat_tmp"
        if self._major >= 17:
            settings["event_triggers"] = "off"
        # Item by item: Ansible passes a dictionary whose values are templated on access.
        settings.update((name, value) for name, value in self.facts["settings"].items())
        return settings

    @property
    def connect_params(self) -> dict[str, str]:
        """The connection parameters of the superuser: nothing that a role or a database of the source sets is loaded.

        Only the start packet comes before such settings; version 17 made event triggers that run at the login.
        """
        return {"options": options_for_a_copy(self._major)}

    @property
    def _major(self) -> int:
        # "18.3", "16.2 (Debian 16.2-1)", "19beta1"
        number = re.match(r"[0-9]+", str(self.backup.get("version") or ""))
        return int(number.group()) if number else 0

    @property
    def stoppers(self) -> list[Facts]:
        """What would prevent the drill, in check mode: a module's whole failure, or each refusal of the restore."""
        failures = [_failure(self.scratch, "data_directory"), _failure(self.restored, "plan")]
        return [one for one in failures if one] + list(part(self.restored, "plan").get("refusals") or [])

    @property
    def plan(self) -> list[str]:
        """The lines that report what would be done."""
        facts = self.facts
        pages = "where data checksums are on" if facts["checksums"] else "no"
        return [
            (
                f"{facts['host']}: the backup {self.backup_id or '(none)'} of the cluster {facts['cluster']}"
                f" {'cannot be' if self.stoppers else 'would be'} restored in"
                f" {self.scratch.get('directory') or facts['directory']}."
            ),
            f"Why this one: {self.restored.get('why') or ''}",
            f"Target: {self.target}",
            f"Size: {size(part(self.restored, 'plan').get('bytes') or 0)}",
            (
                f"Then: pg_amcheck ({facts['amcheck_wanted']}), {len(facts['own_checks'])} checks of yours,"
                f" pg_checksums ({pages})"
            ),
            codes(self.stoppers),
            *explained(self.stoppers),
        ]

    @property
    def target(self) -> str:
        """The recovery target, for people."""
        return str(self.restored.get("target") or self.facts["target"] or "as named")

    @property
    def checks(self) -> list[dict[str, t.Any]]:
        """The results of the checks: ``name``, ``ok``, ``msg``. ``ok`` is None for a check that was skipped."""
        found = []
        if "reached" in self.recovery:
            found.append(_check("restore and recovery", True, self.recovery.get("msg")))
        if part(self.facts, "amcheck"):
            found.append(self._amcheck())
        if part(self.facts, "pages"):
            found.append(self._pages())
        found += self._own()
        failed = part(self.facts, "failed")
        if failed:
            found.append(_check(failed.get("name"), False, failed.get("msg")))
        uncleaned = _failure(part(self.facts, "clean"), "directory")
        if uncleaned:
            found.append(_check("cleaning", False, uncleaned.get("msg")))
        return found

    def _amcheck(self) -> dict[str, t.Any]:
        wanted, result = self.facts["amcheck_wanted"], part(self.facts, "amcheck")
        if wanted == "never":
            return _check("pg_amcheck", None, "not wanted")
        # Not every server package has the program and the extension.
        if result.get("code") in ("programs_missing", "amcheck_missing"):
            return _check("pg_amcheck", False if wanted == "always" else None, result.get("msg"))
        if result.get("rc") == 0 and not result.get("code"):
            return _check("pg_amcheck", True, result.get("output") or "no corruption found")
        return _check("pg_amcheck", False, result.get("msg") or NO_MESSAGE)

    def _pages(self) -> dict[str, t.Any]:
        result = part(self.facts, "pages")
        if not self.facts["checksums"]:
            return _check("pg_checksums", None, "not wanted")
        if not self.recovery.get("data_checksums"):
            return _check("pg_checksums", None, "data checksums are off")
        output = " ".join(f"{result.get('stdout') or ''} {result.get('stderr') or ''}".split())
        return _check("pg_checksums", result.get("rc") == 0, output or result.get("msg"))

    def _own(self) -> list[dict[str, t.Any]]:
        result = part(self.facts, "sql")
        if not result or result.get("skipped"):
            return []
        if "results" in result:
            return list(result["results"])
        return [_check("checks of yours", False, result.get("msg"))]

    @property
    def bad(self) -> list[dict[str, t.Any]]:
        """The checks that failed."""
        return [one for one in self.checks if one["ok"] is False]

    @property
    def msg(self) -> str:
        """The message of the drill's result."""
        start = f"{self.facts['host']}: the backup {self.backup_id or '(none)'} of the cluster {self.facts['cluster']}"
        if self.bad:
            return f"{start} is not proven: " + "; ".join(f"{one['name']}: {one['msg']}" for one in self.bad)
        passed = sum(one["ok"] is True for one in self.checks)
        return (
            f"{start} was restored, recovered to {self.recovery.get('replay_lsn') or ''} (last transaction at"
            f" {self.recovery.get('last_transaction_at') or 'an unknown time'}) and passed {passed} checks."
        )

    @property
    def fresh(self) -> dict[str, t.Any]:
        """``pg_drill_result`` before a drill."""
        msg = f"{self.facts['host']}: a drill of the cluster {self.facts['cluster']} is due."
        if self.proven:
            msg = (
                f"{self.facts['host']}: the cluster {self.facts['cluster']} was proven less than"
                f" {self.facts['max_age']} ago."
            )
        return {"changed": False, "ok": self.proven, "backup_id": self.wanted, "checks": [], "msg": msg}

    @property
    def record(self) -> dict[str, t.Any]:
        """The drill's entry in the backup's record, without unknown values."""
        return {name: value for name, value in self._outcome().items() if value is not None}

    @property
    def result(self) -> dict[str, t.Any]:
        """``pg_drill_result`` after a drill."""
        return {
            **self._outcome(),
            "changed": True,
            "cluster": self.facts["cluster"],
            "backup_id": self.backup_id,
        }

    def _outcome(self) -> dict[str, t.Any]:
        began, ended = float(self.facts["began"]), float(self.facts["ended"])
        return {
            "ok": not self.bad,
            "at": datetime.datetime.fromtimestamp(ended, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "by": self.facts["by"],
            "host": self.facts["host"],
            "recovered_to_lsn": self.recovery.get("replay_lsn"),
            "last_transaction_at": self.recovery.get("last_transaction_at"),
            "timeline": self.recovery.get("timeline"),
            "target": self.target,
            "seconds": round(ended - began, 1),
            "msg": self.msg,
            "checks": self.checks,
        }


def _failure(result: Facts, success: str) -> Facts:
    """Return the problem of a module that failed, {} for one that has not run, or has returned ``success``."""
    if not result or "code" in result:
        return result
    if result.get("skipped") or success in result:
        return {}
    return {"code": "module_failed", "msg": str(result.get("msg") or NO_MESSAGE), "hint": ""}


def _check(name: t.Any, ok: t.Optional[bool], msg: t.Any) -> dict[str, t.Any]:
    return {"name": str(name or "an unknown task"), "ok": ok, "msg": str(msg or "").strip()[:LONGEST_OUTPUT]}
