# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Assertions about the content of a database: a query and what it must return.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.

Values are compared as the text that the server sends (``psql -At``), numbers by value, so that it does not matter
whether a template has made a string of ``42``.
"""

from __future__ import annotations

import decimal
import math
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import Connection, readable

# Most rows of an unexpected answer that are shown.
SHOWN_ROWS = 20
TRUE_WORDS = ("t", "true", "yes", "on", "1")
FALSE_WORDS = ("f", "false", "no", "off", "0")
KEYS = {"name", "query", "database", "expected"}
Cell = t.Optional[str]


def _is_same(found: Cell, expected: t.Any) -> bool:
    if found is None or expected is None:
        return found is None and expected is None
    if isinstance(expected, bool) or found in ("t", "f"):
        words = TRUE_WORDS if found in TRUE_WORDS else FALSE_WORDS if found in FALSE_WORDS else ()
        if str(expected).lower() in words:
            return True
    if found == str(expected):
        return True
    try:
        return decimal.Decimal(found) == decimal.Decimal(str(expected))
    except decimal.InvalidOperation:
        return False


def require_checks(checks: t.Sequence[t.Any]) -> None:
    """Raise :class:`BackupError` unless each check has a ``query`` and no unknown key."""
    for check in checks:
        unknown = sorted(set(check) - KEYS)
        if unknown or not isinstance(check.get("query"), str) or not check["query"].strip():
            wrong = f"has the unknown {', '.join(unknown)}" if unknown else "has no query"
            raise BackupError(
                f"The check {check.get('name') or check} {wrong}.",
                code="bad_check",
                hint=f"A check has {', '.join(sorted(KEYS))}; only query is required.",
            )


def judge(rows: t.Sequence[t.Sequence[Cell]], expected: t.Any, given: bool) -> tuple[bool, str]:
    """Return whether ``rows`` are as ``expected``, and the expectation in words.

    Without an expectation (``given`` false) the answer must be one true value. A list stands for all rows, each a list
    or, for one column, a value; anything else is the only value.
    """
    if not given:
        return len(rows) == 1 and len(rows[0]) == 1 and rows[0][0] == "t", "one true value"
    wanted = expected if isinstance(expected, list) else [[expected]]
    wanted = [row if isinstance(row, list) else [row] for row in wanted]
    same = len(rows) == len(wanted) and all(
        len(row) == len(other) and all(_is_same(*pair) for pair in zip(row, other)) for row, other in zip(rows, wanted)
    )
    return same, repr(expected)


def _answer(connection: Connection, check: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    rows = [[None if cell is None else readable(cell) for cell in row] for row in connection.texts(check["query"])]
    ok, wanted = judge(rows, check.get("expected"), "expected" in check)
    value: t.Any = rows[0][0] if len(rows) == 1 and len(rows[0]) == 1 else rows[:SHOWN_ROWS]
    found = f"{value!r}{f' and {len(rows) - SHOWN_ROWS} rows more' if len(rows) > SHOWN_ROWS else ''}"
    return {"ok": ok, "value": value, "msg": f"{found}, as expected" if ok else f"{found} instead of {wanted}"}


def run_checks(
    params: t.Mapping[str, t.Any], checks: t.Sequence[t.Mapping[str, t.Any]], timeout: float
) -> list[dict[str, t.Any]]:
    """Run each check in a read-only transaction and return ``name``, ``ok``, ``value``, ``expected``, ``msg`` of each.

    ``params`` are the login arguments of a role without rights. ``timeout`` is the server's ``statement_timeout`` and
    ``lock_timeout`` in seconds. A query or a connection that fails is a failed check.
    """
    results = []
    for check in checks:
        result: dict[str, t.Any] = {"name": str(check.get("name") or check["query"])}
        result.update(value=None, expected=check.get("expected"))
        try:
            login = dict(params, login_db=check.get("database") or params["login_db"])
            # Names without a schema are those of the user's own query.
            with Connection(login, keep=("search_path",)) as connection:
                connection.rows("SET default_transaction_read_only = on")
                limit = str(math.ceil(timeout * 1000))
                for name in ("lock_timeout", "statement_timeout"):
                    connection.rows("SELECT pg_catalog.set_config(%s, %s, false)", (name, limit))
                connection.restore_search_path()
                result.update(_answer(connection, check))
        except BackupError as exc:
            result.update(ok=False, msg=exc.msg)
        results.append(result)
    return results
