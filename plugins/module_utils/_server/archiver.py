# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The last WAL segment of a backup: finished on the primary, and archived.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.

Sources: PostgreSQL, "Making a Base Backup Using the Low Level API" and "Backup Control Functions"; the rule for
"archived" is that of the server's own ``XLogArchiveIsBusy`` (xlogarchive.c).
"""

from __future__ import annotations

import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import Connection
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.facts import ARCHIVER
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments

# Held on the primary from the check to the switch, so that the handlers of several standbys switch once.
SWITCH_LOCK = 0x7067666C656574  # "pgfleet"


def require_cluster(info: t.Mapping[str, t.Any], system_identifier: t.Optional[str]) -> None:
    """Raise :class:`BackupError` when the server belongs to another cluster than ``system_identifier``."""
    if system_identifier and info["system_identifier"] != system_identifier:
        raise BackupError(
            f"The server at {info['address']} has the system identifier {info['system_identifier']}, not"
            f" {system_identifier}.",
            code="other_cluster",
            hint="It is not the primary of the cluster that was backed up.",
        )


def switch_wal(
    connection: Connection, info: t.Mapping[str, t.Any], lsn: t.Optional[int], check_mode: bool
) -> dict[str, t.Any]:
    """Make sure that the segment which contains, or ends at, ``lsn`` is finished on this primary.

    Without ``lsn`` it is the current segment; a record is written to it first, so that there is one to finish.

    Returns ``changed``, ``msg``, ``segment`` and ``current_lsn``. Raises :class:`BackupError` on a standby, and when
    the server has not written WAL up to ``lsn``.
    """
    if info["role"] != "primary":
        raise BackupError(
            f"The server at {info['address']} is a standby; WAL can be switched on the primary only.",
            code="not_primary",
        )
    size = info["wal_segment_size"]
    connection.rows("SELECT pg_advisory_lock(%s)", (SWITCH_LOCK,))
    try:
        if lsn is None and not check_mode:
            # The server does not finish an empty segment.
            connection.rows("SELECT pg_logical_emit_message(false, 'pgfleet.basebackup', 'wal_switch')")
        current = _current(connection)
        lsn = current if lsn is None else lsn
        needed = _segments.last_segment_of(lsn, size)
        name = _segments.segment_name(info["timeline"], needed, size)
        answer = {"segment": name, "lsn": _segments.format_lsn(lsn), "changed": False}
        if lsn > current:
            raise BackupError(
                f"The server at {info['address']} has written WAL up to {_segments.format_lsn(current)} only;"
                f" {_segments.format_lsn(lsn)} is needed.",
                code="lsn_in_the_future",
                hint="It is not the primary that the standby follows, or it lost WAL in a crash.",
            )
        if _segments.segment_of(current, size) > needed:
            return {
                **answer,
                "current_lsn": _segments.format_lsn(current),
                "msg": f"The WAL segment {name} was already finished.",
            }
        if not check_mode:
            connection.rows("SELECT pg_switch_wal()")
            current = _current(connection)
    finally:
        connection.rows("SELECT pg_advisory_unlock(%s)", (SWITCH_LOCK,))
    if check_mode:
        return {
            **answer,
            "changed": True,
            "current_lsn": _segments.format_lsn(current),
            "msg": f"The WAL would be switched from {name}.",
        }
    if _segments.segment_of(current, size) <= needed:
        # Nothing was written after the last switch, so there was nothing to finish: no record in it lies before lsn.
        return {
            **answer,
            "current_lsn": _segments.format_lsn(current),
            "msg": f"Nothing was written to the WAL segment {name} yet; PostgreSQL did not switch.",
        }
    return {
        **answer,
        "changed": True,
        "current_lsn": _segments.format_lsn(current),
        "msg": f"The WAL was switched; {name} is finished.",
    }


def _current(connection: Connection) -> int:
    return _segments.parse_lsn(connection.value("SELECT pg_current_wal_insert_lsn()::text"))


def missing_on_server(connection: Connection, info: t.Mapping[str, t.Any], names: t.Sequence[str]) -> list[str]:
    """Return those of ``names`` that this server's archiver has not archived yet, in their order.

    Raises :class:`BackupError` when the server archives nothing, since a recycled segment would then pass for archived.
    It also raises for segments of an older timeline than the server's: the server received them as a standby, which
    marks them as done without archiving them, and the last one exists as ``.partial`` only.
    """
    if info["archiving"]["mode"] == "off":
        raise BackupError(
            f"archive_mode is off on {info['address']}, so the server does not know what is archived.",
            code="not_the_archiver",
            hint=f"Set {option('archive_directory')} or {option('restore_command')}, to read the archive itself.",
        )
    older = [
        name
        for name in names
        if _segments.is_segment_name(name)
        and _segments.parse_segment_name(name, info["wal_segment_size"])[0] < info["timeline"]
    ]
    if older:
        raise BackupError(
            f"The WAL file {older[0]} belongs to an older timeline than the server at {info['address']}"
            f" ({info['timeline']}), which does not know whether it was archived.",
            code="older_timeline",
            hint=f"Set {option('archive_directory')} or {option('restore_command')}, to read the archive itself.",
            missing=older,
        )
    unfinished = _unfinished(connection, info, names)
    status = _status(connection, names)
    open_names = [name for name in names if name not in unfinished and name + ".done" not in status]
    waiting = {name for name in open_names if name + ".ready" in status}
    # Neither done nor ready: archived since the first query, or recycled after that, or not begun.
    again = _status(connection, open_names)
    present = {
        row["name"] for row in connection.rows("SELECT name FROM pg_ls_waldir() WHERE name = ANY(%s)", (open_names,))
    }
    missing = {
        name
        for name in open_names
        if name + ".done" not in again and (name in waiting or name in present or name + ".ready" in again)
    }
    return [name for name in names if name in unfinished or name in missing]


def _status(connection: Connection, names: t.Sequence[str]) -> set[str]:
    wanted = [name + suffix for name in names for suffix in (".done", ".ready")]
    return {
        row["name"]
        for row in connection.rows("SELECT name FROM pg_ls_archive_statusdir() WHERE name = ANY(%s)", (wanted,))
    }


def _unfinished(connection: Connection, info: t.Mapping[str, t.Any], names: t.Sequence[str]) -> set[str]:
    """Return the files that this server has not finished; absent from every list, they would pass for archived."""
    if info["role"] == "primary":
        current = _current(connection)
    else:
        row = connection.row("SELECT pg_last_wal_receive_lsn()::text AS a, pg_last_wal_replay_lsn()::text AS b")
        current = max(_segments.parse_lsn(lsn) for lsn in (row["a"], row["b"], "0/0") if lsn)
    size = info["wal_segment_size"]
    found = set()
    for name in names:
        if _segments.is_segment_name(name):
            timeline, segment = _segments.parse_segment_name(name, size)
            if segment >= _segments.segment_of(current, size) or timeline > info["timeline"]:
                found.add(name)
        elif int(name[:8], 16) > info["timeline"]:
            found.add(name)
    return found


def archiver_report(connection: Connection) -> dict[str, t.Any]:
    """Return the archiver's last success and failure, with times, from ``pg_stat_archiver``."""
    return connection.row(ARCHIVER)


def archiver_words(address: str, report: t.Mapping[str, t.Any]) -> str:
    """Return an :func:`archiver_report` as the end of a sentence."""
    return (
        f"the archiver of {address} last succeeded with {report['last_archived_wal'] or 'nothing'}"
        f" at {report['last_archived_time'] or 'no time'} and last failed with {report['last_failed_wal'] or 'nothing'}"
        f" at {report['last_failed_time'] or 'no time'}."
    )


def archives_itself(info: t.Mapping[str, t.Any]) -> bool:
    """Return whether this server's own archiver is responsible for the WAL that its backups need.

    A standby with ``archive_mode=on`` marks streamed segments as done without archiving them; the primary archives.
    """
    return info["role"] == "primary" or info["archiving"]["mode"] == "always"
