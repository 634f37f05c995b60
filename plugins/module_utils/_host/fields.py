# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of the values of a JSON record. Each returns the typed value, or raises an error that names the field.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.

The checks of PostgreSQL's names and positions are in ``_wal/fields.py``.
"""

from __future__ import annotations

import json
import math
import re
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.clock import parse_utc
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import read_small

LONGEST_PATH = 4096
LONGEST_TEXT = 100_000
LONGEST_LIST = 1_000_000
MOST_BYTES = 1 << 62
MOST_SECONDS = 1e12
# time.gmtime accepts no year after 9999.
LAST_TIME = 253402300799.0
# No number in a record has more digits; int() of a long text takes quadratic time.
_MOST_DIGITS = 20
_SHOWN = 80
_HEX = re.compile(r"(?:[0-9a-f]{2})*\Z")
T = t.TypeVar("T")
Check = t.Callable[[t.Any], T]


class Wrong(Exception):
    """A wrong value: ``field`` is its place, ``problem`` what is wrong with it."""

    def __init__(self, problem: str, field: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.field = field

    def inside(self, name: str) -> Wrong:
        """Return the same error, with ``name`` put before its field."""
        dot = "." if self.field and not self.field.startswith("[") else ""
        return Wrong(self.problem, name + dot + self.field)

    def __str__(self) -> str:
        return f"{self.field} {self.problem}".strip()


def not_a(value: t.Any, what: str) -> Wrong:
    """Return the error for a value that is not ``what``."""
    shown = repr(value[:_SHOWN] if isinstance(value, (str, list)) else value)
    return Wrong(f"is {shown if len(shown) <= 2 * _SHOWN else shown[:_SHOWN] + '...'}, not {what}")


def load_object(data: bytes) -> t.Any:
    """Return the JSON in ``data``. Raises :class:`Wrong`, also for endless nesting."""
    try:
        return json.loads(data.decode("utf-8"), parse_int=_parse_int)
    except RecursionError as exc:
        raise Wrong("is nested too deeply") from exc
    except ValueError as exc:
        raise Wrong(f"is not JSON: {exc}") from exc


def _parse_int(digits: str) -> float:
    return int(digits) if len(digits) <= _MOST_DIGITS else math.inf


def field(content: t.Any, name: str, check: Check[T]) -> T:
    """Return the checked value ``name`` of a JSON object. Raises :class:`Wrong`, also when it is missing."""
    if not isinstance(content, dict):
        raise not_a(content, "an object")
    if name not in content:
        raise Wrong("is missing", name)
    try:
        return check(content[name])
    except Wrong as exc:
        raise exc.inside(name) from exc


def optional(content: t.Any, name: str, check: Check[T]) -> t.Optional[T]:
    """Return what :func:`field` returns, None for a value that is null or missing."""
    return None if isinstance(content, dict) and content.get(name) is None else field(content, name, check)


def read_object(path: str, most: int, users: t.Optional[t.AbstractSet[int]] = None) -> t.Any:
    """Return the JSON in a regular file of at most ``most`` bytes, as :func:`read_small`. Raises OSError, Wrong."""
    return load_object(read_small(path, most, users))


def text(longest: int = LONGEST_TEXT) -> Check[str]:
    """Check for text without NUL, of at most ``longest`` characters; surrogates stand for a file name's bytes."""

    def check(value: t.Any) -> str:
        if not isinstance(value, str) or len(value) > longest or "\0" in value:
            raise not_a(value, f"text of at most {longest} characters")
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as exc:
            raise not_a(value, "text that can be written as UTF-8") from exc
        return value

    return check


def matching(pattern: t.Pattern[str], what: str) -> Check[str]:
    """Check for text that ``pattern`` matches."""

    def check(value: t.Any) -> str:
        if not isinstance(value, str) or not pattern.match(value):
            raise not_a(value, what)
        return value

    return check


def one_of(*values: str) -> Check[str]:
    """Check for one of several words."""

    def check(value: t.Any) -> str:
        if not isinstance(value, str) or value not in values:
            raise not_a(value, " or ".join(values))
        return value

    return check


def boolean(value: t.Any) -> bool:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise not_a(value, "true or false")
    return value


