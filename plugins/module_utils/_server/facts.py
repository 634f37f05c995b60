# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts about a server, read-only; a query that the role may not run leaves the other facts intact.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import (
    Connection,
    psycopg2,
    raw,
    readable,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.identifiers import identifier
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.owner import parent_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.process import run_by, server_process

# A cascade of standbys is followed this far up before a loop is assumed.
MAX_CASCADE = 8

BASICS = """
SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS in_recovery,
       s.system_identifier::text, s.pg_control_version, s.catalog_version_no AS catalog_version,
       i.bytes_per_wal_segment AS wal_segment_size, i.database_block_size AS block_size,
       i.data_page_checksum_version <> 0 AS data_checksums, c.timeline_id AS timeline,
       current_setting('wal_level') AS wal_level, current_setting('full_page_writes')::boolean AS full_page_writes,
       current_setting('archive_mode') AS archive_mode, current_setting('port')::int AS port,
       extract(epoch FROM pg_postmaster_start_time())::float8 AS started_at,
       pg_backend_pid() AS backend_pid, current_user AS role, current_database() AS database
FROM pg_control_system() s, pg_control_init() i, pg_control_checkpoint() c
"""

ARCHIVER = """
SELECT archived_count, last_archived_wal, last_archived_time::text, failed_count, last_failed_wal,
last_failed_time::text,
       coalesce(last_failed_time > last_archived_time, last_failed_time IS NOT NULL) AS failing
FROM pg_stat_archiver
"""

SLOTS = """
SELECT current_setting('max_replication_slots')::int AS max, (SELECT count(*) FROM pg_replication_slots)::int AS used,
       coalesce((SELECT setting::int FROM pg_settings WHERE name = 'idle_replication_slot_timeout'), 0) AS idle_timeout
"""

STANDBY = """
SELECT pg_last_wal_receive_lsn()::text AS receive_lsn, pg_last_wal_replay_lsn()::text AS replay_lsn,
       CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
            ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END::float8 AS
            replay_lag_seconds
"""

TABLESPACES = """
SELECT oid::bigint, spcname AS name, pg_tablespace_location(oid) AS location
FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid
"""


def _setting(connection: Connection, name: str) -> t.Optional[str]:
    """Return a setting, None when this role may not read it or the server does not have it."""
    try:
        value: t.Optional[str] = connection.value("SELECT current_setting(%s, true)", (name,))
        return value
    except BackupError as exc:
        if exc.details.get("sqlstate") == "42501":
            return None
        raise


def _allowed(connection: Connection, query: str, parameters: t.Sequence[t.Any] = ()) -> list[dict[str, t.Any]]:
    """Return the rows of ``query``, none when this role may not run it."""
    try:
        return connection.rows(query, parameters)
    except BackupError as exc:
        if exc.details.get("sqlstate") == "42501":
            return []
        raise


def backup_functions(major: int) -> tuple[str, str]:
    """Return the signatures of start and stop in this major version."""
    if major >= 15:
        return "pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"
    return "pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"


def privileges(connection: Connection) -> dict[str, bool]:
    """Return the rights of the login role, each checked separately."""
    start, stop = backup_functions(connection.major)
    functions = {
        "backup_start": start,
        "backup_stop": stop,
        "switch_wal": "pg_switch_wal()",
        "ls_waldir": "pg_ls_waldir()",
        "ls_archive_statusdir": "pg_ls_archive_statusdir()",
    }
    answer = {
        name: bool(connection.value("SELECT has_function_privilege(current_user, %s, 'EXECUTE')", (signature,)))
        for name, signature in functions.items()
    }
    answer["replication"] = bool(
        connection.value("SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user")
    )
    for name in ("pg_read_all_settings", "pg_monitor"):
        answer[name] = bool(connection.value("SELECT pg_has_role(current_user, %s, 'USAGE')", (name,)))
    return answer


def upstream(connection: Connection) -> dict[str, t.Any]:
    """Return ``host``, ``port`` and ``status`` of a standby's upstream; unknown parts are None. Never its password."""
    found = _allowed(connection, "SELECT status, sender_host, sender_port FROM pg_stat_wal_receiver")
    answer: dict[str, t.Any] = {"host": None, "port": None, "status": found[0]["status"] if found else None}
    if found and found[0]["sender_host"]:
        answer.update(host=readable(found[0]["sender_host"]), port=found[0]["sender_port"])
        return answer
    conninfo = _setting(connection, "primary_conninfo")
    if conninfo:
        try:
            parts = psycopg2.extensions.parse_dsn(readable(conninfo))
        except psycopg2.Error:
            return answer
        # It may name several hosts; only pg_stat_wal_receiver has the one in use.
        host = (parts.get("host") or parts.get("hostaddr") or "").split(",")[0]
        port = (parts.get("port") or "5432").split(",")[0]
        answer.update(host=host or None, port=int(port) if port.isdigit() else 5432)
    return answer


def _outside_config_files(connection: Connection, data_directory: t.Optional[str]) -> list[str]:
    if data_directory is None:
        return []
    root = os.path.realpath(data_directory) + "/"
    names = {_setting(connection, name) for name in ("config_file", "hba_file", "ident_file")}
    names |= {row["sourcefile"] for row in connection.rows("SELECT DISTINCT sourcefile FROM pg_settings")}
    paths = {os.fsdecode(raw(name)) for name in names if name}
    return sorted(path for path in paths if not os.path.realpath(path).startswith(root))


