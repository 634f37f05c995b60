# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connecting to PostgreSQL: the login_* arguments, psycopg2, and text that arrives byte for byte.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.

Every connection uses ``client_encoding=SQL_ASCII``, so the server converts nothing, and psycopg2 decodes
SQL_ASCII as latin-1, which maps each byte to one character. :func:`raw` returns the bytes. Any other encoding damages
tablespace paths that are not valid in it, and with ``pg_backup_stop`` it does so after the backup has ended.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
import typing as t

from ansible.module_utils.basic import env_fallback, missing_required_lib
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import hardened as _hardened

PSYCOPG2_TRACEBACK: t.Optional[str] = None


try:
    import psycopg2
    import psycopg2.extensions
except ImportError:
    psycopg2 = None  # type: ignore[assignment]  # psycopg2 is detected at run time, on the database host
    PSYCOPG2_TRACEBACK = traceback.format_exc()


OLDEST_VERSION = 140000
NEWEST_VERSION = 189999
CONNECT_TIMEOUT = 10

# An option or the byte-exact decoding sets these; sslpassword is a secret, which would be logged with the arguments.
RESERVED_CONNECT_PARAMS = ("client_encoding", "dbname", "host", "password", "port", "sslpassword", "user")


def login_argument_spec() -> dict[str, t.Any]:
    """Return the argument specification documented in the ``login`` documentation fragment."""
    return {
        "login_host": {"type": "str", "fallback": (env_fallback, ["PGHOST"])},
        "login_port": {"type": "int", "default": 5432, "fallback": (env_fallback, ["PGPORT"])},
        "login_user": {"type": "str", "default": "postgres", "fallback": (env_fallback, ["PGUSER"])},
        "login_password": {"type": "str", "no_log": True, "fallback": (env_fallback, ["PGPASSWORD"])},
        "login_unix_socket": {"type": "path"},
        "login_db": {"type": "str", "default": "postgres", "fallback": (env_fallback, ["PGDATABASE"])},
        "ssl_mode": {
            "type": "str",
            "choices": ["allow", "disable", "prefer", "require", "verify-ca", "verify-full"],
            "default": "prefer",
            "fallback": (env_fallback, ["PGSSLMODE"]),
        },
        "ca_cert": {"type": "path", "fallback": (env_fallback, ["PGSSLROOTCERT"])},
        "ssl_cert": {"type": "path", "fallback": (env_fallback, ["PGSSLCERT"])},
        "ssl_key": {"type": "path", "no_log": False, "fallback": (env_fallback, ["PGSSLKEY"])},
        "connect_params": {"type": "dict", "default": {}},
    }


def require_psycopg2() -> None:
    """Raise :class:`BackupError` naming the interpreter when psycopg2 cannot be imported."""
    if psycopg2 is None:
        raise BackupError(
            missing_required_lib("psycopg2", url="https://www.psycopg.org/docs/install.html"),
            code="psycopg2_missing",
            hint=f"Install it for {sys.executable}: the package python3-psycopg2 or psycopg2-binary.",
            exception=PSYCOPG2_TRACEBACK,
        )


def connection_kwargs(
    params: t.Mapping[str, t.Any], application_name: str, version: int = 0, keep: t.Container[str] = ()
) -> dict[str, t.Any]:
    """Turn login arguments into keyword arguments of ``psycopg2.connect``; they may hold the password.

    The start packet carries the settings of :mod:`_hardened`, except those to ``keep`` as the database has them, and
    those that only the server's ``version`` has.

    Raises :class:`BackupError` for ``connect_params`` that have their own argument.
    """
    extra = dict(params.get("connect_params") or {})
    clash = sorted(set(extra) & set(RESERVED_CONNECT_PARAMS))
    if clash:
        raise BackupError(
            f"{option('connect_params')} must not hold {', '.join(clash)}.",
            code="bad_connect_params",
            hint="Each of them has its own option; client_encoding is always SQL_ASCII.",
        )
    host = params.get("login_host") or ""
    if params.get("login_unix_socket") and host in ("", "localhost"):
        host = params["login_unix_socket"]
    wanted = {
        "host": host,
        "port": params.get("login_port"),
        "user": params.get("login_user"),
        "password": params.get("login_password"),
        "dbname": params.get("login_db"),
        "sslmode": params.get("ssl_mode"),
        "sslrootcert": params.get("ca_cert"),
        "sslcert": params.get("ssl_cert"),
        "sslkey": params.get("ssl_key"),
        "connect_timeout": CONNECT_TIMEOUT,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "application_name": application_name,
    }
    wanted.update(extra)
    newer = dict([_hardened.TRANSACTION_TIMEOUT]) if version >= _hardened.HAS_TRANSACTION_TIMEOUT else {}
    wanted["options"] = _hardened.packet(extra.get("options"), keep, newer)
    wanted["client_encoding"] = "SQL_ASCII"
    return {key: value for key, value in wanted.items() if value not in (None, "")}