def integer(low: int, high: int) -> Check[int]:
    """Check for a whole number from ``low`` to ``high``."""

    def check(value: t.Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise not_a(value, f"a whole number from {low} to {high}")
        return value

    return check


def number(low: float, high: float) -> Check[float]:
    """Check for a finite number from ``low`` to ``high``."""

    def check(value: t.Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise not_a(value, f"a number from {low:g} to {high:g}")
        return float(value)

    return check


seconds = number(0, MOST_SECONDS)
timestamp = number(0, LAST_TIME)  # seconds since 1970
byte_count = integer(0, MOST_BYTES)


def power_of_two(low: int, high: int) -> Check[int]:
    """Check for a power of two from ``low`` to ``high``."""

    def check(value: t.Any) -> int:
        checked = integer(low, high)(value)
        if checked & (checked - 1):
            raise not_a(value, "a power of two")
        return checked

    return check


def location(value: t.Any) -> str:
    """Check for an absolute path."""
    if not text(LONGEST_PATH)(value).startswith("/"):
        raise not_a(value, "an absolute path")
    return t.cast(str, value)


def location_or_nothing(value: t.Any) -> str:
    """Check for an absolute path or empty text."""
    return "" if value == "" else location(value)


def path_below(value: t.Any) -> str:
    """Check for a relative path of which no component leaves the directory."""
    if {"", ".", ".."} & set(text(LONGEST_PATH)(value).split("/")):
        raise not_a(value, "a path below the data directory")
    return t.cast(str, value)


def utc_text(value: t.Any) -> str:
    """Check for a time as text, in UTC."""
    try:
        parse_utc(text(64)(value))
    except (Wrong, ValueError) as exc:
        raise not_a(value, "a time like 2026-11-22T11:32:00Z") from exc
    return t.cast(str, value)


def json_text(value: t.Any) -> str:
    """Return any JSON value as text of bounded length."""
    try:
        return text()(json.dumps(value, allow_nan=False))
    except (RecursionError, TypeError, ValueError) as exc:
        raise not_a(None, "JSON") from exc


def list_of(check: Check[T], longest: int = LONGEST_LIST) -> Check[t.Tuple[T, ...]]:
    """Check for a list of at most ``longest`` values that all pass ``check``."""

    def check_list(value: t.Any) -> t.Tuple[T, ...]:
        if not isinstance(value, list) or len(value) > longest:
            raise not_a(value, f"a list of at most {longest} values")
        found = []
        for index, one in enumerate(value):
            try:
                found.append(check(one))
            except Wrong as exc:
                raise exc.inside(f"[{index}]") from exc
        return tuple(found)

    return check_list


def mapping_of(key: Check[T], check: Check[t.Any], longest: int = LONGEST_LIST) -> Check[t.Dict[T, t.Any]]:
    """Check for an object of at most ``longest`` values, whose names pass ``key`` and whose values pass ``check``."""

    def check_mapping(value: t.Any) -> t.Dict[T, t.Any]:
        if not isinstance(value, dict) or len(value) > longest:
            raise not_a(value, f"an object of at most {longest} values")
        found = {}
        for name, one in value.items():
            try:
                found[key(name)] = check(one)
            except Wrong as exc:
                raise exc.inside(f"[{name[:_SHOWN]}]") from exc
        return found

    return check_mapping


def hexadecimal(value: t.Any) -> str:
    """Check for bytes in hexadecimal digits."""
    return matching(_HEX, "bytes in hexadecimal digits")(text()(value))


def known(content: t.Any, **checks: Check[t.Any]) -> t.Dict[str, t.Any]:
    """Return those values of a JSON object that ``checks`` name, checked; null stays None, others are left out."""
    if not isinstance(content, dict):
        raise not_a(content, "an object")
    return {name: optional(content, name, check) for name, check in checks.items() if name in content}


def json_value(value: t.Any) -> t.Any:
    """Check for any JSON value, as large as its file may be; for what is only shown."""
    try:
        json.dumps(value, allow_nan=False)
    except (RecursionError, TypeError, ValueError) as exc:
        raise not_a(None, "JSON") from exc
    return value
