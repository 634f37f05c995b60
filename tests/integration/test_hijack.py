# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users of a database who lie in wait for a superuser's sessions: neither their code nor their settings reach them."""

from __future__ import annotations

import pathlib
import re
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import MASK

from tests.harness.modules import CLONE, Modules, run_module
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.integration.helpers.steps import Steps

MAJORS: t.Final = pytest.mark.majors(14, 18)

# What a role needs to become superuser when a superuser runs its code; a view in the way does it too.
PREPARED: t.Final = """
CREATE ROLE mallory LOGIN;
ALTER DATABASE postgres OWNER TO mallory;
SET SESSION AUTHORIZATION mallory;
CREATE SCHEMA evil;
CREATE FUNCTION evil.pwn() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('is_superuser') = 'on' THEN
    ALTER ROLE mallory SUPERUSER;
  END IF;
  RETURN true;
END $$;
"""

# The three that were found, in the schema that is searched by default.
IN_PUBLIC: t.Final = """
CREATE FUNCTION public.quote_ident(name) RETURNS text LANGUAGE sql AS $$ SELECT evil.pwn()::text $$;
CREATE FUNCTION public.concat(text, text, text, text, text) RETURNS text LANGUAGE sql AS $$ SELECT evil.pwn()::text $$;
CREATE FUNCTION public.has_function_privilege(name, text, text) RETURNS bool LANGUAGE sql AS $$ SELECT evil.pwn() $$;
CREATE FUNCTION public.pg_create_physical_replication_slot(
  text, boolean, boolean, OUT slot_name name, OUT lsn pg_lsn
) LANGUAGE sql AS $$ SELECT 'x'::name, '0/0'::pg_lsn WHERE evil.pwn() $$;
"""

# Every function of the system that our code names, with the same arguments.
IN_ITS_OWN_SCHEMA: t.Final = """
DO $body$
DECLARE r record;
BEGIN
  SET LOCAL check_function_bodies = off;
  FOR r IN
    SELECT proname, pg_get_function_arguments(oid) AS arguments, pg_get_function_result(oid) AS result,
      CASE WHEN proretset OR prorettype IN ('void'::regtype, 'record'::regtype) THEN '' ELSE 'NULL' END AS answer
    FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f' AND proname = ANY (string_to_array(%s, ' '))
      AND NOT proargtypes::oid[] && ARRAY['"any"'::regtype::oid, 'anyelement'::regtype::oid]
  LOOP
    EXECUTE format(
      'CREATE FUNCTION evil.%%I(%%s) RETURNS %%s LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.pwn(); RETURN %%s; END $$',
      r.proname, r.arguments, r.result, r.answer);
  END LOOP;
END $body$
"""

VIEWS: t.Final = """
CREATE VIEW evil.pg_settings AS SELECT s.* FROM pg_catalog.pg_settings s WHERE evil.pwn();
CREATE VIEW evil.pg_stat_archiver AS SELECT s.* FROM pg_catalog.pg_stat_archiver s WHERE evil.pwn();
CREATE VIEW evil.pg_tablespace AS SELECT s.* FROM pg_catalog.pg_tablespace s WHERE evil.pwn();
CREATE FUNCTION evil.unequal(integer, integer) RETURNS boolean LANGUAGE sql AS $$ SELECT evil.pwn() $$;
CREATE OPERATOR evil.<> (FUNCTION = evil.unequal, LEFTARG = integer, RIGHTARG = integer);
ALTER DATABASE postgres SET search_path = evil, pg_catalog;
"""


def system_functions() -> str:
    """Return every word of our code that may be the name of a function."""
    texts = [path.read_text() for path in (CLONE / "plugins/module_utils").rglob("*.py")]
    return " ".join(sorted(set(re.findall(r"\b([a-z][a-z0-9_]+)\(", "\n".join(texts)))))


def everything(server: Server, repository: pathlib.Path) -> None:
    """Use every module that logs in to a primary, the session process included."""
    modules = Modules(server, repository=str(repository), cluster="main")
    info = modules.ok("server_info")
    assert info["login_role"] == "postgres"
    modules.ok("server_settings", settings={"work_mem": "5MB"})
    modules.ok("server_settings", settings={"work_mem": None}, reload=True)
    modules.ok("wal_switch")
    modules.ok("recovery_info", data_directory=str(server.data), wait_for="none")
    modules.ok("wal_archiving", check=True)
    steps = Steps(modules, server, "included")
    steps.start(wal="include")
    for name in ("backup_copy", "backup_stop", "backup_publish"):
        steps.ok(name)
    Steps(modules, server, "archived").whole()


