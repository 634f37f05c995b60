# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who streams from a server and from whom it streams, and waiting until both are so again after a restart.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.

Sources: PostgreSQL, "pg_stat_replication", "pg_stat_wal_receiver", "Streaming Replication Protocol".
"""

from __future__ import annotations

import collections
import contextlib
import os
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import (
    CONNECT_TIMEOUT,
    Connection,
    describe_error,
    psycopg2,
    raw,
    readable,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.pg_ctl import quoted_log
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.process import server_process

if psycopg2 is not None:
    import psycopg2.extras

# The sessions and slots that keep WAL during a restart; a "_" in LIKE is any character, which harms nothing here.
HOLD_NAME = "pgfleet_hold"
INTERVAL = 0.2
# A receiver that is refused ends at once, and the next one is tried after wal_retrieve_retry_interval, 5 s by default.
STABLE_SECONDS = 2.0

BASICS = """
SELECT pg_is_in_recovery() AS in_recovery,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       extract(epoch FROM pg_postmaster_start_time())::float8 AS started_at,
       current_setting('data_directory', true) AS data_directory
"""

# Physical walsenders, except the ones of backups, of copiers of WAL, and of this collection.
SENDERS = f"""
SELECT coalesce(r.application_name, '') AS application_name, coalesce(host(r.client_addr), '') AS client_addr, r.state,
       r.flush_lsn >= %s::pg_lsn AS flushed, coalesce(s.slot_name, '') AS slot_name
FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
WHERE s.slot_type IS DISTINCT FROM 'logical' AND r.state IS DISTINCT FROM 'backup'
      AND coalesce(r.application_name, '') NOT SIMILAR TO '(pg_basebackup|pg_receivewal|{HOLD_NAME})%%'
ORDER BY 1, 2
"""

IDLE_SLOTS = f"""
SELECT slot_name FROM pg_replication_slots
WHERE slot_type = 'physical' AND NOT active AND NOT temporary AND restart_lsn IS NOT NULL
      AND slot_name NOT LIKE '{HOLD_NAME}%'
ORDER BY 1
"""

RECEIVER = """
SELECT pid, status, coalesce(slot_name, '') AS slot_name, coalesce(sender_host, '') AS sender_host,
       coalesce(sender_port, 0) AS sender_port
FROM pg_stat_wal_receiver WHERE status IS NOT NULL
"""


def _position(connection: Connection, in_recovery: bool) -> str:
    """Return up to where the server itself has WAL."""
    function = "pg_last_wal_replay_lsn()" if in_recovery else "pg_current_wal_flush_lsn()"
    return str(connection.value(f"SELECT {function}::text") or "0/0")


def name_of(sender: t.Mapping[str, t.Any]) -> str:
    """Return what messages and comparisons call a standby that streams from a server: ``pg2 (10.0.0.2)``."""
    name = readable(sender["application_name"]) or "a standby"
    return f"{name} ({sender['client_addr'] or 'local socket'})"


def senders_of(connection: Connection, reached: str = "0/0") -> list[dict[str, t.Any]]:
    """Return the standbys that are connected to a server: ``name``, ``state``, ``slot_name``, ``flushed``.

    ``flushed`` is whether a standby has the WAL up to ``reached``. Both are None where the login role may not see it.
    """
    rows = connection.rows(SENDERS, (reached,))
    return [{"name": name_of(row), **{key: row[key] for key in ("state", "slot_name", "flushed")}} for row in rows]


def receiver_of(connection: Connection) -> t.Optional[dict[str, t.Any]]:
    """Return the standby's connection to its upstream, None when it has none or the role may not see it."""
    rows = connection.rows(RECEIVER)
    return {**rows[0], "sender_host": readable(rows[0]["sender_host"])} if rows else None


def replication(connection: Connection) -> dict[str, t.Any]:
    """Return the facts that the documentation of ``server_replication`` lists."""
    basics = connection.row(BASICS)
    found = receiver_of(connection) if basics["in_recovery"] else None
    conninfo = connection.value("SELECT current_setting('primary_conninfo', true)") if basics["in_recovery"] else None
    return {
        "role": "standby" if basics["in_recovery"] else "primary",
        "system_identifier": basics["system_identifier"],
        "data_directory": os.fsdecode(raw(basics["data_directory"] or "")),
        "started_at": basics["started_at"],
        "has_upstream": bool(conninfo),
        "upstream": f"{found['sender_host']}:{found['sender_port']}" if found else "",
        "receiver_status": found["status"] if found else "",
        "receiver_slot": found["slot_name"] if found else "",
        "senders": [{key: one[key] for key in ("name", "state", "slot_name")} for one in senders_of(connection)],
        "idle_slots": [readable(row["slot_name"]) for row in connection.rows(IDLE_SLOTS)],
    }


def connect_upstream(connection: Connection) -> t.Any:
    """Return a replication connection to the standby's own upstream, made as the standby itself makes it.

    Raises :class:`BackupError`, code ``upstream_unreachable``.
    """
    conninfo = readable(connection.value("SELECT current_setting('primary_conninfo')"))
    receiver = receiver_of(connection)
    try:
        parts = psycopg2.extensions.parse_dsn(conninfo)
        if receiver and receiver["sender_host"] and "," in parts.get("host", parts.get("hostaddr", "")):
            # Only the one in use is the upstream.
            parts.pop("hostaddr", None)
            parts.update(host=receiver["sender_host"], port=str(receiver["sender_port"]))
        for name in ("dbname", "replication", "fallback_application_name"):
            parts.pop(name, None)
        # This idle session must not be ended by the upstream's own settings.
        parts["options"] = f"{parts.get('options', '')} -c idle_session_timeout=0".strip()
        parts.update(application_name=HOLD_NAME, connect_timeout=str(CONNECT_TIMEOUT))
        return psycopg2.connect(connection_factory=psycopg2.extras.PhysicalReplicationConnection, **parts)
    except psycopg2.Error as exc:
        message, sqlstate = describe_error(exc)
        raise BackupError(
            f"The upstream of the standby at {connection.address} cannot be asked by its primary_conninfo: {message}",
            code="upstream_unreachable",
            sqlstate=sqlstate,
        ) from exc


