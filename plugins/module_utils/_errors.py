# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception that reaches the administrator, and the words for the options that it names.

Private to pgfleet.basebackup. Room ``_errors``: the one exception that reaches the administrator; it imports nothing.
"""

from __future__ import annotations

import os
import typing as t

# Set by a role for its tasks: the prefix of its variables, then each option whose variable has another name.
VARIABLES = "PGFLEET_VARIABLES"


class BackupError(Exception):
    """A refusal or a failure with a reason that the administrator can act on.

    ``msg`` says which backup or server, what happened and, for an error of PostgreSQL, its own message and SQLSTATE.
    ``hint`` is the next step, best as the exact command. ``code`` is a stable snake_case word for programs, with an
    entry in docs/errors.md. ``details`` are facts for JSON, which the module returns next to ``msg``.
    """

    def __init__(self, msg: str, code: str, hint: str = "", **details: t.Any) -> None:
        super().__init__(msg)
        self.msg = msg
        self.code = code
        self.hint = hint
        self.details = details

    def as_result(self) -> dict[str, t.Any]:
        """Return the keyword arguments for ``fail_json``: ``msg`` (with the hint), ``code``, ``hint``, details."""
        text = self.msg if self.msg.endswith((".", "!", "?", ";")) else f"{self.msg}."
        if self.hint:
            text = f"{text} {self.hint}"
        return {**self.details, "msg": text, "code": self.code, "hint": self.hint}


def option(name: str) -> str:
    """Return what the user set: the variable of the role that called the module, else the option of the module.

    With ``pg_backup_ timeout=archive_timeout`` in the environment ``wal`` is ``pg_backup_wal`` and ``timeout`` is
    ``pg_backup_archive_timeout``. A role declares that it has no variable for an option: ``login_host=``.
    """
    prefix, *renamed = os.environ.get(VARIABLES, "").split() or [""]
    for pair in renamed:
        own, _equals, variable = pair.partition("=")
        if own == name:
            return prefix + variable if variable else name
    return prefix + name
