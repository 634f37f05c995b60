# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The session process: owns the connection in which a backup was started, from start to stop.

Private to pgfleet.basebackup. Room ``_session``: the session process, starting and asking it; it knows no repository.

PostgreSQL, "Making a Base Backup Using the Low Level API": the session that called ``pg_backup_start`` must be
kept until ``pg_backup_stop``. An Ansible module dies with its task, so this script runs detached. It is handed to
Python in memory, because no code is run from a repository, and needs only the standard library and psycopg2, since
the module's payload is deleted when the task ends. Its argument is the backup's ``session`` folder.

It reads its orders as JSON from standard input (the password is in no file and on no command line), listens on
the Unix socket ``socket`` in its folder, and records each state durably in ``state.json`` before it
answers. Requests and answers are single lines of JSON: ``{"do": "status" | "watch" | "stop" | "release" | "abort"}``,
with ``"renew": true`` from a client that works on the backup. A watcher is notified when the session ends.

With ``reserve_wal`` in its orders the session also holds a temporary replication slot, which makes the server keep the
WAL from before the start. It then stays after stop, until ``release``; the slot ends with the session.

States: connecting, starting, running, stopping, then stopped (label and map are in ``state.json``) or failed.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import select
import signal
import socket
import sys
import threading
import time
import typing as t

# Longest time, in seconds, before the removal of the folder, the deadline or the lease is noticed.
TICK = 5.0
MAX_REQUEST = 4096
CANCEL_SECONDS = 5.0

# How long one client may delay the others.
CLIENT_SECONDS = 1.0
RESERVE_BYTES = 65536
FINAL_STATES = ("stopped", "failed")
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# Each of these could end the session, and with it the backup, in the middle of a long copy.
TIMEOUTS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout")

TABLESPACES = (
    "SELECT oid::bigint, spcname, pg_tablespace_location(oid) FROM pg_tablespace"
    " WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid"
)


