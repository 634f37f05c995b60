# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``pg_amcheck`` over all databases, as a role that may do nothing else.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.

Comparing a table with its indexes runs their expressions, and whoever owns the schema of the extension can put
functions beside its own. Sources: PostgreSQL, "pg_amcheck", "amcheck".
"""

from __future__ import annotations

import os
import subprocess
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.check_role import without_rights
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import Connection, readable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.hardened import packet
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.identifiers import identifier
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.programs import find

LONGEST_OUTPUT = 100000

# template0 and databases whose DROP was interrupted (datconnlimit -2) accept no connection.
DATABASES = "SELECT datname AS name FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname"

FUNCTIONS = """
SELECT p.oid::regprocedure::text AS function, n.nspname AS schema
FROM pg_extension e JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
     AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
     JOIN pg_proc p ON p.oid = d.objid JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE e.extname = 'amcheck'
"""


def run_amcheck(
    params: t.Mapping[str, t.Any], bin_directory: t.Optional[str], arguments: t.Sequence[str]
) -> dict[str, t.Any]:
    """Install the extension where it is missing, run ``pg_amcheck --all`` and return ``rc`` and ``output``.

    ``params`` are the login arguments of a superuser. Raises :class:`BackupError`: ``programs_missing``,
    ``amcheck_missing`` without the extension, and as :func:`without_rights`.
    """
    with Connection(params) as connection:
        program = find("pg_amcheck", connection.major, bin_directory, connection.claimed_pid)
        databases = [readable(row["name"]) for row in connection.rows(DATABASES)]
    with without_rights(params, None, None) as login:
        command = [program, "--all", "--no-password", *_address(login), *arguments]
        if login["login_user"] == params["login_user"]:
            return _run(command, login)
        try:
            for database in databases:
                with _connected(params, database) as connection:
                    _install(connection)
                    _allow(connection, "GRANT", "TO", login["login_user"])
            return _run(command, login)
        finally:
            # A role with grants cannot be dropped.
            for database in databases:
                with _connected(params, database) as connection:
                    _allow(connection, "REVOKE", "FROM", login["login_user"])


def _connected(params: t.Mapping[str, t.Any], database: str) -> Connection:
    """Return a superuser's session in which the event triggers of the database do not run."""
    connection = Connection(dict(params, login_db=database))
    connection.rows("SELECT set_config('session_replication_role', 'replica', false)")
    if connection.major >= 17:
        connection.rows("SELECT set_config('event_triggers', 'off', false)")
    return connection


def _install(connection: Connection) -> None:
    if not connection.rows("SELECT extname FROM pg_extension WHERE extname = 'amcheck'"):
        try:
            connection.rows("CREATE EXTENSION amcheck SCHEMA pg_catalog")
        except BackupError as exc:
            # undefined_file, feature_not_supported
            if exc.details.get("sqlstate") not in ("58P01", "0A000"):
                raise
            raise BackupError(
                "The extension amcheck is not installed.",
                code="amcheck_missing",
                hint="Install the package of PostgreSQL that has it (postgresql-contrib).",
            ) from exc


def _allow(connection: Connection, verb: str, preposition: str, role: str) -> None:
    """Grant or revoke the execution of the extension's own functions, not of others that stand beside them."""
    schemas = set()
    for row in connection.rows(FUNCTIONS):
        schemas.add(identifier(row["schema"]))
        connection.rows(f"{verb} EXECUTE ON FUNCTION {row['function']} {preposition} {identifier(role)}")
    for schema in schemas - {"pg_catalog"}:
        connection.rows(f"{verb} USAGE ON SCHEMA {schema} {preposition} {identifier(role)}")


def _address(login: t.Mapping[str, t.Any]) -> list[str]:
    host = login.get("login_host") or login.get("login_unix_socket")
    address = ["--port", str(login["login_port"]), "--username", login["login_user"]]
    return [*address, *(["--host", host] if host else []), "--maintenance-db", login["login_db"]]


def _run(command: t.Sequence[str], login: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    environment = {**os.environ, "LC_ALL": "C", "PGAPPNAME": "pgfleet.basebackup", "PGOPTIONS": packet("")}
    wanted = {"PGPASSWORD": "login_password", "PGSSLMODE": "ssl_mode", "PGSSLROOTCERT": "ca_cert"}
    environment.update((name, str(login[key])) for name, key in wanted.items() if login.get(key))
    # pylint: disable=ansible-bad-function  # module_utils have no AnsibleModule, whose run_command this would be
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        check=False,
    )
    return {"rc": done.returncode, "output": done.stdout[:LONGEST_OUTPUT].decode("utf-8", "replace").strip()}
