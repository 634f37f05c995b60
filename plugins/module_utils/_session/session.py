# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting the session process (``keeper.py``) and sending it requests.

Private to pgfleet.basebackup. Room ``_session``: the session process, starting and asking it; it knows no repository.
"""

from __future__ import annotations

import inspect
import json
import os
import select
import shlex
import socket
import subprocess
import sys
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import fields as _fields
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import new_directory
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.locks import is_locked
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trust import trusted_users
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import connection as _connection
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session import keeper as _keeper
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session.state import LARGEST, State, parse_state

ANSWER_SECONDS = 10.0
READY_SECONDS = 30.0

LOST: State = {
    "state": "failed",
    "code": "session_killed",
    "error": "The session process ended without recording a result: it was killed, or the host was restarted.",
    "sqlstate": None,
}


class Session:
    """The session of one unfinished backup; its folder is ``in_progress/<id>/session``."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def launch(self, orders: t.Mapping[str, t.Any]) -> None:
        """Start the session process; return when it listens, which is before the backup has started.

        ``orders`` are those of :mod:`_keeper`: ``connection`` (arguments of ``psycopg2.connect``), ``label``,
        ``fast``, ``from_standby``, ``system_identifier``, ``reserve_wal``, ``session_timeout`` and
        ``session_idle_timeout`` in seconds.
        """
        new_directory(self.directory)
        library = os.path.dirname(os.path.dirname(os.path.abspath(_connection.psycopg2.__file__)))
        # The password goes through the pipe; in the environment it would stay readable as long as the process.
        environment = {key: value for key, value in os.environ.items() if key != "PGPASSWORD"}
        # In memory: what lies in the repository is data, and is never run.
        script = os.memfd_create("keeper")
        try:
            os.write(script, inspect.getsource(_keeper).encode("utf-8"))
            # run_command waits until its pipes are closed, and this process outlives the module.
            process = subprocess.Popen(  # pylint: disable=ansible-bad-function
                [sys.executable, "-I", f"/proc/self/fd/{script}", self.directory],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd="/",
                pass_fds=(script,),
            )
        finally:
            os.close(script)
        try:
            output, errors = process.communicate(
                json.dumps({**orders, "psycopg2_path": library}).encode("ascii"), timeout=READY_SECONDS
            )
        except subprocess.TimeoutExpired:
            # Its detached child may still hold the pipes, so they are not read to their end.
            process.kill()
            output, errors = b"", f"It was not ready after {READY_SECONDS:.0f} s.".encode()
        try:
            answer = json.loads(output)
        except ValueError:
            answer = {"error": " ".join(errors.decode("utf-8", "replace").split()[-60:]) or "it reported no reason"}
        if not answer.get("ok"):
            raise BackupError(
                f"The session process could not be started: {answer.get('error')}",
                code="session_not_started",
                hint="The repository's file system must be able to hold a Unix socket and locks.",
            )

    def alive(self) -> bool:
        """Return whether the session process runs."""
        return is_locked(os.path.join(self.directory, "lock"))

    def recorded(self) -> State:
        """Return what the process has recorded, ``{}`` when it has recorded nothing.

        A record that cannot be read is the state ``failed`` with the code ``damaged_session``.
        """
        path = os.path.join(self.directory, "state.json")
        try:
            return parse_state(_fields.read_object(path, LARGEST, trusted_users(self.directory)))
        except FileNotFoundError:
            return {}
        except (OSError, _fields.Wrong) as exc:
            return {
                "state": "failed",
                "code": "damaged_session",
                "error": f"The record of the session, {path}, cannot be read: {exc}.",
                "sqlstate": None,
            }

    def _connect(self, seconds: float) -> socket.socket:
        folder = os.open(self.directory, os.O_RDONLY)
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            client.settimeout(seconds)
            # Through the descriptor: a socket's path is limited to about 100 bytes, a repository's is not.
            client.connect(f"/proc/self/fd/{folder}/socket")
        except OSError:
            client.close()
            raise
        finally:
            os.close(folder)
        return client

    def _final(self) -> State:
        content = self.recorded()
        if content.get("state") in _keeper.FINAL_STATES:
            return content
        lost = content.copy()
        lost.update(LOST)
        lost["failed_in"] = content.get("state")
        return lost

    def ask(self, action: str, renew: bool = True, seconds: float = ANSWER_SECONDS) -> State:
        """Send ``status``, ``stop``, ``release`` or ``abort`` and return the session's state.

        The state of a session that died before it was stopped is ``failed``.

        Raises :class:`BackupError` when a living session does not answer within ``seconds``.
        """
        deadline = time.monotonic() + seconds
        request = json.dumps({"do": action, "renew": renew}).encode("ascii") + b"\n"
        while True:
            try:
                with self._connect(seconds) as client:
                    client.sendall(request)
                    line = client.makefile("rb").readline(LARGEST)
                if line:
                    return parse_state(_fields.load_object(line))
            except socket.timeout as exc:
                raise self._silent(seconds) from exc
            except (OSError, _fields.Wrong):
                pass
            # No socket, or it was closed: the process has ended, is about to, or does not listen yet. Only its lock
            # decides: a living session must never pass for a dead one.
            if not self.alive():
                return self._final()
            if time.monotonic() >= deadline:
                raise self._silent(seconds)
            time.sleep(0.05)

    def _silent(self, seconds: float) -> BackupError:
        return BackupError(
            f"The session process of {self.directory} did not answer within {seconds:.0f} s.",
            code="session_silent",
            hint=f"Check the process: ps -ef | grep -F {shlex.quote(self.directory)}",
        )

    def wait_started(self) -> State:
        """Wait until the server is in backup mode, as long as the checkpoint takes. Raises :class:`BackupError`."""
        while True:
            state = self.ask("status")
            if state["state"] not in ("connecting", "starting"):
                break
            time.sleep(0.1)
        require_alive(state)
        return state

    def watch(self) -> Watch:
        """Return a :class:`Watch`, which renews the lease. Raises :class:`BackupError` when the session has ended."""
        try:
            client = self._connect(ANSWER_SECONDS)
            client.sendall(b'{"do": "watch", "renew": true}\n')
            stream = client.makefile("rb")
            state = parse_state(_fields.load_object(stream.readline(LARGEST)))
        except (OSError, _fields.Wrong) as exc:
            require_alive(self.ask("status"))
            raise self._silent(ANSWER_SECONDS) from exc
        require_alive(state)
        return Watch(self, client)