@MAJORS
@pytest.mark.parametrize("way", ["public", "search_path"])
def test_code_in_the_way(primary: Server, repository: pathlib.Path, way: str) -> None:
    """A database's owner replaces what our queries name; no query of ours runs it."""
    primary.sql(PREPARED + (IN_PUBLIC if way == "public" else ""))
    if way == "search_path":
        primary.sql("SET SESSION AUTHORIZATION mallory; " + IN_ITS_OWN_SCHEMA, [system_functions()])
        assert primary.value("SELECT count(*) > 40 FROM pg_proc WHERE pronamespace = 'evil'::regnamespace")
        primary.sql("SET SESSION AUTHORIZATION mallory; " + VIEWS)
    everything(primary, repository)
    assert not primary.value("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) 'mallory'")


@MAJORS
def test_settings_in_the_way(primary: Server, repository: pathlib.Path) -> None:
    """What a database and a role set for their sessions, each of which would break a backup, is not in force."""
    primary.sql("CREATE ROLE mallory LOGIN")
    hostile = {
        "role": "mallory",
        "local_preload_libraries": "absent",
        "statement_timeout": "1ms",
        "lock_timeout": "1ms",
        "idle_in_transaction_session_timeout": "1ms",
        "idle_session_timeout": "1ms",
        "default_transaction_isolation": "serializable",
        "default_transaction_read_only": "on",
        "default_transaction_deferrable": "on",
        "quote_all_identifiers": "on",
        "transform_null_equals": "on",
        "exit_on_error": "on",
        "DateStyle": "German",
        "standard_conforming_strings": "off",
    }
    if primary.major >= 17:
        hostile["transaction_timeout"] = "1ms"
    options = " ".join(f"-c {name}=0" for name in hostile if name.endswith("timeout"))
    with primary.connect(options=f"{options} -c local_preload_libraries=") as connection, connection.cursor() as cursor:
        for name, value in hostile.items():
            cursor.execute(f"ALTER ROLE postgres SET {name} = '{value}'")
            cursor.execute(f"ALTER DATABASE postgres SET {name} = '{value}'")
    connection.close()
    everything(primary, repository)


@pytest.mark.majors(18)
def test_settings_in_the_way_of_a_standby(sandbox: Sandbox, primary: Server, repository: pathlib.Path) -> None:
    """A hot standby refuses serializable transactions."""
    standby = sandbox.standby(primary)
    primary.sql("ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'")
    caught_up = "SELECT replay_lsn >= pg_current_wal_lsn() FROM pg_stat_replication"
    wait_until(lambda: primary.value(caught_up), "the standby has replayed that")
    modules = Modules(standby, repository=str(repository), cluster="main")
    assert modules.ok("server_info")["role"] == "standby"
    modules.ok("recovery_info", wait_for="consistent")
    steps = Steps(modules, standby)
    steps.start(wal="include")
    for name in ("backup_copy", "backup_stop", "backup_publish"):
        steps.ok(name)


@MAJORS
def test_names_in_advice(primary: Server, repository: pathlib.Path) -> None:
    """The names of a role and a database are one identifier each in the SQL that a hint advises."""
    role, database = 'x TO y; ALTER ROLE "m" SUPERUSER; --', 'db"; DROP TABLE t; --'
    quoted = '"' + role.replace('"', '""') + '"'
    primary.sql(f"CREATE ROLE {quoted} LOGIN")
    primary.sql('CREATE DATABASE "{}"'.format(database.replace('"', '""')))
    modules = Modules(primary, repository=str(repository), cluster="main")
    modules.common.update(login_user=role, login_db=database)
    info = modules.ok("server_info")
    grants = [one["hint"] for one in info["problems"] if "GRANT" in one["hint"]]
    assert grants
    assert all(hint.endswith(f" TO {quoted};") for hint in grants)
    assert all('in the database "db""; DROP TABLE t; --":' in hint for hint in grants)
    refused = modules.fails("server_settings", settings={"work_mem": "5MB"})
    assert refused["code"] == "no_privilege"
    assert quoted in refused["msg"]


@pytest.mark.parametrize("password", ["repo", "repository_missing", "1", "true", "/nonexistent"])
def test_a_password_that_is_part_of_a_result(password: str) -> None:
    arguments = {"repository": "/nonexistent/repository", "cluster": "main", "login_password": password}
    said = run_module("backup_info", arguments)
    assert (said["code"], said["failed"]) == ("repository_missing", True)
    assert "/nonexistent/repository" in said["msg"]
    # ansible-core 2.18 always returns the arguments.
    shown = said.get("invocation", {}).get("module_args", {}).get("login_password", MASK)
    assert shown == MASK
