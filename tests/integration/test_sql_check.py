# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Assertions about a database: which values are equal, what fails, and that nothing can be written."""

from __future__ import annotations

import typing as t

import pytest

from tests.harness.modules import Modules, Result
from tests.harness.sandbox import Sandbox

# A query and its result, in every form that a playbook may use.
SAME: t.Final = [
    ("SELECT 42", 42),
    ("SELECT 42", "42"),
    ("SELECT 42::bigint", [[42]]),
    ("SELECT 1.50", 1.5),
    ("SELECT 1.50", "1.50"),
    ("SELECT 0.1::float8", 0.1),
    ("SELECT true", True),
    ("SELECT true", "True"),
    ("SELECT false", False),
    ("SELECT false", "no"),
    ("SHOW wal_level", "replica"),
    ("SHOW fsync", False),
    ("SELECT NULL", None),
    ("SELECT 'gar\u00e7on'", "gar\u00e7on"),
    ("SELECT ''", ""),
    ("SELECT timestamptz '2026-01-02 03:04:05+00' AT TIME ZONE 'UTC'", "2026-01-02 03:04:05"),
    ("SELECT '{1,2}'::int[]", "{1,2}"),
    ("SELECT 100 % 7", 2),
    ("SELECT generate_series(1, 3)", [1, 2, 3]),
    ("SELECT i, i > 1 FROM generate_series(1, 2) i", [[1, False], ["2", True]]),
    ("SELECT 1 WHERE false", []),
]
DIFFERENT: t.Final = [
    ("SELECT 42", 43),
    ("SELECT 42", "42.1"),
    ("SELECT NULL", ""),
    ("SELECT ''", None),
    ("SELECT true", False),
    ("SELECT 'tea'", True),
    ("SELECT 1 WHERE false", 1),
    ("SELECT generate_series(1, 3)", [1, 2]),
    ("SELECT generate_series(1, 3)", [3, 2, 1]),
    ("SELECT 1, 2", [[1]]),
    ("SELECT 'a b'", "a  b"),
]


@pytest.fixture
def modules(sandbox: Sandbox, major: int) -> Modules:
    """The modules with the login of a server that has a second database, in LATIN1."""
    server = sandbox.primary(major, archive=False)
    server.sql("CREATE TABLE orders (name text)")
    server.sql("INSERT INTO orders VALUES ('first')")
    server.sql("CREATE DATABASE other ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    return Modules(server)


def by_name(result: Result) -> dict[str, t.Any]:
    """Return the results by the names of the checks."""
    return {one["name"]: one for one in result["results"]}


@pytest.mark.majors(14, 18)
def test_sql_check(modules: Modules) -> None:
    same = [{"name": str(number), "query": query, "expected": wanted} for number, (query, wanted) in enumerate(SAME)]
    good = [{"query": "SELECT count(*) = 1 FROM orders"}, {"query": "SELECT current_database() = 'other'"}]
    good[1]["database"] = "other"
    good.append({"query": "SELECT length('gar\u00e7on')::text || 'gar\u00e7on' = '6gar\u00e7on'", "database": "other"})
    for check in (True, False):
        result = modules.ok("sql_check", checks=[*same, *good], check=check)
        assert result["changed"] is False
        assert [one["ok"] for one in result["results"]] == [True] * (len(SAME) + 3)
        assert result["results"][-2]["name"] == good[1]["query"]
    assert by_name(result)["18"]["value"] == [["1"], ["2"], ["3"]]

    different = [
        {"name": str(number), "query": query, "expected": wanted} for number, (query, wanted) in enumerate(DIFFERENT)
    ]
    wrong = [
        {"name": "false", "query": "SELECT count(*) = 2 FROM orders"},
        {"name": "number", "query": "SELECT 1"},
        {"name": "two", "query": "SELECT true FROM generate_series(1, 2)"},
        {"name": "null", "query": "SELECT NULL::boolean"},
        {"name": "many", "query": "SELECT generate_series(1, 1000)", "expected": 1},
        {"name": "syntax", "query": "SELEKT 1"},
        {"name": "insert", "query": "INSERT INTO orders VALUES ('second')"},
        {"name": "twice", "query": "COMMIT; INSERT INTO orders VALUES ('second')"},
        {"name": "nowhere", "query": "SELECT 1", "database": "nowhere"},
        {"name": "slow", "query": "SELECT pg_sleep(60)"},
        {"name": "nothing", "query": "SET jit = off", "expected": 1},
    ]
    result = modules.fails("sql_check", checks=[*same, *different, *wrong], timeout=0.5)
    assert result["code"] == "checks_failed"
    assert [one["ok"] for one in result["results"]] == [True] * len(SAME) + [False] * (len(DIFFERENT) + len(wrong))
    found = by_name({"results": result["results"][len(SAME) :]})
    assert "'42' instead of 43" in found["0"]["msg"]
    assert "instead of one true value" in found["false"]["msg"]
    assert (len(found["many"]["value"]), "980 rows more" in found["many"]["msg"]) == (20, True)
    for name, word in (("syntax", "42601"), ("insert", "25006"), ("twice", "25006"), ("slow", "57014")):
        assert word in found[name]["msg"]
        assert f"{name}: " in result["msg"]
    assert "nowhere" in found["nowhere"]["msg"]
    modules.ok("sql_check", checks=[{"query": "SELECT count(*) FROM orders", "expected": 1}])

    for check in ({"name": "no query"}, {"query": " "}, {"query": "SELECT 1", "expect": 1}, {"query": 1}):
        assert modules.fails("sql_check", checks=[check])["code"] == "bad_check"
