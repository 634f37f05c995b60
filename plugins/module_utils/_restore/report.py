# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module's result, made from a plan.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import Server
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.aside import Aside
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.candidate import Choice
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.plan import Plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.target import format_time, in_words


def result_of(
    plan: Plan,
    equal: t.Optional[tuple[int, int]] = None,
    aside: t.Optional[Aside] = None,
    warnings: t.Sequence[str] = (),
) -> dict[str, t.Any]:
    """Return the module's result as far as it is known before the work.

    ``equal`` are number and bytes of the existing files with the right content; without it the files of the right size
    are counted. ``aside`` is what was moved aside; ``warnings`` come after those of the plan.
    """
    numbers = _numbers(plan, *(equal or _of_equal_size(plan)))
    saved = plan.wal.save_to or (aside.wal if aside and plan.wal.unarchived else b"")
    result: dict[str, t.Any] = {
        "data_directory": os.fsdecode(plan.data),
        "restore_as": plan.params["restore_as"],
        "target": in_words(plan.target),
        "plan": {
            **numbers,
            "room": [{**one._asdict(), "directory": printable(one.directory)} for one in plan.room],
            "moved_aside": printable(aside.directory) if aside and aside.directory else None,
            "refusals": [{"code": one.code, "msg": one.msg, "hint": one.hint} for one in plan.refusals],
            "warnings": [*plan.warnings, *warnings],
            "parameters": list(plan.configuration.parameters),
            "saved_wal": printable(saved) if saved else None,
            "unarchived_wal": list(plan.wal.unarchived),
            "used_wal": sorted(name for _directory, name in plan.wal.used),
            "config_files_outside": [],
            "config_file": plan.configuration.config_file,
            "run_by": None,
            "restore_command": plan.configuration.settings.get("restore_command"),
        },
    }
    if plan.choice is not None:
        result["plan"].update(_of_choice(plan.choice, numbers["copy_bytes"]))
        result.update(backup_id=plan.choice.backup.id, why=plan.choice.why)
    if plan.layout is not None:
        result["tablespaces"] = {str(space.oid): printable(space.location) for space in plan.layout.spaces}
    return result


def _numbers(plan: Plan, kept_files: int, kept_bytes: int) -> dict[str, int]:
    files = plan.contents.files
    total = sum(file.entry.size for file in files)
    return {
        "bytes": total,
        "files": len(files),
        "keep_files": kept_files,
        "keep_bytes": kept_bytes,
        "replace_files": len(plan.survey.existing) - kept_files,
        "remove_files": len(plan.survey.surplus),
        "copy_files": len(files) - kept_files,
        "copy_bytes": total - kept_bytes,
    }


def _of_equal_size(plan: Plan) -> tuple[int, int]:
    existing = plan.survey.existing
    sizes = [
        file.entry.size
        for file in plan.contents.files
        if file.entry.path in existing and existing[file.entry.path].size == file.entry.size
    ]
    return len(sizes), sum(sizes)


def _of_choice(choice: Choice, copy_bytes: int) -> dict[str, t.Any]:
    copy, until = choice.record.copy, choice.recoverable_until_us
    rate = copy.bytes / copy.seconds if copy.seconds else 0
    return {
        "config_files_outside": list(choice.record.server.config_files_outside),
        "run_by": _run_by(choice.record.server),
        "wal_needed": choice.wal_needed,
        "wal_missing": choice.wal_missing,
        "estimated_seconds": round(copy_bytes / rate, 1) if rate else None,
        "recoverable_until": None if until is None else format_time(until),
    }


def _run_by(server: Server) -> t.Optional[dict[str, t.Any]]:
    """Return who ran the server that was backed up, as ``process_info`` takes it."""
    if server.run_by is None:
        return None
    facts = server.run_by._asdict()
    return {
        **facts,
        "socket_directories": list(server.run_by.socket_directories),
        "data_directory": server.data_directory,
    }