def upstream_position(connection: Connection) -> str:
    """Return up to where the standby's upstream has WAL. Raises :class:`BackupError`, ``upstream_unreachable``."""
    with contextlib.closing(connect_upstream(connection)) as upstream:
        return position_by(upstream)


def position_by(upstream: t.Any) -> str:
    """Return the upstream's position over a replication connection. Raises :class:`BackupError`."""
    try:
        with upstream.cursor() as cursor:
            cursor.execute("IDENTIFY_SYSTEM")
            return str(cursor.fetchone()[2])
    except psycopg2.Error as exc:
        message, sqlstate = describe_error(exc)
        raise BackupError(
            f"The upstream refused IDENTIFY_SYSTEM: {message}", code="upstream_unreachable", sqlstate=sqlstate
        ) from exc


class Expected(t.NamedTuple):
    """What a server must do again: start after ``started_after``, stream, have ``senders`` (names, as a ``role``)."""

    started_after: float
    role: str
    streams: bool
    senders: tuple[str, ...]


class _Waiting:
    """The observations of one wait, over several connections."""

    def __init__(self, expected: Expected) -> None:
        self.expected = expected
        self.failure = BackupError("The server was not asked.", code="not_streaming")
        self._target: t.Optional[str] = None
        self._sent: t.Optional[str] = None
        self._receiver: t.Optional[tuple[int, float]] = None

    def is_over(self, connection: Connection) -> bool:
        """Return whether all is as expected; otherwise ``failure`` says what is not."""
        basics = connection.row(BASICS)
        if basics["started_at"] <= self.expected.started_after:
            self.failure = BackupError(
                f"The server at {connection.address} was not restarted.",
                code="not_restarted",
                hint="See what your own tasks, or the service manager, did.",
            )
            return False
        in_recovery = bool(basics["in_recovery"])
        if in_recovery and self.expected.streams and not self._streams(connection):
            return False
        # After a switchover by the user's own tasks they follow another server.
        if in_recovery != (self.expected.role == "standby"):
            return True
        return self._is_followed(connection, in_recovery)

    def _streams(self, connection: Connection) -> bool:
        receiver = receiver_of(connection)
        if receiver is None or receiver["status"] != "streaming":
            self._receiver = None
            self._fail(connection, f"its receiver is {receiver['status'] if receiver else 'not connected'}")
            return False
        if self._target is None:
            try:
                self._target = upstream_position(connection)
            except BackupError as exc:
                # Without a position a receiver counts that was not refused.
                pid, since = self._receiver or (receiver["pid"], time.monotonic())
                self._receiver = (pid, since) if pid == receiver["pid"] else None
                self._fail(connection, exc.msg)
                return self._receiver is not None and time.monotonic() - since >= STABLE_SECONDS
        # What it replays may come from an archive, and it has received nothing then.
        query = "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) >= %s::pg_lsn"
        if connection.value(query, (self._target,)):
            return True
        self._fail(connection, f"it has not reached {self._target}, which its upstream has")
        return False

    def _fail(self, connection: Connection, reason: str) -> None:
        directory = os.fsdecode(raw(connection.row(BASICS)["data_directory"] or ""))
        try:
            process = server_process(directory) if directory else None
        except BackupError:
            process = None
        log = f" - {quoted_log(process.log_file)}" if process else ""
        self.failure = BackupError(
            f"The standby at {connection.address} accepts connections and does not stream: {reason}{log}",
            code="not_streaming",
            hint="Its own log has the reason. If its primary has removed WAL that it needs, it must be rebuilt.",
        )

    def _is_followed(self, connection: Connection, in_recovery: bool) -> bool:
        if not self.expected.senders:
            return True
        if self._sent is None:
            self._sent = _position(connection, in_recovery)
        wanted = collections.Counter(self.expected.senders)
        found = senders_of(connection, self._sent)
        missing = wanted - collections.Counter(
            one["name"] for one in found if one["state"] == "streaming" and one["flushed"]
        )
        if not missing:
            return True
        states = ", ".join(f"{one['name']}: {one['state'] or 'state not visible'}" for one in found) or "none"
        self.failure = BackupError(
            f"The server at {connection.address} accepts connections; not all standbys stream from it again:"
            f" {', '.join(sorted(missing.elements()))} (connected are: {states}).",
            code="not_followed",
            hint="The log of that standby has the reason. If it asks for WAL that was removed, it must be rebuilt.",
        )
        return False


def wait_replicates(params: t.Mapping[str, t.Any], expected: Expected, timeout: float) -> None:
    """Wait until a restarted server accepts connections and replicates again.

    A standby must have all WAL that its upstream had when the wait began: a receiver is called streaming before it
    has connected. Raises :class:`BackupError` after ``timeout`` seconds: ``connection_failed``, ``not_restarted``,
    ``not_streaming``, ``not_followed``.
    """
    deadline = time.monotonic() + timeout
    waiting = _Waiting(expected)
    while True:
        try:
            with Connection(params) as connection:
                if waiting.is_over(connection):
                    return
            failure = waiting.failure
        except BackupError as exc:
            if exc.code not in ("connection_failed", "query_failed"):
                raise
            failure = exc
        if time.monotonic() >= deadline:
            failure.msg = f"After {timeout:g} s: {failure.msg}"
            raise failure
        time.sleep(INTERVAL)
