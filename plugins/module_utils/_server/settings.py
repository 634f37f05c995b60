# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of a running server, by ALTER SYSTEM: planned and checked as a whole, then changed.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.

The current value is that of the configuration files, not the one that the server runs with: a value that only waits for
a restart is not changed again. Sources: PostgreSQL, "Setting Parameters", "ALTER SYSTEM", "pg_settings" and
"pg_file_settings".
"""

from __future__ import annotations

import os
import re
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.conf import AUTO_CONF
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import Connection, raw, readable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.identifiers import identifier
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.managed import require_unmanaged
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.values import (
    LISTS,
    Value,
    as_text,
    elements,
    normal,
    normal_or_none,
)

RELOAD_SECONDS = 10.0
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*")

PARAMETERS = """
SELECT lower(name) AS name, context, vartype, unit, enumvals, min_val::float8, max_val::float8, boot_val, reset_val,
       source, sourcefile, pending_restart
FROM pg_settings WHERE lower(name) = ANY(%s)
"""


class Change(t.NamedTuple):
    """The change of one parameter: its value in the configuration files before and after, None for none."""

    name: str
    before: t.Optional[str]
    after: t.Optional[str]
    # What ALTER SYSTEM had set, None for nothing.
    undo: t.Optional[str]


class Parameters:
    """The parameters ``names`` of a server, and their values in its configuration files.

    ``missing_libraries`` are the ``libraries`` that are not installed.
    """

    def __init__(self, connection: Connection, names: t.Iterable[str], libraries: t.Sequence[str] = ()) -> None:
        self.connection = connection
        self.missing_libraries = [library for library in libraries if not _load(connection, library)]
        wanted = sorted({name.lower() for name in names})
        self.parameters = {row["name"]: row for row in connection.rows(PARAMETERS, (wanted,))}
        files = _allowed(
            connection, "SELECT lower(name) AS name, setting, sourcefile FROM pg_file_settings ORDER BY seqno"
        )
        self.files_readable = files is not None
        # The last line counts; the server reads postgresql.auto.conf last.
        self.files = {row["name"]: row for row in files or () if row["name"] in wanted}

    def require_known(self, names: t.Iterable[str]) -> None:
        """Raise :class:`BackupError` for the first of ``names`` that the server does not have or that is fixed."""
        for name in names:
            parameter = self.parameters.get(name.lower())
            if parameter is None or not _NAME.fullmatch(name):
                hint = f"The library {self.missing_libraries[0]} is not installed." if self.missing_libraries else ""
                raise BackupError(
                    f"The server at {self.connection.address} has no parameter {name}.",
                    code="unknown_setting",
                    hint=hint or "A parameter of a library is known only after the library is loaded: name it in load.",
                )
            if parameter["context"] == "internal":
                raise BackupError(f"The parameter {name} cannot be changed.", code="fixed_setting")

    def configured(self, name: str) -> t.Optional[str]:
        """Return the value in the files, as written there; None when they have none or it cannot be determined."""
        parameter = self.parameters[name.lower()]
        if self.files_readable:
            line = self.files.get(name.lower())
            return line["setting"] if line else None
        # Without the right to see the files: their value at the last reload, unless a restart is pending.
        return None if parameter["pending_restart"] else parameter["reset_val"]

    def value(self, name: str) -> t.Optional[str]:
        """Return the value after the next restart, as written; None when it cannot be determined."""
        parameter = self.parameters.get(name.lower())
        if parameter is None:
            line = self.files.get(name.lower())
            return readable(line["setting"]) if line else None
        if _overridden(parameter):
            return readable(parameter["reset_val"])
        found = self.configured(name)
        if found is None and (self.files_readable or not parameter["pending_restart"]):
            found = parameter["boot_val"]
        return None if found is None else readable(found)

    def value_after(self, change: Change) -> t.Optional[str]:
        """Return :meth:`value` after a change; None for what a RESET uncovers in other files."""
        return None if change.after is None else readable(change.after)

    def by_alter_system(self, name: str) -> t.Optional[str]:
        """Return the value in postgresql.auto.conf, None without one."""
        line = self.files.get(name.lower()) if self.files_readable else self.parameters[name.lower()]
        if line is None or os.path.basename(line["sourcefile"] or "") != AUTO_CONF:
            return None
        return str(line["setting" if self.files_readable else "reset_val"])

    def plan(self, settings: t.Mapping[str, Value]) -> list[Change]:
        """Return the changes that ``settings`` (None: RESET) need. Raises :class:`BackupError` for bad ones."""
        self.require_known(settings)
        changes = []
        for name, wanted in settings.items():
            parameter = self.parameters[name.lower()]
            before, undo = self.configured(name), self.by_alter_system(name)
            if wanted is None:
                if undo is not None:
                    changes.append(Change(name, before, None, undo))
                continue
            after = _sent(as_text(name, wanted))
            canonical = normal(parameter, after)
            if _overridden(parameter):
                if canonical == normal(parameter, parameter["reset_val"]):
                    continue
                raise BackupError(
                    f"{name} is set on the server's command line or in its environment, which ALTER SYSTEM does not"
                    f" override.",
                    code="overridden_setting",
                    hint="Change it where the server is started.",
                )
            present = parameter["boot_val"] if before is None and self.files_readable else before
            if present is None or normal_or_none(parameter, present) != canonical:
                changes.append(Change(name, before, after, undo))
        return changes

    def require_rights(self, changes: t.Iterable[Change], reload: bool) -> None:
        """Raise :class:`BackupError` when the login role, or this server, does not allow all of the ``changes``."""
        # A RESET only takes back what ALTER SYSTEM has set.
        require_unmanaged(self.connection, {one.name: readable(one.after) for one in changes if one.after is not None})
        ask = self.connection.value
        if ask("SELECT current_setting('allow_alter_system', true)") == "off":
            raise BackupError(
                f"The server at {self.connection.address} has allow_alter_system=off.",
                code="alter_system_off",
                hint="Change the settings where its configuration is managed.",
            )
        role = identifier(readable(ask("SELECT current_user")))
        for change in changes:
            if self.connection.major >= 15:
                allowed = ask("SELECT has_parameter_privilege(%s, 'ALTER SYSTEM')", (change.name,))
                hint = f"As a superuser: GRANT ALTER SYSTEM ON PARAMETER {change.name} TO {role};"
            else:
                allowed = ask("SELECT current_setting('is_superuser')") == "on"
                hint = "Log in as a superuser."
            if not allowed:
                raise BackupError(f"The role {role} may not set {change.name}.", code="no_privilege", hint=hint)
        if reload and not ask("SELECT has_function_privilege('pg_reload_conf()', 'EXECUTE')"):
            raise BackupError(
                f"The role {role} may not reload the configuration.",
                code="no_privilege",
                hint=f"As a superuser: GRANT EXECUTE ON FUNCTION pg_reload_conf() TO {role};",
            )

    def apply(self, changes: t.Sequence[Change]) -> None:
        """Make the ``changes``; when the server refuses one, revert the earlier ones and raise the refusal."""
        done: list[Change] = []
        for change in changes:
            try:
                self._alter(change.name, change.after)
            except BackupError as exc:
                for earlier in reversed(done):
                    self._alter(earlier.name, earlier.undo)
                raise BackupError(
                    f"{change.name} was not changed, and nothing else was: {exc.msg}",
                    code="setting_refused",
                    sqlstate=exc.details.get("sqlstate"),
                ) from exc
            done.append(change)

    def _alter(self, name: str, value: t.Optional[str]) -> None:
        quoted = ".".join(f'"{part}"' for part in name.lower().split("."))
        if value is None:
            self.connection.rows(f"ALTER SYSTEM RESET {quoted}")
            return
        # An empty list is written as one empty element; ALTER SYSTEM has no other form.
        parts = (elements(value) if name.lower() in LISTS else [value]) or [""]
        marks = ", ".join(["%s"] * len(parts))
        self.connection.rows(f"ALTER SYSTEM SET {quoted} = {marks}", parts)

    def reload(self) -> None:
        """Make the server reload its files and wait for it. Raises :class:`BackupError` when it does not."""
        before = self.connection.value("SELECT pg_conf_load_time()")
        self.connection.rows("SELECT pg_reload_conf()")
        deadline = time.monotonic() + RELOAD_SECONDS
        while self.connection.value("SELECT pg_conf_load_time()") <= before:
            if time.monotonic() > deadline:
                raise BackupError(
                    f"The server at {self.connection.address} did not load its new configuration within"
                    f" {RELOAD_SECONDS:.0f} s.",
                    code="reload_failed",
                    hint="See its log, and its files: SELECT * FROM pg_file_settings WHERE error IS NOT NULL;",
                )
            time.sleep(0.02)

    def pending_restart(self, changes: t.Iterable[Change] = ()) -> list[str]:
        """Return all parameters, named or not, that wait for a restart after ``changes``."""
        pending = {row["name"] for row in self.connection.rows("SELECT name FROM pg_settings WHERE pending_restart")}
        for change in changes:
            parameter = self.parameters[change.name.lower()]
            after = parameter["boot_val"] if change.after is None else change.after
            pending.discard(parameter["name"])
            runs_with = normal_or_none(parameter, parameter["reset_val"] or "")
            if parameter["context"] == "postmaster" and normal_or_none(parameter, after or "") != runs_with:
                pending.add(parameter["name"])
        return sorted(pending)


def _load(connection: Connection, library: str) -> bool:
    """Load ``library`` into this session, which defines its parameters; False when it is not installed."""
    try:
        connection.rows("LOAD %s", (library,))
        return True
    except BackupError as exc:
        # undefined_file
        if exc.details.get("sqlstate") == "58P01":
            return False
        raise


def _allowed(connection: Connection, query: str) -> t.Optional[list[dict[str, t.Any]]]:
    try:
        return connection.rows(query)
    except BackupError as exc:
        if exc.details.get("sqlstate") == "42501":
            return None
        raise


def _overridden(parameter: t.Mapping[str, t.Any]) -> bool:
    return parameter["source"] in ("command line", "environment variable", "override")


def _sent(text: str) -> str:
    """Return text from the task as the SQL_ASCII connection sends it."""
    return os.fsencode(text).decode("latin-1")


def as_lines(changes: t.Iterable[Change], after: bool) -> str:
    """Return the changed parameters for a diff, one a line, before or after."""
    lines = []
    for change in sorted(changes):
        value = change.after if after else change.before
        lines.append(f"{change.name} is not set\n" if value is None else f"{change.name} = '{readable(value)}'\n")
    return "".join(lines)


def running(connection: Connection, names: t.Iterable[str]) -> dict[str, t.Optional[str]]:
    """Return the values that the server runs with, as SHOW prints them; None for parameters that it does not have."""
    shown = {name: connection.value("SELECT current_setting(%s, true)", (name,)) for name in names}
    return {name: None if value is None else raw(value).decode("utf-8", "replace") for name, value in shown.items()}
