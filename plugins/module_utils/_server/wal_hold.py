# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping the WAL that standbys need while a server restarts, by a replication slot that cannot be left behind.

A slot that was forgotten would fill the disk. So a detached process holds it in its own session, as a temporary slot,
which the server drops with the session; the process ends at a deadline.

- While a standby restarts, its upstream must keep WAL. The process connects to it as the standby does, by
  ``primary_conninfo``.
- While a server with standbys restarts, it must keep the WAL itself, and a temporary slot does not survive that. The
  slot is a lasting one until the server is back; then the process takes it over by a temporary copy, and drops it. It
  tries that for a day. What a crash of the host leaves behind is dropped by the next hold.

A standby with an active slot of its own needs neither.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import (
    Connection,
    describe_error,
    psycopg2,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.replication import (
    HOLD_NAME,
    connect_upstream,
    position_by,
    receiver_of,
    senders_of,
)

POLL_SECONDS = 0.5
DROP_SECONDS = 86400.0
END_SECONDS = 10.0

RESERVE = "SELECT lsn::text FROM pg_create_physical_replication_slot(%s, true)"
COPY = "SELECT pg_copy_physical_replication_slot(%s, %s, true)"
DROP = f"""
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
WHERE slot_type = 'physical' AND NOT active AND NOT temporary AND slot_name LIKE '{HOLD_NAME}%%' AND slot_name = %s
"""
LEFT = f"""
SELECT slot_name FROM pg_replication_slots
WHERE slot_type = 'physical' AND NOT active AND NOT temporary AND slot_name LIKE '{HOLD_NAME}%'
"""


class Needs(t.NamedTuple):
    """What a restart of a server needs: WAL kept by its upstream, and WAL kept by itself for the standbys ``names``."""

    upstream: bool
    names: tuple[str, ...]


def needs_of(connection: Connection) -> Needs:
    """Return what must be held while this server restarts; nothing for standbys with an active slot of their own."""
    receiver = receiver_of(connection)
    return Needs(
        upstream=receiver is not None and not receiver["slot_name"],
        names=tuple(one["name"] for one in senders_of(connection) if not one["slot_name"]),
    )


class Holder:
    """The detached process; a subclass says what it holds."""

    def __init__(self, params: t.Mapping[str, t.Any], seconds: float) -> None:
        self.params = params
        self.deadline = time.monotonic() + seconds
        self.slot = ""
        self.released = False

    def take(self) -> str:
        """Reserve the WAL and return the LSN that standbys must have. Raises :class:`BackupError`."""
        raise NotImplementedError

    def check(self) -> None:
        """See to the slot, some times a second. Raises when it is lost."""
        raise NotImplementedError

    def release(self) -> None:
        """Give the WAL up."""
        raise NotImplementedError

    def start(self, seconds: float) -> tuple[str, str]:
        """Start the process and return it, as :func:`end` takes it, and the LSN. Raises what :meth:`take` raises."""
        reader, writer = os.pipe()
        first = os.fork()
        if first == 0:
            try:
                os.close(reader)
                os.setsid()
                if os.fork() == 0:
                    self._run(writer)
            finally:
                # Never return into the module's code: two processes would answer the task.
                os._exit(0)
        os.close(writer)
        os.waitpid(first, 0)
        with os.fdopen(reader, "rb") as pipe:
            ready, _writable, _other = select.select([pipe], [], [], seconds)
            said = pipe.readline() if ready else b""
        if not said:
            raise BackupError(f"The process that holds WAL did not answer within {seconds:g} s.", code="wal_not_held")
        answer = json.loads(said)
        if "error" in answer:
            raise BackupError(answer["error"], code="wal_not_held", sqlstate=answer["sqlstate"])
        return answer["holder"], answer["lsn"]

    def _run(self, writer: int) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_term)
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != writer:
                with contextlib.suppress(OSError):
                    os.close(int(name))
        pid = os.getpid()
        self.slot = f"{HOLD_NAME}_{pid}"
        try:
            answer: dict[str, t.Any] = {"holder": f"{pid}:{_started(pid)}", "lsn": self.take()}
        except BackupError as exc:
            answer = {"error": exc.msg, "sqlstate": exc.details.get("sqlstate")}
        os.write(writer, json.dumps(answer).encode() + b"\n")
        os.close(writer)
        if "error" in answer:
            return
        with contextlib.suppress(BackupError, psycopg2.Error):
            while not self.released and time.monotonic() < self.deadline:
                self.check()
                time.sleep(POLL_SECONDS)
        self.release()

    def _on_term(self, _number: int, _frame: t.Any) -> None:
        self.released = True


