# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The findings of the checks before a restore: refusals, which are reasons not to do it, and warnings.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

T = t.TypeVar("T")
D = t.TypeVar("D")


class Findings:
    """Collects refusals and warnings, so that all are reported at once, in the order in which they were found."""

    def __init__(self) -> None:
        self.refusals: list[BackupError] = []
        self.warnings: list[str] = []

    def refuse(self, code: str, msg: str, hint: str = "", **details: t.Any) -> None:
        """Add a reason why the restore must not be done."""
        self.refusals.append(BackupError(msg, code=code, hint=hint, **details))

    def warn(self, msg: str) -> None:
        """Add a warning."""
        self.warnings.append(msg)

    def collect(self, default: D, check: t.Callable[..., T], *arguments: t.Any) -> t.Union[T, D]:
        """Return what ``check`` returns. A BackupError that it raises becomes a refusal, and the result ``default``."""
        try:
            return check(*arguments)
        except BackupError as exc:
            self.refusals.append(exc)
            return default