def raw(text: str) -> bytes:
    """Return the bytes that the server sent for ``text``."""
    return text.encode("latin-1")


def readable(text: t.Optional[str]) -> str:
    """Return server text for people, decoded as UTF-8 with replacement characters."""
    return "" if text is None else raw(text).decode("utf-8", "replace")


def describe_error(exc: BaseException) -> tuple[str, t.Optional[str]]:
    """Return PostgreSQL's own message on one line and its SQLSTATE (None when the server sent none)."""
    diag = getattr(exc, "diag", None)
    parts = [getattr(diag, name, None) for name in ("message_primary", "message_detail", "message_hint")]
    text = " ".join(part for part in parts if part) or str(exc)
    try:
        text = readable(text)
    except UnicodeEncodeError:
        # libpq's own messages are decoded with the locale, not with our codec.
        pass
    return " ".join(text.split()), getattr(exc, "pgcode", None)


def _hardened_session(
    kwargs: dict[str, t.Any], params: t.Mapping[str, t.Any], keep: t.Container[str]
) -> psycopg2.extensions.connection:
    """Connect and make the session's first statements. Raises ``psycopg2.Error``."""
    connection, version = None, 0
    try:
        try:
            connection = psycopg2.connect(**kwargs)
        except psycopg2.Error as exc:
            options = _hardened.for_any_role(kwargs["options"])
            if options == kwargs["options"] or "permission denied to set parameter" not in str(exc):
                raise
            connection = psycopg2.connect(**{**kwargs, "options": options})
        version = connection.server_version
        _first_statements(connection, version)
        return connection
    except psycopg2.Error as exc:
        if connection is not None:
            connection.close()
        if _refused_by_proxy(exc):
            # A pooling proxy; it is refused later with a better reason.
            connection = psycopg2.connect(**{**kwargs, "options": (params.get("connect_params") or {}).get("options")})
            _first_statements(connection, connection.server_version, _hardened.SETTINGS)
            return connection
        if version < _hardened.HAS_TRANSACTION_TIMEOUT:
            raise
    # A transaction_timeout of the database can end even the first statement.
    connection = psycopg2.connect(**connection_kwargs(params, kwargs["application_name"], version, keep))
    _first_statements(connection, version)
    return connection


def _refused_by_proxy(exc: psycopg2.Error) -> bool:
    """Return whether PgBouncer, and not a server, has refused the start packet."""
    return "startup parameter" in str(exc)


def _first_statements(
    connection: psycopg2.extensions.connection, version: int, settings: t.Optional[t.Mapping[str, str]] = None
) -> None:
    connection.autocommit = True
    newer = dict([_hardened.TRANSACTION_TIMEOUT]) if version >= _hardened.HAS_TRANSACTION_TIMEOUT else {}
    with connection.cursor() as cursor:
        cursor.execute(_hardened.EMPTY_SEARCH_PATH)
        for setting in {**(settings or {}), **newer}.items():
            cursor.execute("SELECT pg_catalog.set_config(%s, %s, false)", setting)


