# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shared by the decisions of the roles: the words for failures, problems and sizes.

Private to pgfleet.basebackup: no stability is promised.

A role passes its variables and the results of its modules to one filter, which decides and reports: ``pg_backup``,
``pg_recover``, ``pg_drill``. Their logic is in this directory; it does not use Ansible and changes nothing.
"""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.units import readable_bytes

Facts = t.Mapping[str, t.Any]


def part(facts: Facts, name: str) -> Facts:
    """Return a result among ``facts``, an empty one when its task has not run."""
    value = facts.get(name)
    return value if isinstance(value, t.Mapping) else {}


def first_cluster(facts: Facts) -> Facts:
    """Return the entry of the role's cluster in the ``catalogue`` that backup_info returned."""
    clusters = part(facts, "catalogue").get("clusters") or [{}]
    entry: Facts = clusters[0]
    return entry


def size(number: t.Optional[int]) -> str:
    """Return a size for people."""
    return "unknown" if number is None else readable_bytes(number)


def joined(words: t.Iterable[t.Any], nothing: str = "none") -> str:
    """Return ``words`` in one line."""
    return ", ".join(str(word) for word in words) or nothing


def codes(problems: t.Iterable[Facts]) -> str:
    """Return the line of a plan that names its problems by their codes."""
    return "What would stop it: " + joined((problem["code"] for problem in problems), "nothing")


def explained(problems: t.Iterable[Facts]) -> list[str]:
    """Return a line for each problem: its code, what is wrong, what to do."""
    return [f"{problem['code']}: {sentence(problem)}" for problem in problems]


def sentence(problem: Facts) -> str:
    """Return the message of a problem with its hint."""
    return f"{problem.get('msg') or ''} {problem.get('hint') or ''}".strip()


def failure(facts: Facts) -> tuple[str, str]:
    """Return the task that failed, and its message."""
    result = part(facts, "failed_result")
    return str(facts.get("failed_task") or "an unknown task"), str(result.get("msg") or dict(result))


def options_for_a_copy(major: int = 0) -> str:
    """Return libpq's ``options`` with which a superuser's session on a restored copy loads and runs nothing of it."""
    return "-c session_preload_libraries=" + (" -c event_triggers=off" if major >= 17 else "")