def _run_by(backend_pid: int, directory: t.Optional[str]) -> t.Optional[dict[str, t.Any]]:
    """Return who runs the server and with what, None unless it runs on this host and may be examined."""
    if directory is None:
        return None
    try:
        process = server_process(directory)
    except BackupError:
        return None
    # Another host may have a server on a directory of this name.
    return run_by(process) if process is not None and parent_of(backend_pid) == process.pid else None


def _tablespaces(connection: Connection, measure: bool) -> list[dict[str, t.Any]]:
    answer = []
    for row in connection.rows(TABLESPACES):
        size = _allowed(connection, "SELECT pg_tablespace_size(%s::oid) AS size", (row["oid"],)) if measure else []
        location = raw(row["location"] or "")
        answer.append(
            {
                "oid": row["oid"],
                "name": readable(row["name"]),
                "location": os.fsdecode(location),
                # An in-place tablespace is a directory in the data directory; its location is relative.
                "in_place": not location.startswith(b"/"),
                "size": size[0]["size"] if size else None,
            }
        )
    return answer


def server_info(connection: Connection) -> dict[str, t.Any]:
    """Return the facts about a server that the documentation of ``server_info`` lists."""
    basics = connection.row(BASICS)
    rights = privileges(connection)
    data_directory = _setting(connection, "data_directory")
    directory = None if data_directory is None else os.fsdecode(raw(data_directory))
    sizes = rights["pg_monitor"]
    total = (
        _allowed(connection, "SELECT sum(pg_tablespace_size(oid))::bigint AS size FROM pg_tablespace") if sizes else []
    )
    command = _setting(connection, "archive_command")
    archiver = connection.row(ARCHIVER)
    info: dict[str, t.Any] = {
        "address": connection.address,
        "version": basics["version"],
        "version_num": connection.version,
        "major": connection.major,
        "role": "standby" if basics["in_recovery"] else "primary",
        "login_role": identifier(readable(basics["role"])),
        "login_db": identifier(readable(basics["database"])),
        "pooling_proxy": basics["backend_pid"] != connection.claimed_pid,
        "data_directory": directory,
        "stats_temp_directory": _setting(connection, "stats_temp_directory"),
        "tablespaces": _tablespaces(connection, sizes),
        "size": total[0]["size"] if total else None,
        "config_files_outside": _outside_config_files(connection, directory),
        "run_by": _run_by(basics["backend_pid"], directory),
        "archiving": {
            "mode": basics["archive_mode"],
            # (disabled) is what the server shows while archive_mode is off.
            "command_set": command not in (None, "", "(disabled)"),
            "library": _setting(connection, "archive_library") or "",
            **archiver,
        },
        "replication_slots": connection.row(SLOTS),
        "privileges": rights,
        "standby": None,
    }
    for name in (
        "system_identifier",
        "timeline",
        "wal_segment_size",
        "block_size",
        "data_checksums",
        "catalog_version",
        "wal_level",
        "full_page_writes",
        "port",
        "started_at",
    ):
        info[name] = basics[name]
    if not basics["in_recovery"]:
        # The last checkpoint may be on the timeline before a promotion.
        info["timeline"] = int(connection.value("SELECT pg_walfile_name(pg_current_wal_lsn())")[:8], 16)
    else:
        standby = connection.row(STANDBY)
        source = upstream(connection)
        received = _allowed(connection, "SELECT received_tli FROM pg_stat_wal_receiver")
        if received and received[0]["received_tli"]:
            info["timeline"] = max(info["timeline"], received[0]["received_tli"])
        info["standby"] = {
            "upstream_host": source["host"],
            "upstream_port": source["port"],
            "receiver_status": source["status"],
            **standby,
        }
    return info


def find_primary(params: t.Mapping[str, t.Any], info: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Follow the upstreams from the standby ``info`` over libpq and return the primary's :func:`server_info`.

    Each server is asked with the same login arguments; the result has ``login_host`` and ``login_port`` of the primary.
    Raises :class:`BackupError` naming the last server that was reached.
    """
    current = info
    for _step in range(MAX_CASCADE):
        standby = current.get("standby") or {}
        host, port = standby.get("upstream_host"), standby.get("upstream_port")
        if not host:
            raise BackupError(
                f"The upstream of the standby at {current['address']} is unknown (no streaming connection,"
                f" or no right to see it).",
                code="primary_unknown",
            )
        login = dict(params, login_host=host, login_port=port, login_unix_socket=None)
        with Connection(login) as connection:
            current = server_info(connection)
        if current["system_identifier"] != info["system_identifier"]:
            raise BackupError(
                f"The upstream {host}:{port} is another cluster (system identifier {current['system_identifier']}).",
                code="other_cluster",
            )
        if current["role"] == "primary":
            return {**current, "login_host": host, "login_port": port}
    raise BackupError(
        f"No primary was found within {MAX_CASCADE} steps upstream of {info['address']}.", code="primary_unknown"
    )
