# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Assertions about a database: which values are equal, what fails, and that nothing can be written."""

from __future__ import annotations

import typing as t

import pytest

from tests.harness import binaries
from tests.harness.modules import Modules, Result
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.integration.helpers.traps import BAIT, TRAP

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


@pytest.mark.majors(14, 18)
def test_the_code_of_a_view(sandbox: Sandbox, modules: Modules, major: int) -> None:
    """It runs without rights, unless the user has asked for more; no role is left."""
    server = sandbox.servers[0]
    caught = sandbox.directory("caught") / "it"
    server.sql(TRAP.format(f"touch {caught}"))
    result = modules.fails("sql_check", checks=[BAIT, {"query": "SELECT count(*) FROM orders", "expected": 1}])
    assert "42501" in by_name(result)["bait"]["msg"]
    assert [one["ok"] for one in result["results"]] == [False, True]
    assert not caught.exists()
    assert not server.sql("SELECT rolname FROM pg_roles WHERE rolname LIKE 'pgfleet%'")

    # Roles of the user's: with rights, with them by a membership, without.
    server.sql("CREATE ROLE checker LOGIN PASSWORD 'x' BYPASSRLS IN ROLE pg_read_all_data")
    server.sql("CREATE ROLE agent LOGIN IN ROLE pg_execute_server_program")
    server.sql("CREATE ROLE heir LOGIN IN ROLE postgres")
    for role in ("postgres", "agent", "heir"):
        assert modules.fails("sql_check", checks=[BAIT], check_user=role)["code"] == "check_role_has_rights"
    count = {"query": "SELECT count(*) FROM orders", "expected": 1}
    modules.ok("sql_check", checks=[count], check_user="checker", check_password="x")
    modules.ok("sql_check", checks=[count], login_user="checker")
    for arguments in (
        {"check_user": "checker"},
        {"login_user": "checker"},
        {"login_user": "checker", "as_superuser": True},
    ):
        assert modules.fails("sql_check", checks=[BAIT], **arguments)["code"] == "checks_failed"
    assert not caught.exists()
    # Those that are not superusers cannot make the role that they need.
    assert modules.fails("sql_check", checks=[count], login_user="agent")["code"] == "check_role_needed"

    result = modules.ok("sql_check", checks=[BAIT], as_superuser=True)
    assert caught.exists()
    assert "is a superuser" in str(result["warnings"])


@pytest.mark.majors(14, 18)
def test_settings_and_policies_of_the_database(modules: Modules, sandbox: Sandbox) -> None:
    """Time-outs and libraries of a database do not reach a check; its search path does, and no policy hides a row."""
    server = sandbox.servers[0]
    server.sql("CREATE SCHEMA shop")
    server.sql("CREATE TABLE shop.items AS SELECT 1 AS i")
    server.sql("ALTER TABLE shop.items ENABLE ROW LEVEL SECURITY")
    server.sql("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
    server.sql("ALTER DATABASE postgres SET search_path = shop")
    server.sql("ALTER DATABASE postgres SET statement_timeout = '1ms'")
    with server.connect(options="-c session_preload_libraries= -c statement_timeout=0") as connection:
        connection.cursor().execute("ALTER DATABASE postgres SET session_preload_libraries = 'base/evil.so'")
    connection.close()
    options = {"connect_params": {"options": "-c session_preload_libraries="}}
    checks = [{"query": "SELECT count(*) = 1 FROM items"}, {"query": "SELECT pg_sleep(0.1) IS NOT NULL"}]
    modules.ok("sql_check", checks=checks, **options)
    with server.connect(options="-c session_preload_libraries= -c statement_timeout=0") as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'pgfleet%'")
        assert cursor.fetchall() == [(0,)]
    connection.close()


def test_no_role_can_be_made(sandbox: Sandbox, primary: Server) -> None:
    """On a standby the user names one; where pg_hba.conf refuses the new one on the socket, TCP is tried."""
    primary.sql("CREATE ROLE checker LOGIN IN ROLE pg_read_all_data")
    primary.sql("CREATE TABLE orders AS SELECT 1 AS i")
    standby = sandbox.standby(primary)
    count = {"query": "SELECT count(*) FROM orders", "expected": 1}
    refused = Modules(standby).fails("sql_check", checks=[count])
    assert refused["code"] == "check_role_needed"
    assert "CREATE ROLE" in refused["hint"]
    Modules(standby).ok("sql_check", checks=[count], check_user="checker")

    hba = (primary.data / "pg_hba.conf").read_text()
    peer = hba.replace("local all all trust", "local all postgres trust\nlocal all all reject", 1)
    (primary.data / "pg_hba.conf").write_text(peer)
    primary.restart()
    Modules(primary).ok("sql_check", checks=[count])
    (primary.data / "pg_hba.conf").write_text(peer.replace("host all all", "host all postgres", 1))
    primary.restart()
    refused = Modules(primary).fails("sql_check", checks=[count])
    assert refused["code"] == "check_role_refused"
    assert not primary.sql("SELECT rolname FROM pg_roles WHERE rolname LIKE 'pgfleet%'")


@pytest.mark.majors(14, 18)
def test_amcheck(sandbox: Sandbox, modules: Modules, major: int) -> None:
    """The owner of the extension's schema lies in wait for pg_amcheck; it finds what is corrupt."""
    server = sandbox.servers[0]
    caught = sandbox.directory("caught") / "it"
    server.sql(TRAP.format(f"touch {caught}"))
    server.sql('CREATE DATABASE "odd ""näme"')
    server.sql('REVOKE CONNECT ON DATABASE "odd ""näme" FROM PUBLIC')
    server.sql("CREATE EXTENSION amcheck SCHEMA trap")
    server.sql("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
    for arguments in ("index oid, heapallindexed boolean", "index oid, heapallindexed boolean, checkunique boolean"):
        server.sql(
            f"SET SESSION AUTHORIZATION mallory; CREATE FUNCTION trap.bt_index_check({arguments})"
            " RETURNS void LANGUAGE sql AS 'SELECT trap.spring()'"
        )
    server.sql("CREATE TABLE victim AS SELECT i, md5(i::text) FROM generate_series(1, 1000) i")
    server.sql("VACUUM victim")
    server.sql("CHECKPOINT")
    arguments = {"bin_directory": str(binaries.prefix(major) / "bin")}
    found = modules.run("amcheck", **arguments)
    assert not caught.exists()
    assert not server.sql("SELECT rolname FROM pg_roles WHERE rolname LIKE 'pgfleet%'"), found
    server.sql("DROP SCHEMA trap CASCADE")
    assert modules.ok("amcheck", **arguments)["rc"] == 0
    assert server.value("SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'", database='odd "näme') == 1

    with (server.data / server.value("SELECT pg_relation_filepath('victim')")).open("r+b") as file:
        file.seek(24)
        file.write(b"\xff\xff\xfe\xff" * 10)
    server.restart()
    refused = modules.fails("amcheck", **arguments)
    assert (refused["code"], refused["rc"]) == ("amcheck_failed", 2)
    assert "victim" in refused["msg"]
    assert modules.fails("amcheck", bin_directory="/nowhere")["code"] == "programs_missing"
