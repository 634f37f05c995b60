# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One PostgreSQL server: start, stop, kill, ask, configure."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import time
import typing as t

import psycopg2
import psycopg2.extensions

from . import binaries
from .user import run

Row = t.Tuple[t.Any, ...]


def wait_until(condition: t.Callable[[], t.Any], what: str, timeout: float = 30, interval: float = 0.02) -> t.Any:
    """Return the first true value of ``condition()``; ``AssertionError`` naming ``what`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(interval)


def children_of(pid: int) -> list[int]:
    """Return the direct children of a process; none if it has ended."""
    try:
        return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@dataclasses.dataclass
class Server:
    """A server under ``directory``: ``data``, ``log``, the socket, and for a primary ``archive`` and ``tablespaces``.

    The superuser ``postgres`` needs no password on the socket and ``password`` over TCP (127.0.0.1, scram-sha-256).
    """

    major: int
    name: str
    directory: pathlib.Path
    port: int
    archive: pathlib.Path | None = None
    upstream: Server | None = None
    user: str = "postgres"
    password: str = ""

    @property
    def data(self) -> pathlib.Path:
        """The data directory."""
        return self.directory / "data"

    @property
    def socket_directory(self) -> pathlib.Path:
        """Where the Unix socket is."""
        return self.directory

    @property
    def log_file(self) -> pathlib.Path:
        """The server's log."""
        return self.directory / "log"

    @property
    def log(self) -> str:
        """The text of the server's log so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None when it is not running."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            # A stale number, or one of another namespace, may be that of any process; the tests kill what this names.
            is_here = os.path.samefile(f"/proc/{pid}/cwd", self.data)
        except (OSError, ValueError, IndexError):
            return None
        return pid if is_here and is_alive(pid) else None

    @property
    def running(self) -> bool:
        """Whether the postmaster is running."""
        return self.pid is not None

    # -- programs ------------------------------------------------------------------------------------------------

    @property
    def env(self) -> dict[str, str]:
        """The environment for PostgreSQL's programs: library path and connection over the socket."""
        return {
            **binaries.environment(self.major),
            "PGHOST": str(self.socket_directory),
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGDATABASE": "postgres",
        }

    def tool(self, name: str, *args: str | os.PathLike[str], **kwargs: t.Any) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs (``pgbench``, ``pg_basebackup``) as the server user on this server."""
        kwargs["env"] = {**self.env, **kwargs.get("env", {})}
        return run([binaries.tool(self.major, name), *args], **kwargs)

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self, timeout: int = 60) -> Server:
        """Start and wait until the server accepts connections."""
        done = self.tool(
            "pg_ctl", "-D", self.data, "-l", self.log_file, "-s", "-w", "-t", str(timeout), "start",
            check=False, timeout=timeout + 30,
        )  # fmt: skip
        if done.returncode != 0:
            raise AssertionError(f"{self.name} does not start: {done.stderr}\n{self.log[-4000:]}")
        return self

    def stop(self, mode: str = "fast", timeout: int = 60) -> None:
        """Stop (``smart``, ``fast`` or ``immediate``); does nothing if the server is not running."""
        if self.running:
            self.tool(
                "pg_ctl", "-D", self.data, "-s", "-m", mode, "-w", "-t", str(timeout), "stop", timeout=timeout + 30
            )

    def kill(self) -> None:
        """End the postmaster and all its children with SIGKILL, as a crash of the machine would."""
        pid = self.pid
        if pid is None:
            return
        # SIGSTOP first, so that it starts no child after its children were listed.
        os.kill(pid, signal.SIGSTOP)
        family = [*children_of(pid), pid]
        for member in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        # The next start would still count a zombie as running, and init can be slow to reap it.
        wait_until(
            lambda: not any(pathlib.Path(f"/proc/{member}").exists() for member in family), f"{self.name} has ended"
        )

    def restart(self, mode: str = "fast") -> Server:
        """Stop and start."""
        self.stop(mode)
        return self.start()

    def reload(self) -> None:
        """Make the server reload its configuration, which takes effect a moment later."""
        self.tool("pg_ctl", "-D", self.data, "-s", "reload")

    def conf(self, **settings: str | int | bool) -> Server:
        """Append settings to postgresql.conf (the last one wins). The caller reloads or restarts."""
        with (self.data / "postgresql.conf").open("a") as file:
            for name, value in settings.items():
                text = ("on" if value else "off") if isinstance(value, bool) else str(value)
                file.write("{} = '{}'\n".format(name, text.replace("'", "''")))
        return self

    def promote(self) -> None:
        """Make a standby a primary and wait until it is one."""
        self.tool("pg_ctl", "-D", self.data, "-s", "-w", "promote")
        self.upstream = None

    # -- questions -----------------------------------------------------------------------------------------------

    def login(self, *, tcp: bool = False, database: str = "postgres") -> dict[str, t.Any]:
        """Return the ``login_*`` options of a module for this server, over the socket or over TCP with the password."""
        options: dict[str, t.Any] = {"login_user": self.user, "login_port": self.port, "login_db": database}
        if tcp:
            return {**options, "login_host": "127.0.0.1", "login_password": self.password}
        return {**options, "login_unix_socket": str(self.socket_directory)}

    def connect(self, database: str = "postgres", user: str | None = None, **kwargs: t.Any) -> t.Any:
        """Return a psycopg2 connection in autocommit mode; the caller closes it."""
        kwargs.setdefault("host", str(self.socket_directory))
        connection = psycopg2.connect(
            port=self.port, dbname=database, user=user or self.user, connect_timeout=10, **kwargs
        )
        connection.set_session(autocommit=True)
        return connection

    def sql(
        self, query: str, parameters: t.Sequence[t.Any] | None = None, *, database: str = "postgres",
        user: str | None = None,
    ) -> list[Row]:  # fmt: skip
        """Run one query in its own connection and return its rows, [] for a command without a result."""
        with contextlib.closing(self.connect(database, user)) as connection, connection.cursor() as cursor:
            cursor.execute(query, parameters)
            return t.cast("list[Row]", cursor.fetchall()) if cursor.description else []

    def value(self, query: str, parameters: t.Sequence[t.Any] | None = None, **kwargs: t.Any) -> t.Any:
        """Return the first column of the first row."""
        return self.sql(query, parameters, **kwargs)[0][0]

    @property
    def in_recovery(self) -> bool:
        """Whether the server is a standby or still recovering."""
        return bool(self.value("SELECT pg_is_in_recovery()"))

    @property
    def system_identifier(self) -> str:
        """The cluster's system identifier."""
        return str(self.value("SELECT system_identifier FROM pg_control_system()"))

    # -- WAL -----------------------------------------------------------------------------------------------------

    def lsn(self) -> str:
        """Return the write position of a primary, the replay position of a standby."""
        function = "pg_last_wal_replay_lsn" if self.in_recovery else "pg_current_wal_lsn"
        return str(self.value(f"SELECT {function}()"))

    def catch_up(self, timeout: float = 30) -> None:
        """Wait until this standby has replayed all WAL of its upstream."""
        assert self.upstream is not None
        lsn = self.upstream.lsn()
        wait_until(
            lambda: self.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn]), f"{self.name} at {lsn}", timeout
        )

    def switch_wal(self) -> None:
        """Switch to a new WAL segment, after a write so that the switch is not a no-op."""
        self.sql("SELECT pg_create_restore_point('switch')")
        self.sql("SELECT pg_switch_wal()")

    def break_archive(self, broken: bool = True) -> None:
        """Make archive_command fail, or work again and wake the archiver, which would otherwise wait up to a minute."""
        assert self.archive is not None
        mark = self.archive.with_suffix(".broken")
        if broken:
            mark.touch()
        else:
            mark.unlink(missing_ok=True)
            self.reload()

    # -- content -------------------------------------------------------------------------------------------------

    def pgbench_init(self, scale: int = 1, database: str = "postgres", *args: str) -> None:
        """Create pgbench's tables: about 15 MB for each unit of ``scale``."""
        self.tool("pgbench", "-i", "-q", "-s", str(scale), *args, database)

    def tablespace(self, name: str, directory: pathlib.Path | bytes | None = None) -> pathlib.Path | bytes:
        """Create a tablespace and, in it, a table ``in_<name>`` of 1,000 rows; return its directory.

        On a server with a standby use ``allow_in_place_tablespaces``: the standby runs on the same machine and would
        replay the creation into the same directory.
        """
        path = self.directory / "tablespaces" / name if directory is None else directory
        as_bytes = path if isinstance(path, bytes) else os.fsencode(path)
        parent = pathlib.Path(os.fsdecode(os.path.dirname(as_bytes)))
        run(["mkdir", "-p", "-m", "0700", parent])
        run(["mkdir", "-m", "0700", as_bytes])
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            connection.set_client_encoding("SQL_ASCII")
            quoted = b"'" + as_bytes.replace(b"'", b"''") + b"'"
            cursor.execute(f'CREATE TABLESPACE "{name}" LOCATION '.encode() + quoted)
            cursor.execute(
                f'CREATE TABLE "in_{name}" TABLESPACE "{name}" AS'
                " SELECT i, md5(i::text) FROM generate_series(1, 1000) i"
            )
        return path
