# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of parameters: from YAML to the text that ALTER SYSTEM takes, and to one spelling that can be compared.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.

Source: PostgreSQL, "Parameter Names and Values".
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import readable

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
_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z]*)\s*")
Value = t.Union[None, str, bool, int, float, t.List[t.Any]]


def as_text(name: str, value: Value) -> str:
    """Return the text of a value from a task: ``on`` and ``off`` are booleans in YAML, lists have commas."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list):
        return ", ".join(as_text(name, one) for one in value)
    raise BackupError(f"{name} cannot have the value {value!r}.", code="bad_setting")


def elements(text: str) -> list[str]:
    return [one.strip().strip('"') for one in text.split(",") if one.strip()]


def normal_or_none(parameter: t.Mapping[str, t.Any], text: str) -> t.Optional[str]:
    """Return :func:`normal`, None for a value that the server would refuse, which equals no other."""
    try:
        return normal(parameter, text)
    except BackupError:
        return None


def normal(parameter: t.Mapping[str, t.Any], text: str) -> str:
    """Return the canonical spelling of a value. Raises :class:`BackupError`, code ``bad_setting``, for an invalid one.

    Numbers are in the parameter's own unit; ``text`` may use another of the same kind.
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
    return ", ".join(elements(text)) if name in LISTS else text


def _number(parameter: t.Mapping[str, t.Any], text: str) -> str:
    name, unit = parameter["name"], parameter["unit"]
    match = _NUMBER.fullmatch(text)
    kinds = [table for table in (MEMORY, TIME) if re.sub(r"^\d+", "", unit or "") in table]
    if match is None or (match.group(2) and not (kinds and match.group(2) in kinds[0])):
        what = f"a number (unit {unit})" if unit else "a number"
        raise BackupError(f"{name} is {what}, not {readable(text)}.", code="bad_setting")
    number = float(match.group(1))
    if match.group(2):
        # A unit such as 8kB has its own factor.
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