class Connection:
    """One autocommit session with a supported server; use as a context manager.

    ``params`` are the module's login arguments; ``keep`` are settings that stay as the database has them. The search
    path is empty until :meth:`restore_search_path`. Raises :class:`BackupError` when psycopg2 is missing, the server
    cannot be reached, or its version is outside 14 to 18.
    """

    def __init__(
        self,
        params: t.Mapping[str, t.Any],
        application_name: str = "pgfleet.basebackup",
        keep: t.Container[str] = (),
    ) -> None:
        require_psycopg2()
        psycopg2.extensions.encodings["SQLASCII"] = psycopg2.extensions.encodings["SQL_ASCII"] = "latin_1"
        kwargs = connection_kwargs(params, application_name, keep=keep)
        self.address = f"{kwargs.get('host', 'local socket')}:{kwargs.get('port', 5432)}"
        try:
            self._connection = _hardened_session(kwargs, params, keep)
        except psycopg2.Error as exc:
            message, sqlstate = describe_error(exc)
            raise BackupError(
                f"Cannot connect to PostgreSQL at {self.address} as {kwargs.get('user')}: {message}",
                code="connection_failed",
                hint=f"Check {option('login_host')}, {option('login_port')}, {option('login_user')},"
                f" {option('login_db')} and pg_hba.conf.",
                sqlstate=sqlstate,
            ) from exc
        self.version: int = self._connection.server_version
        self.major: int = self.version // 10000
        try:
            self.require_supported_version()
        except BackupError:
            self.close()
            raise

    def require_supported_version(self) -> None:
        """Raise :class:`BackupError` unless the server is PostgreSQL 14 to 18."""
        if not OLDEST_VERSION <= self.version <= NEWEST_VERSION:
            raise BackupError(
                f"The server at {self.address} is PostgreSQL {self.major}; this collection supports 14 to 18.",
                code="unsupported_version",
                hint="Update the collection or back this server up with its own pg_basebackup.",
            )

    @property
    def claimed_pid(self) -> int:
        """The backend's process id as sent at connection start; a pooling proxy sends another one."""
        return self._connection.info.backend_pid

    @contextlib.contextmanager
    def _cursor(self) -> t.Iterator[t.Any]:
        try:
            with self._connection.cursor() as cursor:
                yield cursor
        except psycopg2.Error as exc:
            message, sqlstate = describe_error(exc)
            raise BackupError(
                f"PostgreSQL at {self.address} refused a query: {message} (SQLSTATE {sqlstate or 'none'}).",
                code="query_failed",
                sqlstate=sqlstate,
            ) from exc

    def rows(self, query: str, parameters: t.Sequence[t.Any] = ()) -> list[dict[str, t.Any]]:
        """Run ``query`` and return its rows as dictionaries. Raises :class:`BackupError` with the SQLSTATE."""
        with self._cursor() as cursor:
            cursor.execute(query, tuple(parameters) or None)
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row)) for row in cursor.fetchall()] if names else []

    def texts(self, query: str) -> list[tuple[t.Optional[str], ...]]:
        """Run ``query`` and return its rows with each value as the text that the server sent, for :func:`readable`.

        The query may hold any character; the server converts both ways. Raises :class:`BackupError` as :meth:`rows`.
        """
        with self._cursor() as cursor:
            as_text = psycopg2.extensions.new_type(
                tuple(psycopg2.extensions.string_types), "AS_TEXT", lambda value, _cursor: value
            )
            psycopg2.extensions.register_type(as_text, cursor)
            # psycopg2 does not notice that and still decodes as latin-1, which cannot fail.
            cursor.execute("SET client_encoding = 'UTF8'")
            cursor.execute(query.encode("utf-8", "surrogateescape"))
            return cursor.fetchall() if cursor.description else []

    def row(self, query: str, parameters: t.Sequence[t.Any] = ()) -> dict[str, t.Any]:
        """Return the only row of ``query``."""
        return self.rows(query, parameters)[0]

    def value(self, query: str, parameters: t.Sequence[t.Any] = ()) -> t.Any:
        """Return the only value of ``query``."""
        return next(iter(self.row(query, parameters).values()))

    def restore_search_path(self) -> None:
        """Search the schemas that the database, or the role, sets: for the user's own queries."""
        self.rows("RESET search_path")

    def close(self) -> None:
        """Close the session."""
        self._connection.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
