# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fake psycopg2 that follows a test's script, and a session process that uses it."""

from __future__ import annotations

import json
import os
import pathlib
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._session.session import Session

from tests.unit.helpers.backups import IDENTIFIER
from tests.unit.helpers.processes import processes_with, wait_until

PASSWORD = "t0psecret"


# The driver's folder: `script` sets what happens, `log` records the queries, `wire` is the connection's descriptor.
PSYCOPG2 = """\
import json, os, time

class Error(Exception):
    pgcode = None

    def __init__(self, message, pgcode=None):
        super().__init__(message)
        self.pgcode = pgcode

class Info:
    backend_pid = 4711

ROWS = {
    "pg_backend_pid(), pg_is_in_recovery()": [4711, False],
    "pg_backend_pid()": [4711],
    "system_identifier": ["7710880042689923079"],
    "pg_tablespace_location": [16385, "extra", "/srv/caf\\xe9"],
    "timeline_id": [1],
    "backup_start": ["0/2000028"],
    "start_backup": ["0/2000028"],
    "backup_stop": ["0/2000120", "LABEL: caf\\xe9\\n", "16385 /srv/caf\\xe9\\n"],
    "stop_backup": ["0/2000120", "LABEL: caf\\xe9\\n", ""],
    "min_recovery_end_timeline": [0],
    "FROM pg_replication_slots": [True],
}

class Connection:
    def __init__(self, folder):
        self.folder = folder
        self.wire = os.open(folder + "/wire", os.O_RDWR | os.O_NONBLOCK)
        self.server_version = self.script.get("version", 180000)
        self.info = Info()
        self.notices = []
        self.closed = 0
        self.answers = []
        self.canceled = False

    @property
    def script(self):
        with open(self.folder + "/script") as stream:
            return json.load(stream)

    def fileno(self):
        return self.wire

    def poll(self):
        said = os.read(self.wire, 64)
        if said != b"notice":
            self.notices = self.script.get("farewell", [])
            raise Error("server closed the connection unexpectedly")

    def cursor(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def execute(self, query, parameters=None):
        with open(self.folder + "/log", "a") as log:
            log.write(json.dumps([query, parameters]) + "\\n")
        self.answers = next((row for name, row in ROWS.items() if name in query), [""])
        for name, what, *more in self.script.get("on", []):
            if name in query:
                getattr(self, what)(*more)

    def rows(self, row):
        self.answers = row

    def fails(self, message, pgcode=None):
        raise Error(message, pgcode)

    def blocks(self):
        while not os.path.exists(self.folder + "/go"):
            if self.canceled:
                raise Error("canceling statement due to user request", "57014")
            time.sleep(0.01)

    def ignores_cancel(self):
        while not os.path.exists(self.folder + "/go"):
            time.sleep(0.01)

    @property
    def description(self):
        return self.answers

    def fetchall(self):
        return [tuple(self.answers)]

    def cancel(self):
        self.canceled = True
        with open(self.folder + "/canceled", "w"):
            pass

    def close(self):
        self.closed = 1

def connect(**arguments):
    with open(arguments["folder"] + "/arguments", "w") as stream:
        json.dump(arguments, stream)
    connection = Connection(arguments["folder"])
    for what, *more in connection.script.get("connect", []):
        getattr(connection, what)(*more)
    return connection
"""


class Case:
    """One session process with its fake server."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.server = folder / "server"
        self.server.mkdir()
        os.mkfifo(self.server / "wire")
        self.session = Session(str(folder / "session"))

    def script(self, *on: list[t.Any], **script: t.Any) -> None:
        """Set what happens; each item of ``on`` is a part of a query, the action it triggers, and its arguments."""
        (self.server / "script.new").write_text(json.dumps({"on": on, **script}))
        os.rename(self.server / "script.new", self.server / "script")

    def launch(self, *on: list[t.Any], orders: dict[str, t.Any] | None = None, **script: t.Any) -> Session:
        """Start the session process with this :meth:`script` and these changes to its orders."""
        self.script(*on, **script)
        self.session.launch(
            {
                "connection": {"folder": str(self.server), "password": PASSWORD},
                "label": "nightly",
                "fast": True,
                "from_standby": False,
                "system_identifier": IDENTIFIER,
                "session_timeout": 60,
                "session_idle_timeout": 60,
                **(orders or {}),
            }
        )
        return self.session

    def go(self) -> None:
        """Let a blocking query end."""
        (self.server / "go").touch()

    def wire(self, said: bytes) -> None:
        """Make the connection readable."""
        handle = os.open(self.server / "wire", os.O_RDWR | os.O_NONBLOCK)
        os.write(handle, said)
        # Kept open until it is read: closing the last descriptor would discard the data.
        wait_until(lambda: not self.session.alive() or said == b"notice", "the end of the session")
        os.close(handle)

    def log(self) -> list[list[t.Any]]:
        """Return the queries that the server received."""
        return [json.loads(line) for line in (self.server / "log").read_text().splitlines()]

    def was_asked(self, what: str) -> bool:
        """Whether a query with ``what`` in it, or ``connect``, has reached the server."""
        if what == "connect":
            return (self.server / "arguments").exists()
        return (self.server / "log").exists() and any(what in query for query, _parameters in self.log())

    def ended(self) -> dict[str, t.Any]:
        """Wait for the end of the process and return its final record."""
        wait_until(lambda: not self.session.alive(), "the end of the session")
        wait_until(lambda: not processes_with(str(self.folder)), "the end of the process")
        assert not os.path.exists(self.folder / "session" / "socket")
        return self.session.ask("status")

    def in_state(self, state: str) -> None:
        """Wait until the session reports this state."""
        wait_until(lambda: self.session.ask("status", renew=False)["state"] == state, state)
