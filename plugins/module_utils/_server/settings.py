# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of a running server, by ALTER SYSTEM: planned and checked as a whole, then changed.

Private to pgfleet.basebackup: no stability is promised.

What counts as the present value is what the configuration files say, not what the server runs with: a value that only
waits for a restart is not changed again. Sources: PostgreSQL, "Setting Parameters", "ALTER SYSTEM", "pg_settings" and
"pg_file_settings".
"""

from __future__ import annotations

import os
import re
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import Connection, raw, readable

RELOAD_SECONDS = 10.0


AUTO_CONF = "postgresql.auto.conf"


# Parameters whose elements ALTER SYSTEM quotes one by one (GUC_LIST_QUOTE): one text would become one element.
LISTS = (
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
)


MEMORY = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


TIME = {"us": 1, "ms": 1000, "s": 10**6, "min": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6}


TRUE, FALSE = ("on", "true", "yes", "1"), ("off", "false", "no", "0")


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*")


_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z]*)\s*")


PARAMETERS = """
SELECT lower(name) AS name, context, vartype, unit, enumvals, min_val::float8, max_val::float8, boot_val, reset_val,
       source, sourcefile, pending_restart
FROM pg_settings WHERE lower(name) = ANY(%s)
"""


Value = t.Union[None, str, bool, int, float, t.List[t.Any]]


class Change(t.NamedTuple):
    """One parameter: its value in the configuration files and the one that it shall have, None for none."""

    name: str
    before: t.Optional[str]
    after: t.Optional[str]
    # What ALTER SYSTEM had set, None for nothing.
    undo: t.Optional[str]


class Server:
    """The parameters ``names`` of a server, and what its configuration files say about them.

    ``missing_libraries`` are those of ``libraries`` that are not installed.
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
        # The last line counts, and postgresql.auto.conf is read last.
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
                    hint=hint or "A parameter of a library is known only when the library is loaded: load.",
                )
            if parameter["context"] == "internal":
                raise BackupError(f"The parameter {name} cannot be changed.", code="fixed_setting")

    def configured(self, name: str) -> t.Optional[str]:
        """Return what the files say, as it is written there; None when they say nothing or cannot be read for sure."""
        parameter = self.parameters[name.lower()]
        if self.files_readable:
            line = self.files.get(name.lower())
            return line["setting"] if line else None
        # Without the right to see the files: what was in them at the last reload, unless it waits for a restart.
        return None if parameter["pending_restart"] else parameter["reset_val"]

    def value(self, name: str) -> t.Optional[str]:
        """Return the value that holds after the next restart, as it is written; None when this is not known."""
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
        """Return what :meth:`value` is to be after a change; None for what a RESET uncovers in other files."""
        return None if change.after is None else readable(change.after)

    def by_alter_system(self, name: str) -> t.Optional[str]:
        """Return what postgresql.auto.conf says, None for nothing."""
        line = self.files.get(name.lower()) if self.files_readable else self.parameters[name.lower()]
        if line is None or os.path.basename(line["sourcefile"] or "") != AUTO_CONF:
            return None
        return str(line["setting" if self.files_readable else "reset_val"])

    def plan(self, settings: t.Mapping[str, Value]) -> list[Change]:
        """Return the changes that bring ``settings`` (None: RESET) about. Raises :class:`BackupError` for bad ones."""
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
            if present is None or _normal_or_none(parameter, present) != canonical:
                changes.append(Change(name, before, after, undo))
        return changes

    def require_rights(self, changes: t.Iterable[Change], reload: bool) -> None:
        """Raise :class:`BackupError` when the login role, or this server, does not allow all of the ``changes``."""
        ask = self.connection.value
        if ask("SELECT current_setting('allow_alter_system', true)") == "off":
            raise BackupError(
                f"The server at {self.connection.address} has allow_alter_system=off.",
                code="alter_system_off",
                hint="Change the settings where its configuration is managed.",
            )
        role = readable(ask("SELECT quote_ident(current_user)"))
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
        """Run the ``changes``; when the server refuses one, take those before it back and raise the refusal."""
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
        elements = _elements(value) if name.lower() in LISTS else [value]
        # An empty list has one empty element; ALTER SYSTEM knows no other way to write it.
        marks = ", ".join(["%s"] * len(elements or [""]))
        self.connection.rows(f"ALTER SYSTEM SET {quoted} = {marks}", elements or [""])

    def reload(self) -> None:
        """Have the server read its files, and wait until it has. Raises :class:`BackupError` when it does not."""
        before = self.connection.value("SELECT pg_conf_load_time()")
        self.connection.rows("SELECT pg_reload_conf()")
        deadline = time.monotonic() + RELOAD_SECONDS
        while self.connection.value("SELECT pg_conf_load_time()") <= before:
            if time.monotonic() > deadline:
                raise BackupError(
                    f"The server at {self.connection.address} did not take its new configuration within"
                    f" {RELOAD_SECONDS:.0f} s.",
                    code="reload_failed",
                    hint="See its log, and SELECT * FROM pg_file_settings WHERE error IS NOT NULL;",
                )
            time.sleep(0.02)

    def pending_restart(self, changes: t.Iterable[Change] = ()) -> list[str]:
        """Return all parameters, asked for or not, that wait for a restart, as it is to be after ``changes``."""
        pending = {row["name"] for row in self.connection.rows("SELECT name FROM pg_settings WHERE pending_restart")}
        for change in changes:
            parameter = self.parameters[change.name.lower()]
            after = parameter["boot_val"] if change.after is None else change.after
            pending.discard(parameter["name"])
            runs_with = _normal_or_none(parameter, parameter["reset_val"] or "")
            if parameter["context"] == "postmaster" and _normal_or_none(parameter, after or "") != runs_with:
                pending.add(parameter["name"])
        return sorted(pending)