class SessionEnded(Exception):
    """The backup is void; the arguments are the reason, its code and the SQLSTATE."""

    def __init__(self, reason: str, code: str, sqlstate: t.Optional[str] = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.sqlstate = sqlstate


def as_bytes(text: t.Optional[str]) -> bytes:
    """Return the server's bytes: the connection decodes SQL_ASCII as latin-1, one character for a byte."""
    return (text or "").encode("latin-1")


def error_of(exc: BaseException) -> tuple[str, t.Optional[str]]:
    """Return PostgreSQL's message on one line and its SQLSTATE."""
    diag = getattr(exc, "diag", None)
    parts = [getattr(diag, name, None) for name in ("message_primary", "message_detail", "message_hint")]
    text = " ".join(part for part in parts if part) or str(exc) or type(exc).__name__
    try:
        text = as_bytes(text).decode("utf-8", "replace")
    except UnicodeEncodeError:
        pass
    return " ".join(text.split()), getattr(exc, "pgcode", None)


class Record:
    """``state.json``: what happened to the session, replaced as a whole and fsynced."""

    def __init__(self, directory: str, **content: t.Any) -> None:
        self._directory = directory
        self._guard = threading.Lock()
        self._content: dict[str, t.Any] = content

    @property
    def state(self) -> str:
        return self._content["state"]

    def get(self) -> dict[str, t.Any]:
        with self._guard:
            return dict(self._content)

    def write(self, **changes: t.Any) -> None:
        with self._guard:
            if self.state in FINAL_STATES:
                # Both threads can write the end at once; the first record is final.
                return
            content = dict(self._content, **changes)
            try:
                try:
                    self._replace(content)
                except OSError:
                    # A full disk must not cost the label.
                    os.unlink(os.path.join(self._directory, "reserve"))
                    self._replace(content)
            except OSError:
                if content["state"] != "failed":
                    raise
            # Only what is on disk may be reported, unless it is a failure.
            self._content = content

    def _replace(self, content: dict[str, t.Any]) -> None:
        path = os.path.join(self._directory, "state.json")
        temporary = f"{path}.{secrets.token_hex(8)}.tmp"
        handle = os.open(temporary, NEW_FILE, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            json.dump(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, path)
        folder = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Backend:
    """The connection to PostgreSQL and its statements; one thread at a time uses it."""

    def __init__(self, psycopg2: t.Any, orders: dict[str, t.Any], record: Record) -> None:
        self._psycopg2 = psycopg2
        self._orders = orders
        self._record = record
        self.connection: t.Any = None

    def _rows(self, query: str, *parameters: t.Any) -> list[tuple[t.Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(query, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def _tablespaces(self) -> list[dict[str, t.Any]]:
        return [
            {"oid": oid, "name": as_bytes(name).hex(), "location": as_bytes(location).hex()}
            for oid, name, location in self._rows(TABLESPACES)
        ]

    def _reserve_wal(self, pid: int) -> str:
        """Make the server keep its WAL from here; return the slot's name."""
        slot = f"pgfleet_basebackup_{pid}"
        self._rows("SELECT pg_create_physical_replication_slot(%s, true, true)", slot)
        return slot

    def _check_slot(self, slot: str, start_lsn: str) -> None:
        query = "SELECT restart_lsn <= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s"
        if self._rows(query, start_lsn, slot) != [(True,)]:
            raise SessionEnded(f"The replication slot does not keep the WAL from {start_lsn} on.", "slot_too_new")

    def start(self) -> None:
        """Connect and run start; return when the server is in backup mode."""
        self.connection = self._psycopg2.connect(**self._orders["connection"])
        self.connection.autocommit = True
        version = self.connection.server_version
        # Functions that others have made must not replace the system's: the search path comes first.
        self._rows("SELECT pg_catalog.set_config('search_path', '', false)")
        for name in TIMEOUTS + (("transaction_timeout",) if version >= 170000 else ()):
            self._rows("SELECT pg_catalog.set_config(%s, '0', false)", name)
        pid, in_recovery = self._rows("SELECT pg_backend_pid(), pg_is_in_recovery()")[0]
        if pid != self.connection.info.backend_pid:
            raise SessionEnded(
                f"The connection goes through a pooling proxy: the server process is {pid}, the proxy reported"
                f" {self.connection.info.backend_pid}. A backup needs one session from start to stop.",
                "pooling_proxy",
            )
        if in_recovery != self._orders["from_standby"]:
            raise SessionEnded("The server changed its role between the check and the start.", "role_changed")
        identifier = self._rows("SELECT system_identifier::text FROM pg_control_system()")[0][0]
        if identifier != self._orders["system_identifier"]:
            raise SessionEnded(
                f"The server belongs to another cluster ({identifier}) than the one that was checked"
                f" ({self._orders['system_identifier']}).",
                "other_cluster",
            )
        # Listed before start: a tablespace created in between counts as new although the map has it, never the reverse.
        tablespaces = self._tablespaces()
        # Before start, so that no checkpoint in between removes WAL that the backup needs.
        slot = self._reserve_wal(pid) if self._orders.get("reserve_wal") else None
        self._record.write(state="starting", backend_pid=pid, tablespaces=tablespaces, slot=slot)
        label = self._orders["label"].encode("utf-8").decode("latin-1")
        if version >= 150000:
            query = "SELECT pg_backup_start(%s, %s)::text"
        else:
            # Version 14 defaults to the exclusive mode, which writes the label into the live data directory.
            query = "SELECT pg_start_backup(%s, %s, false)::text"
        lsn = self._rows(query, label, self._orders["fast"])[0][0]
        if slot:
            self._check_slot(slot, lsn)
        timeline = self._rows("SELECT timeline_id FROM pg_control_checkpoint()")[0][0]
        del self.connection.notices[:]
        self._record.write(
            state="running", start_lsn=lsn, start_timeline=timeline, from_standby=in_recovery, started_at=time.time()
        )

    def stop(self) -> None:
        """Run stop without waiting for the archive, and record label and map durably before anything else."""
        pid = self._rows("SELECT pg_backend_pid()")[0][0]
        if pid != self._record.get()["backend_pid"]:
            raise SessionEnded(
                "The connection is served by another backend than at start: a pooling proxy.", "pooling_proxy"
            )
        # A wait inside the server can lose the label: a cancelled stop has already ended backup mode.
        if self.connection.server_version >= 150000:
            query = "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(false)"
        else:
            query = "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
        lsn, label, space_map = self._rows(query)[0]
        result = {"stop_lsn": lsn, "label_file": as_bytes(label).hex(), "map_file": as_bytes(space_map).hex()}
        self._record.write(stopped_at=time.time(), **result)
        timeline = self._rows("SELECT min_recovery_end_timeline FROM pg_control_recovery()")[0][0]
        self._record.write(state="stopped", min_recovery_end_timeline=timeline, tablespaces_after=self._tablespaces())


class Keeper:
    """The loop: answers requests, watches the connection, the deadline and the lease."""

    def __init__(
        self, directory: str, backend: Backend, record: Record, orders: dict[str, t.Any], listener: socket.socket
    ) -> None:
        self._directory = directory
        self._backend = backend
        self._record = record
        self._listener = listener
        self._idle_timeout = float(orders["session_idle_timeout"])
        self._deadline = time.monotonic() + float(orders["session_timeout"])
        self._session_timeout = float(orders["session_timeout"])
        self._asked = time.monotonic()
        self._watchers: list[socket.socket] = []
        self._waiting: list[socket.socket] = []
        self._wake_read, self._wake_write = os.pipe()
        self._problem: t.Optional[SessionEnded] = None
        self._busy = False
        # True while the WAL that the slot keeps must still be copied.
        self._held = bool(orders.get("reserve_wal"))

    def _in_thread(self, work: t.Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except SessionEnded as exc:
                self._problem = exc
            except Exception as exc:  # whatever it was, the backup is void and the reason must be recorded
                message, sqlstate = error_of(exc)
                self._problem = SessionEnded(message, "server_error", sqlstate)
            finally:
                self._busy = False
                os.write(self._wake_write, b".")

        self._busy = True
        threading.Thread(target=run, daemon=True).start()

    def run(self) -> None:
        """Keep the session until it is stopped (and released), aborted, lost or out of time."""
        try:
            self._in_thread(self._backend.start)
            while self._record.state != "stopped" or self._busy or self._held:
                self._turn()
                if self._problem is not None:
                    raise self._problem
                if self._record.state == "stopped" and not self._busy:
                    self._answer_waiting()
        except Exception as exc:  # this process has no other way to report why it died
            end = exc if isinstance(exc, SessionEnded) else SessionEnded(f"The session process failed: {exc!r}", "bug")
            failed_in = self._record.state
            self._cancel()
            self._record.write(
                state="failed", error=end.reason, code=end.code, sqlstate=end.sqlstate, failed_in=failed_in
            )
        finally:
            self._farewell()

    def _turn(self) -> None:
        readers: list[t.Any] = [self._listener, self._wake_read, *self._watchers]
        connection = self._backend.connection
        watched = connection if connection is not None and not self._busy else None
        if watched is not None:
            readers.append(watched)
        until = self._deadline - time.monotonic()
        if not self._busy:
            until = min(until, self._asked + self._idle_timeout - time.monotonic())
        ready = select.select(readers, [], [], max(0.0, min(TICK, until)))[0]
        if self._wake_read in ready:
            os.read(self._wake_read, 16)
        if watched in ready and not self._busy:
            self._look_at_connection()
        for watcher in [one for one in self._watchers if one in ready]:
            # A watcher sends nothing; readable means that it has disconnected.
            self._watchers.remove(watcher)
            watcher.close()
            self._asked = time.monotonic()
        if self._listener in ready:
            self._serve()
        self._check_time()

    def _look_at_connection(self) -> None:
        try:
            self._backend.connection.poll()
        except Exception as exc:  # any error here means that the connection is lost
            message, sqlstate = error_of(exc)
            # The server's last message answers no query, so it arrived as a notice.
            notices = [as_bytes(text).decode("utf-8", "replace") for text in self._backend.connection.notices]
            farewell = "; ".join(" ".join(text.split()) for text in notices) or message
            # The server ends a session whose slot exceeds its limits, and gives the reason in its log only.
            code = "connection_lost_with_slot" if self._held else "connection_lost"
            raise SessionEnded(f"The connection to PostgreSQL was lost: {farewell}", code, sqlstate) from exc
        if self._backend.connection.closed:
            raise SessionEnded("The connection to PostgreSQL was lost.", "connection_lost")

    def _check_time(self) -> None:
        now = time.monotonic()
        if self._watchers:
            self._asked = now
        if now >= self._deadline:
            raise SessionEnded(
                f"The session reached its time limit of {self._session_timeout:.0f} s.", "session_timeout"
            )
        if now >= self._asked + self._idle_timeout and not self._busy:
            raise SessionEnded(
                f"No request reached the session for {self._idle_timeout:.0f} s.",
                "session_idle_timeout",
            )
        if not os.path.isdir(self._directory):
            raise SessionEnded("The backup's folder was removed.", "folder_removed")

    def _serve(self) -> None:
        client, _address = self._listener.accept()
        try:
            client.settimeout(CLIENT_SECONDS)
            # One read: requests are short and sent at once, and a slow client must not hold this loop up.
            request = json.loads(client.recv(MAX_REQUEST))
            action, renew = request["do"], request.get("renew")
        except SessionEnded:
            raise
        except Exception:  # no request, however malformed, may end the backup
            client.close()
            return
        if renew:
            self._asked = time.monotonic()
        if action == "abort":
            self._waiting.append(client)
            raise SessionEnded("The backup was aborted on request.", "aborted")
        if action == "stop":
            self._waiting.append(client)
            if self._record.state == "running":
                self._record.write(state="stopping")
                self._in_thread(self._backend.stop)
            elif self._record.state != "stopping":
                self._waiting.remove(client)
                self._answer(client, close=True)
            return
        if action == "release" and self._record.state == "stopped" and not self._busy:
            self._held = False
            self._waiting.append(client)
            return
        keep = action == "watch"
        self._answer(client, close=not keep)
        if keep:
            self._watchers.append(client)

    def _answer_waiting(self) -> None:
        while self._held and self._waiting:
            self._answer(self._waiting.pop(), close=True)

    def _answer(self, client: socket.socket, close: bool) -> None:
        answer = self._record.get()
        answer["seconds_left"] = round(self._deadline - time.monotonic())
        answer["idle_seconds"] = round(time.monotonic() - self._asked)
        try:
            client.sendall(json.dumps(answer).encode("ascii") + b"\n")
        except OSError:
            close = True
        if close:
            client.close()

    def _cancel(self) -> None:
        connection = self._backend.connection
        if connection is None:
            return
        end = connection.cancel if self._busy else connection.close

        def try_to() -> None:
            try:
                end()
            except Exception:  # the process exits next, which closes the connection
                pass

        # On a dead network a cancel request would block for minutes.
        thread = threading.Thread(target=try_to, daemon=True)
        thread.start()
        thread.join(CANCEL_SECONDS)

    def _farewell(self) -> None:
        # The socket is removed first: any later client reads the final state.json.
        try:
            os.unlink(os.path.join(self._directory, "socket"))
        except OSError:
            pass
        for client in self._waiting + self._watchers:
            self._answer(client, close=True)


def detach(ready: int) -> None:
    """Leave the task's session; keep none of its descriptors but the readiness pipe."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    keep = {ready, 0, 1, 2}
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else map(str, range(256)):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                pass


def main() -> None:
    """Run with the folder as argument, orders on standard input, one line of JSON on standard output when ready."""
    directory = sys.argv[1]
    orders = json.load(sys.stdin)
    sys.path.append(orders["psycopg2_path"])
    import psycopg2
    import psycopg2.extensions

    psycopg2.extensions.encodings["SQLASCII"] = psycopg2.extensions.encodings["SQL_ASCII"] = "latin_1"
    os.umask(0o077)
    ready = os.dup(1)
    detach(ready)
    # Bound by its short name: a socket's path is limited to about 100 bytes, a repository's is not.
    os.chdir(directory)
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        # Waits for processes that test the lock; no other process ever holds it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind("socket")
        listener.listen(16)
        with os.fdopen(os.open("reserve", NEW_FILE, 0o600), "wb") as reserve:
            reserve.write(bytes(RESERVE_BYTES))
    except OSError as exc:
        os.write(
            ready, json.dumps({"error": f"Cannot set up the session in {directory}: {exc}"}).encode("ascii") + b"\n"
        )
        os._exit(1)
    record = Record(directory, state="connecting", pid=os.getpid(), created_at=time.time())
    record.write()
    os.write(ready, b'{"ok": true}\n')
    os.close(ready)
    os.chdir("/")

    def on_signal(number: int, _frame: t.Any) -> None:
        raise SessionEnded(f"The session process was ended by signal {number}.", "signal")

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    Keeper(directory, Backend(psycopg2, orders, record), record, orders, listener).run()
    os._exit(0)


if __name__ == "__main__":
    main()