class Watch:
    """A connection to the session, which is closed when the session ends."""

    def __init__(self, session: Session, client: socket.socket) -> None:
        self._session = session
        self._client = client

    def check(self) -> None:
        """Raise :class:`BackupError` with the reason when the session has ended; cheap."""
        if select.select([self._client], [], [], 0)[0]:
            self._client.close()
            state = self._session.ask("status", renew=False)
            require_alive(state)
            raise BackupError("The session of the backup has ended.", code="session_over")

    def close(self) -> None:
        """Stop watching."""
        self._client.close()


def require_alive(state: State) -> None:
    """Raise :class:`BackupError` with the session's own reason unless ``state`` is that of a session in backup mode."""
    if state["state"] == "failed":
        sqlstate = f" (SQLSTATE {state['sqlstate']})" if state.get("sqlstate") else ""
        raise BackupError(
            f"The session that held the backup has ended and the backup is void: {state['error']}{sqlstate}",
            code=state.get("code") or "session_lost",
            hint=HINTS.get(state.get("code") or "", HINTS.get(state.get("sqlstate") or "", "Take a new backup.")),
            sqlstate=state.get("sqlstate"),
        )
    if state["state"] == "stopped":
        raise BackupError("The backup was stopped already.", code="already_stopped")


HINTS = {
    "connection_lost": "See the server's log: a restart, an administrator or the network ended it. Take a new backup.",
    "connection_lost_with_slot": "See the server's log: the server ends a session whose replication slot holds more WAL"
    " than max_slot_wal_keep_size, or longer than idle_replication_slot_timeout. It may also have been a restart, an"
    " administrator or the network. Take a new backup.",
    "pooling_proxy": f"Set {option('login_host')} and {option('login_port')} to the server itself.",
    "42501": "pgfleet.basebackup.server_info shows the GRANT that is missing.",
    "53400": "Raise max_replication_slots and restart, or drop an unused replication slot.",
    "session_timeout": f"Raise {option('session_timeout')} above the longest backup.",
    "session_idle_timeout": f"Raise {option('session_idle_timeout')} above your longest own step between"
    " start and stop.",
    "role_changed": "Run it again.",
}
