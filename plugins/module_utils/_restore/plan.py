# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a restore: what will be done, and every reason why it must not. Data alone; planner.py makes it.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import control as _control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.tree import version_directory
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Cluster
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import target as _target
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.candidate import Choice
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import (
    CONTROL,
    Layout,
    Survey,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import (
    CLUSTER,
    OTHER,
    digest_of,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _running
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.look import Found
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import archive as _archive


class Plan:
    """The plan of one restore, made by reading alone.

    ``refusals`` are the reasons why it must not be done, ``warnings`` what its administrator should know. The rest is
    set as far as the refusals let it be known: ``chosen``, ``content`` and ``files`` of the backup, ``layout``,
    ``survey`` of what is there, ``control`` and ``settings`` of the restored server, ``unarchived`` and ``used`` WAL.
    """

    def __init__(self, cluster: Cluster, params: t.Mapping[str, t.Any]) -> None:
        self.params = params
        self.cluster = cluster
        self.digest = digest_of(params)
        self.data = os.path.realpath(os.fsencode(params["data_directory"]))
        self.refusals: list[BackupError] = []
        self.warnings: list[str] = []
        self.chosen: t.Optional[Choice] = None
        self.archive: t.Optional[_archive.Archive] = None
        self.layout: t.Optional[Layout] = None
        self.files: list[Found] = []
        self.small: dict[bytes, Found] = {}
        self.directories: list[bytes] = []
        self.survey = Survey({}, [])
        self.settings: dict[str, t.Any] = {}
        self.parameters: list[dict[str, t.Any]] = []
        self.config_files_outside: list[str] = []
        self.unarchived: list[str] = []
        self.used: list[tuple[bytes, str]] = []
        self.wal_from: list[bytes] = []
        self.save_to = b""
        self.moved = b""
        self.aside: list[tuple[int, bytes]] = []
        self.room: list[dict[str, t.Any]] = []
        self.data_directory_setting = False
        self.target = _target.parse_target(params)
        self.state = OTHER
        self.record: dict[str, t.Any] = {}
        self.wish: dict[str, t.Any] = {}
        self.servers: list[_running.Running] = []

    @property
    def content(self) -> dict[str, t.Any]:
        """The metadata of the chosen backup."""
        return self.choice.content

    @property
    def choice(self) -> Choice:
        """What was chosen, for steps that come after the choice."""
        return t.cast(Choice, self.chosen)

    @property
    def places(self) -> Layout:
        """The layout, for steps that come after it was made."""
        return t.cast(Layout, self.layout)

    @property
    def is_done(self) -> bool:
        """Tell whether this very restore has been finished here."""
        return (
            self.chosen is not None
            and (not self.params["force"] or self.record.get("run_id") == (self.params["run_id"] or ""))
            and self.record.get("digest") == self.digest
            and self.record["backup_id"] == self.chosen.backup.id
        )

    @property
    def replaces(self) -> bool:
        """Tell whether what is there is moved aside first."""
        return bool(self.params["replace"]) and self.state in (CLUSTER, OTHER)

    def refuse(self, code: str, msg: str, hint: str = "", **details: t.Any) -> None:
        """Note a reason why this must not be done."""
        self.refusals.append(BackupError(msg, code=code, hint=hint, **details))

    def specials(self) -> set[bytes]:
        """Return the symbolic links of the source, which are not in the backup; where they are they may stay."""
        found = self.content["copy"].get("special_files") or []
        return {one["path"].encode("utf-8", "surrogateescape") for one in found if one["kind"] == "symlink"}

    def old_control(self) -> t.Optional[_control.ControlFile]:
        """Return the control file of the cluster in the target directory, None when it has none that is good."""
        try:
            return _control.read_control(self.data + b"/" + CONTROL, attempts=1)
        except BackupError:
            return None

    def version(self) -> bytes:
        """Return the name of the server's directory in each tablespace."""
        server = self.content["server"]
        return version_directory(server["major"], server["catalog_version"])

    # -- what is told of it ----------------------------------------------------------------------------------------

    def told(self, equal: t.Optional[tuple[int, int]] = None) -> dict[str, t.Any]:
        """Return the module's result as far as it is known before the work.

        ``equal`` are number and bytes of the files that are right; without it those of the right size are taken.
        """
        total = sum(file.entry.size for file in self.files)
        sizes = [file.entry.size for file in self.files if self._may_keep(file)]
        number, kept = equal or (len(sizes), sum(sizes))
        saved = self.save_to or (self.wal_from[-1] if self.moved and self.unarchived else b"")
        plan: dict[str, t.Any] = {
            "bytes": total,
            "files": len(self.files),
            "keep_files": number,
            "keep_bytes": kept,
            "replace_files": len(self.survey.existing) - number,
            "remove_files": len(self.survey.surplus),
            "copy_files": len(self.files) - number,
            "copy_bytes": total - kept,
            "room": self.room,
            "moved_aside": printable(self.moved) if self.moved else None,
            "refusals": [{"code": one.code, "msg": one.msg, "hint": one.hint} for one in self.refusals],
            "warnings": list(self.warnings),
            "parameters": self.parameters,
            "saved_wal": printable(saved) if saved else None,
            "unarchived_wal": self.unarchived,
            "used_wal": sorted(name for _place, name in self.used),
            "config_files_outside": self.config_files_outside,
            "restore_command": self.settings.get("restore_command"),
        }
        result: dict[str, t.Any] = {
            "data_directory": os.fsdecode(self.data),
            "restore_as": self.params["restore_as"],
            "target": _target.in_words(self.target),
            "plan": plan,
        }
        if self.chosen is not None:
            copy = self.content["copy"]
            rate = copy["bytes"] / copy["seconds"] if copy.get("seconds") else 0
            until = self.choice.recoverable_until_us
            plan.update(
                wal_needed=self.choice.wal_needed,
                wal_missing=self.choice.wal_missing,
                estimated_seconds=round((total - kept) / rate, 1) if rate else None,
                recoverable_until=None if until is None else _target.format_time(until),
            )
            result.update(backup_id=self.choice.backup.id, why=self.choice.why)
        if self.layout is not None:
            result["tablespaces"] = {str(space.oid): printable(space.location) for space in self.layout.spaces}
        return result

    def _may_keep(self, file: Found) -> bool:
        there = self.survey.existing.get(file.entry.path)
        return there is not None and there.size == file.entry.size
