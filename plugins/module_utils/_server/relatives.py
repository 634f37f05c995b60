# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The live servers that are connected with a data directory: the standbys that stream from it, and its own upstream.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import os
import re
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.conf import AUTO_CONF, read_settings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import (
    Connection,
    psycopg2,
    readable,
    require_psycopg2,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.process import server_process
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.running import main_process

try:
    from psycopg2.extras import PhysicalReplicationConnection
except ImportError:
    # require_psycopg2 says so, on the database host.
    PhysicalReplicationConnection = None  # type: ignore[assignment,misc]  # psycopg2 is detected at run time

# A base backup and pg_receivewal replay nothing; a subscriber has a logical slot.
_STANDBYS = """
SELECT s.application_name AS name, host(s.client_addr) AS address, s.replay_lsn::text AS lsn
FROM pg_stat_replication s
WHERE s.state IN ('catchup', 'streaming') AND s.replay_lsn IS NOT NULL
  AND NOT EXISTS (SELECT FROM pg_replication_slots l WHERE l.active_pid = s.pid AND l.slot_type = 'logical')
ORDER BY 1, 2
"""
_MAY_SEE = "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"
# The title of a walsender's process: its role, its client and what it does. It names no LSN before it has sent WAL, and
# does not say what it does where update_process_title is off.
_DOES = r"(?: streaming ([0-9A-F]+/[0-9A-F]+)| START_REPLICATION)?"
_TITLE = re.compile(r"postgres: (?:.*: )?walsender (\S+) (\S+?)(?:\(\d+\))?" + _DOES + r"\Z")
_UPSTREAM_SECONDS = 5


class Relative(t.NamedTuple):
    """A live server: ``name`` is its application name, else its replication role; ``address`` "" for a local socket.

    ``lsn`` is "" when it is not known.
    """

    name: str
    address: str
    lsn: str


class Upstream(t.NamedTuple):
    """The live server that a standby follows."""

    address: str
    system_identifier: str
    timeline: int
    lsn: str


def standbys_of(data_directory: str, params: t.Mapping[str, t.Any]) -> list[Relative]:
    """Return the standbys that stream from the running server of ``data_directory``.

    The server is asked with the login arguments ``params``; where that is not possible the titles of its processes say
    it, which cannot distinguish a standby from ``pg_receivewal`` and a subscriber.
    """
    server = main_process(data_directory)
    if server is None:
        return []
    try:
        with Connection(params) as connection:
            place = connection.row("SELECT current_setting('data_directory', true) AS place")["place"]
            if connection.value(_MAY_SEE) and place and os.path.realpath(place) == os.path.realpath(data_directory):
                rows = connection.rows(_STANDBYS)
                return [Relative(readable(row["name"]), row["address"] or "", row["lsn"]) for row in rows]
    except BackupError:
        pass
    return _by_titles(server.pid)


def _by_titles(server: int) -> list[Relative]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
                parent = int(stream.read().rpartition(")")[2].split()[1])
            if parent != server:
                continue
            with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as stream:
                title = _TITLE.match(stream.read().rstrip("\0 "))
        except OSError:
            continue
        if title:
            address = "" if title.group(2) == "[local]" else title.group(2)
            found.append(Relative(title.group(1), address, title.group(3) or ""))
    return sorted(found)


def upstream_of(data_directory: str) -> t.Optional[Upstream]:
    """Return the live upstream of the standby in ``data_directory``, which need not run; None when there is none.

    It is reached as the standby itself reaches it, by ``primary_conninfo``.
    """
    if not os.path.lexists(os.path.join(data_directory, "standby.signal")):
        return None
    conninfo = _conninfo(data_directory)
    if not conninfo:
        return None
    require_psycopg2()
    connection = None
    try:
        parts = psycopg2.extensions.parse_dsn(conninfo)
        parts.pop("dbname", None)
        parts.update(connect_timeout=str(_UPSTREAM_SECONDS), application_name="pgfleet.basebackup")
        connection = psycopg2.connect(connection_factory=PhysicalReplicationConnection, **parts)
        with connection.cursor() as cursor:
            cursor.execute("IDENTIFY_SYSTEM")
            identifier, timeline, lsn = cursor.fetchone()[:3]
    except psycopg2.Error:
        return None
    finally:
        if connection is not None:
            connection.close()
    address = f"{parts.get('host') or parts.get('hostaddr') or 'the local socket'}:{parts.get('port') or 5432}"
    return Upstream(address, str(identifier), int(timeline), str(lsn))


def _conninfo(data_directory: str) -> str:
    process = server_process(data_directory)
    own = os.path.join(data_directory, "postgresql.conf")
    for config in (process.config_file if process else own, os.path.join(data_directory, AUTO_CONF)):
        try:
            found = read_settings(config, data_directory).get("primary_conninfo")
        except BackupError:
            continue
        if found:
            return found
    return ""
