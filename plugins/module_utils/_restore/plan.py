# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a restore: what will be done, or why it must not be done. It is only data; planner.py makes it.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.candidate import Choice
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.contents import Contents
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import Layout, Survey
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.old_wal import OldWal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import CLUSTER, OTHER, Destination
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.room import FileSystem
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.settings import Configuration
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.tablespaces import LeftOver
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.target import Target


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of one restore with the module's arguments ``params``; nothing changes it.

    ``target`` is the requested recovery target. ``refusals`` are the reasons why the restore must not be done,
    ``warnings`` are for the administrator. Parts that could not be found out because of a refusal are empty.
    """

    params: t.Mapping[str, t.Any]
    digest: str
    target: Target
    destination: Destination
    choice: t.Optional[Choice] = None
    contents: Contents = dataclasses.field(default_factory=Contents)
    layout: t.Optional[Layout] = None
    left_over: LeftOver = ()
    survey: Survey = dataclasses.field(default_factory=lambda: Survey({}, []))
    wal: OldWal = dataclasses.field(default_factory=OldWal)
    configuration: Configuration = dataclasses.field(default_factory=Configuration)
    room: t.Tuple[FileSystem, ...] = ()
    refusals: t.Tuple[BackupError, ...] = ()
    warnings: t.Tuple[str, ...] = ()

    @property
    def data(self) -> bytes:
        """The data directory, a path without links."""
        return self.destination.data

    @property
    def is_done(self) -> bool:
        """Whether this exact restore has been finished here."""
        record = self.destination.record
        return (
            self.choice is not None
            and record is not None
            and (not self.params["force"] or record.run_id == (self.params["run_id"] or ""))
            and record.digest == self.digest
            and record.backup_id == self.choice.backup.id
        )

    @property
    def replaces(self) -> bool:
        """Whether the contents of the data directory are moved aside first."""
        return bool(self.params["replace"]) and self.destination.state in (CLUSTER, OTHER)

    def approved(self) -> tuple[Choice, Layout]:
        """Return choice and layout of a plan that may be carried out. Raises ValueError when it must not be."""
        if self.refusals or self.choice is None or self.layout is None:
            raise ValueError("A restore that is refused must not be carried out.")
        return self.choice, self.layout