class UpstreamHolder(Holder):
    """Holds WAL on the upstream of a standby."""

    _upstream: t.Any = None

    def take(self) -> str:
        """Create the temporary slot over a replication connection."""
        with Connection(self.params) as connection:
            self._upstream = connect_upstream(connection)
        try:
            with self._upstream.cursor() as cursor:
                cursor.execute(f"CREATE_REPLICATION_SLOT {self.slot} TEMPORARY PHYSICAL RESERVE_WAL")
        except psycopg2.Error as exc:
            message, sqlstate = describe_error(exc)
            raise BackupError(
                f"The upstream refused a replication slot: {message}", "wal_not_held", sqlstate=sqlstate
            ) from exc
        return position_by(self._upstream)

    def check(self) -> None:
        """Ask for a sign of life, which also keeps the session from being idle."""
        position_by(self._upstream)

    def release(self) -> None:
        """End the session, and with it the slot."""
        with contextlib.suppress(psycopg2.Error):
            self._upstream.close()


class OwnHolder(Holder):
    """Holds WAL on a server through its restart."""

    _started_at = 0.0
    _session: t.Optional[Connection] = None

    def take(self) -> str:
        """Create the lasting slot, after those that a crash has left."""
        with Connection(self.params, HOLD_NAME) as connection:
            drop_left(connection)
            lsn = str(connection.value(RESERVE, (self.slot,)))
            self._started_at = connection.value(_START)
        return lsn

    def check(self) -> None:
        """Take the slot over as soon as the server has restarted. No session is open while it stops."""
        if self._session is not None:
            self._session.value("SELECT 1")
            return
        with contextlib.suppress(BackupError):
            connection = Connection(self.params, HOLD_NAME)
            try:
                if connection.value(_START) <= self._started_at:
                    connection.close()
                    return
                connection.rows(COPY, (self.slot, f"{self.slot}_t"))
                connection.rows(DROP, (self.slot,))
            except BackupError:
                connection.close()
                raise
            self._session = connection

    def release(self) -> None:
        """Drop the slots, also when the server is back only later."""
        if self._session is not None:
            self._session.close()
        deadline = time.monotonic() + DROP_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(BackupError), Connection(self.params, HOLD_NAME) as connection:
                connection.rows(DROP, (self.slot,))
                return
            time.sleep(POLL_SECONDS)


_START = "SELECT extract(epoch FROM pg_postmaster_start_time())::float8"


def require_free_slots(connection: Connection) -> None:
    """Raise :class:`BackupError`, code ``no_free_slot``, unless this server can have two more replication slots."""
    free = connection.value(
        "SELECT current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots)::int"
    )
    if free < 2:
        raise BackupError(
            f"The server at {connection.address} has {free} free replication slots; two are needed for a moment.",
            code="no_free_slot",
            hint="Drop unused ones, or set a higher max_replication_slots and restart.",
        )


def drop_left(connection: Connection) -> None:
    """Drop the lasting slots of holds whose process does not run any more."""
    for row in connection.rows(LEFT):
        pid = row["slot_name"].rpartition("_")[2]
        # Another process with the number of the old one only delays this.
        if not pid.isdigit() or not _started(int(pid)):
            connection.rows(DROP, (row["slot_name"],))


def end(holder: str, seconds: float = END_SECONDS) -> bool:
    """End the process ``holder`` of a hold and wait until it has released the WAL; return whether it still ran.

    Raises :class:`BackupError`, code ``wal_hold_stays``.
    """
    pid, _colon, started = holder.partition(":")
    if not pid.isdigit() or _started(int(pid)) != started:
        return False
    os.kill(int(pid), signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while _started(int(pid)) == started:
        if time.monotonic() > deadline:
            raise BackupError(
                f"The process {pid}, which holds WAL, has not ended within {seconds:g} s.",
                code="wal_hold_stays",
                hint="It ends when it can drop its replication slot; see pg_replication_slots.",
            )
        time.sleep(0.05)
    return True


def _started(pid: int) -> str:
    """Return when a process was started, in clock ticks since the boot, "" when there is none or it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def wait_received(params: t.Mapping[str, t.Any], lsn: str, timeout: float) -> None:
    """Wait until this standby has received the WAL up to ``lsn``. Raises BackupError, code ``standby_lags``."""
    query = "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) >= %s::pg_lsn"
    with Connection(params) as connection:
        _wait(lambda: bool(connection.value(query, (lsn,))), f"This standby has not received {lsn}", timeout)


def wait_followed(params: t.Mapping[str, t.Any], lsn: str, names: t.Sequence[str], timeout: float) -> None:
    """Wait until the standbys ``names`` have the WAL up to ``lsn``. Raises BackupError, code ``standby_lags``."""

    with Connection(params) as connection:

        def followed() -> bool:
            return all(one["flushed"] for one in senders_of(connection, lsn) if one["name"] in names)

        _wait(followed, f"Not all of the standbys {', '.join(names)} have {lsn}", timeout)


def _wait(condition: t.Callable[[], bool], failure: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BackupError(
                f"{failure} within {timeout:g} s, so WAL that is needed may already be gone.",
                code="standby_lags",
                hint="Restart when replication has caught up.",
            )
        time.sleep(0.1)