def _load(connection: Connection, library: str) -> bool:
    """Load ``library`` into this session, so that its parameters are known; False when it is not installed."""
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
    """Return text from the task as our SQL_ASCII connection sends it."""
    return os.fsencode(text).decode("latin-1")


def as_text(name: str, value: Value) -> str:
    """Return the text of a value from a task: ``on`` and ``off`` are booleans in YAML, lists have commas."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list):
        return ", ".join(as_text(name, one) for one in value)
    raise BackupError(f"{name} cannot have the value {value!r}.", code="bad_setting")


def _elements(text: str) -> list[str]:
    return [one.strip().strip('"') for one in text.split(",") if one.strip()]


def _normal_or_none(parameter: t.Mapping[str, t.Any], text: str) -> t.Optional[str]:
    """Return :func:`normal`, None for what the server would refuse and so cannot be the same as anything."""
    try:
        return normal(parameter, text)
    except BackupError:
        return None


def normal(parameter: t.Mapping[str, t.Any], text: str) -> str:
    """Return the one spelling of a value. Raises :class:`BackupError`, code ``bad_setting``, for one that is none.

    Numbers are in the parameter's own unit; ``text`` may have another of the same kind.
    """
    kind, name = parameter["vartype"], parameter["name"]
    word = text.strip().lower()
    if kind == "bool" or (kind == "enum" and "on" in parameter["enumvals"] and word in TRUE + FALSE):
        if word in TRUE + FALSE:
            return "on" if word in TRUE else "off"
        raise BackupError(f"{name} is on or off, not {readable(text)}.", code="bad_setting")
    if kind == "enum":
        if word in parameter["enumvals"]:
            return word
        raise BackupError(f"{name} is one of {', '.join(parameter['enumvals'])}, not {readable(text)}.", "bad_setting")
    if kind in ("integer", "real"):
        return _number(parameter, text)
    if "\n" in text:
        raise BackupError(f"The value of {name} must not contain a line break.", code="bad_setting")
    return ", ".join(_elements(text)) if name in LISTS else text


def _number(parameter: t.Mapping[str, t.Any], text: str) -> str:
    name, unit = parameter["name"], parameter["unit"]
    match = _NUMBER.fullmatch(text)
    kinds = [table for table in (MEMORY, TIME) if re.sub(r"^\d+", "", unit or "") in table]
    if match is None or (match.group(2) and not (kinds and match.group(2) in kinds[0])):
        what = f"a number (unit {unit})" if unit else "a number"
        raise BackupError(f"{name} is {what}, not {readable(text)}.", code="bad_setting")
    number = float(match.group(1))
    if match.group(2):
        # Such as 8kB: how many, and of what.
        name_of_unit = unit.lstrip("0123456789")
        base = kinds[0][name_of_unit] * int(unit[: -len(name_of_unit)] or 1)
        number *= kinds[0][match.group(2)] / base
    if parameter["vartype"] == "integer":
        number = float(round(number))
    if not parameter["min_val"] <= number <= parameter["max_val"]:
        raise BackupError(
            f"{name} is {parameter['min_val']:g} to {parameter['max_val']:g} {unit or ''}".rstrip()
            + f", not {readable(text)}.",
            code="bad_setting",
        )
    return repr(number)


def as_lines(changes: t.Iterable[Change], after: bool) -> str:
    """Return the changed parameters for a diff, one a line, before or after."""
    lines = []
    for change in sorted(changes):
        value = change.after if after else change.before
        lines.append(f"{change.name} is not set\n" if value is None else f"{change.name} = '{readable(value)}'\n")
    return "".join(lines)


def running(connection: Connection, names: t.Iterable[str]) -> dict[str, t.Optional[str]]:
    """Return the values that the server runs with, as SHOW tells them; None for parameters that it does not have."""
    shown = {name: connection.value("SELECT current_setting(%s, true)", (name,)) for name in names}
    return {name: None if value is None else raw(value).decode("utf-8", "replace") for name, value in shown.items()}
