# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who runs the checks of a restored database: a role without rights, because a query runs the code of the databases.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.

The role is the *session* user. From ``SET ROLE`` and ``SET SESSION AUTHORIZATION`` the code of a view, an index or an
operator could return to the superuser who logged in, and ``COPY … TO PROGRAM`` would run as the operating system's
user. Sources: PostgreSQL, "Predefined Roles", "Row Security Policies", "SET SESSION AUTHORIZATION".
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import Connection, readable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.identifiers import identifier

PREFIX = "pgfleet_check_"
ADVICE = "CREATE ROLE pgfleet_check LOGIN BYPASSRLS IN ROLE pg_read_all_data;"

# A role that was left by a run that died is removed by a later one, after this many seconds.
LIFETIME = 86400

# Roles, one's own or another that one is a member of, with which a query can act outside its database or change it.
RIGHTS = """
SELECT r.rolname AS name, r.rolsuper AS superuser FROM pg_roles r
WHERE pg_has_role(session_user, r.oid, 'MEMBER')
  AND (r.rolsuper OR r.rolcreaterole OR r.rolreplication OR r.rolname IN (
       'pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files', 'pg_write_all_data'))
ORDER BY r.rolname = session_user DESC, r.rolsuper DESC, r.rolname LIMIT 1
"""

DATABASES = (
    "SELECT datname AS name, has_database_privilege(%s, oid, 'CONNECT') AS may FROM pg_database ORDER BY datname"
)


def rights_of(connection: Connection) -> str:
    """Return which rights the session user has that no check may have, as the end of a sentence; "" for none."""
    found = connection.rows(RIGHTS)
    if not found:
        return ""
    user = readable(connection.value("SELECT session_user"))
    name, superuser = readable(found[0]["name"]), found[0]["superuser"]
    if name == user:
        return (
            f"{identifier(user)} is a superuser" if superuser else f"{identifier(user)} may create roles or replicate"
        )
    return f"{identifier(user)} is a member of {identifier(name)}"


@contextlib.contextmanager
def without_rights(
    params: t.Mapping[str, t.Any], user: t.Optional[str], password: t.Optional[str]
) -> t.Iterator[dict[str, t.Any]]:
    """Yield the login arguments of a role without rights.

    It is ``user`` if that is given, else the login role if that has none, else a role that is made for this time.

    Raises :class:`BackupError`: ``check_role_has_rights``, ``check_role_needed`` where no role can be made,
    ``check_role_refused`` when it cannot log in; ``connection_failed``.
    """
    if user:
        login = dict(params, login_user=user, login_password=password)
        with Connection(login) as connection:
            rights = rights_of(connection)
        if rights:
            raise BackupError(
                f"The checks run the code of the databases, and the role {rights}.",
                code="check_role_has_rights",
                hint=f"Set {option('check_user')} to a role without rights: {ADVICE}",
            )
        yield login
        return
    with Connection(params) as connection:
        rights = rights_of(connection)
        if not rights:
            yield dict(params)
            return
        role = _make(connection, rights)
        try:
            yield _login(params, *role)
        finally:
            _drop(connection, role[0])


def _make(connection: Connection, rights: str) -> tuple[str, str]:
    """Make a role and return its name and password."""
    hint = (
        f"Name a role without rights in {option('check_user')}; at the source: {ADVICE}"
        f" Or set {option('as_superuser')}=true, if you trust everybody who can create objects in these databases."
    )
    if connection.value("SELECT pg_is_in_recovery()"):
        raise BackupError(
            f"The checks run the code of the databases, and the role {rights}. No other role can be made while the"
            f" server at {connection.address} is recovering.",
            code="check_role_needed",
            hint=hint,
        )
    name, password = PREFIX + secrets.token_hex(8), secrets.token_hex(16)
    try:
        _drop_expired(connection)
        until = connection.value("SELECT (now() + %s * interval '1 second')::text", (LIFETIME,))
        connection.rows(
            f"CREATE ROLE {name} LOGIN BYPASSRLS IN ROLE pg_read_all_data PASSWORD %s VALID UNTIL %s",
            (_verifier(password), until),
        )
        # SET … = '' would store one library without a name.
        connection.rows("SELECT set_config('session_preload_libraries', '', false)")
        for database in connection.rows(DATABASES, (name,)):
            quoted = identifier(database["name"])
            if not database["may"]:
                connection.rows(f"GRANT CONNECT ON DATABASE {quoted} TO {name}")
            # Only a superuser can override what the source's superuser has set; this role cannot.
            connection.rows(f"ALTER ROLE {name} IN DATABASE {quoted} SET session_preload_libraries FROM CURRENT")
            if connection.major >= 17:
                connection.rows(f"ALTER ROLE {name} IN DATABASE {quoted} SET event_triggers = off")
    except BackupError as exc:
        with contextlib.suppress(BackupError):
            _drop(connection, name)
        raise BackupError(
            f"The checks run the code of the databases, and the role {rights}. Another role cannot be made: {exc.msg}",
            code="check_role_needed",
            hint=hint,
            sqlstate=exc.details.get("sqlstate"),
        ) from exc
    return name, password


def _login(params: t.Mapping[str, t.Any], name: str, password: str) -> dict[str, t.Any]:
    """Return login arguments with which the role can log in."""
    # The user's options may be such as only the login role may set.
    others = {key: value for key, value in (params.get("connect_params") or {}).items() if key != "options"}
    login = dict(params, login_user=name, login_password=password, connect_params=others)
    ways = [login]
    if not params.get("login_host") or params["login_host"].startswith("/"):
        # pg_hba.conf often wants the operating system's user of the same name on the socket.
        ways.append(dict(login, login_host="127.0.0.1", login_unix_socket=None))
    refusals = []
    for way in ways:
        try:
            with Connection(way):
                return way
        except BackupError as exc:
            refusals.append(exc.msg)
    raise BackupError(
        f"The role that was made for the checks cannot log in: {'; '.join(refusals)}.",
        code="check_role_refused",
        hint=f"Set {option('check_user')} to a role without rights that pg_hba.conf lets in, with"
        f" {option('check_password')}: {ADVICE}",
    )


def _drop_expired(connection: Connection) -> None:
    query = "SELECT rolname AS name FROM pg_roles WHERE rolname ~ %s AND rolvaliduntil < now()"
    for row in connection.rows(query, (f"^{PREFIX}[0-9a-f]{{16}}$",)):
        _drop(connection, row["name"])


def _drop(connection: Connection, name: str) -> None:
    granted = (
        "SELECT datname AS name FROM pg_database, aclexplode(datacl) a"
        " WHERE a.grantee = (SELECT oid FROM pg_roles WHERE rolname = %s)"
    )
    for database in connection.rows(granted, (name,)):
        connection.rows(f"REVOKE ALL ON DATABASE {identifier(database['name'])} FROM {name}")
    connection.rows(f"DROP ROLE IF EXISTS {name}")


def _verifier(password: str) -> str:
    """Return what the server stores for a password (RFC 5803), so that the password is not in its log."""
    salt, iterations = secrets.token_bytes(16), 4096
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    client = hmac.new(salted, b"Client Key", "sha256").digest()
    server = hmac.new(salted, b"Server Key", "sha256").digest()
    parts = [base64.b64encode(part).decode("ascii") for part in (salt, hashlib.sha256(client).digest(), server)]
    return f"SCRAM-SHA-256${iterations}:{parts[0]}${parts[1]}:{parts[2]}"
