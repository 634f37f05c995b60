# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof that a server archives: a segment is finished, archived, and fetched back.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.archiver import (
    archiver_report,
    archiver_words,
    missing_on_server,
    require_cluster,
    switch_wal,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.archiving import last_segment
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import Connection
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.facts import find_primary, server_info
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archived import missing_by_command, wait_archived

INTERVAL = 0.2


class Proof(t.NamedTuple):
    """What was proven by which file, "" for nothing; whether a segment was finished for it; the same as sentences."""

    segment: str
    switched: bool
    msg: str


def must_force(archiver: t.Mapping[str, t.Any]) -> bool:
    """Return whether nothing that the archiver has done is a proof, so that a new segment must be forced through."""
    return bool(archiver["failing"]) or not last_segment(archiver)


def prove(
    params: t.Mapping[str, t.Any],
    connection: Connection,
    info: t.Mapping[str, t.Any],
    command: str,
    *,
    force: bool,
    timeout: float,
    means: str,
) -> Proof:
    """Prove that the server ``info`` archives: by what it archived last, with ``force`` or in need by a new segment.

    ``params`` are the login arguments, with which a standby's primary is found. ``command``, a ``restore_command``,
    fetches the file back; without it the server's answer has to do. Raises :class:`BackupError`: ``wal_not_archived``
    after ``timeout`` seconds, ``not_fetched_back``; each after the switch has the detail ``changed``.
    """
    last = last_segment(info["archiving"])
    if not force and not must_force(info["archiving"]) and (not command or not _why_not_fetched(command, last, info)):
        return Proof(last, False, _proven(last, command))
    if info["role"] == "primary":
        segment = str(switch_wal(connection, info, None, False)["segment"])
    else:
        try:
            primary = find_primary(params, info)
        except BackupError as exc:
            unknown = "It is not proven: the primary, which must finish a segment, was not found."
            return Proof("", False, f"{unknown} {exc.as_result()['msg']}")
        login = dict(params, login_host=primary["login_host"], login_port=primary["login_port"], login_unix_socket=None)
        with Connection(login) as upstream:
            # Another connection than the one that found the primary: it may have reached another server.
            there = server_info(upstream)
            require_cluster(there, info["system_identifier"])
            segment = str(switch_wal(upstream, there, None, False)["segment"])
    try:
        _require_archived(connection, info, segment, command, timeout, means)
    except BackupError as exc:
        exc.details.setdefault("changed", True)
        raise
    return Proof(segment, True, _proven(segment, command))


def _require_archived(
    connection: Connection, info: t.Mapping[str, t.Any], segment: str, command: str, timeout: float, means: str
) -> None:
    """Wait until the finished ``segment`` is archived, and fetch it back with ``command`` if there is one."""
    missing = wait_archived(lambda names: missing_on_server(connection, info, names), [segment], timeout, INTERVAL)
    if missing:
        report = archiver_report(connection)
        raise BackupError(
            f"The WAL file {segment} was not archived within {timeout:g} s: {archiver_words(info['address'], report)}",
            code="wal_not_archived",
            hint=f"Check the server's log and the archive's free space. WAL is archived by {means}.",
            missing=missing,
            archiver=report,
        )
    reason = _why_not_fetched(command, segment, info) if command else ""
    if reason:
        raise BackupError(
            f"The WAL file {segment} was archived, but restore_command does not fetch it back: {reason}",
            code="not_fetched_back",
            hint=f"Run it by hand, with {segment} for %f and a new file for %p. WAL is archived by {means}.",
        )


def _proven(segment: str, command: str) -> str:
    if command:
        return f"{segment} was archived and fetched back by restore_command."
    return f"{segment} was archived, says the server; a restore_command would fetch it back to be sure."


def _why_not_fetched(command: str, name: str, info: t.Mapping[str, t.Any]) -> str:
    """Return why ``command`` does not fetch a whole file of this cluster, "" when it does."""
    try:
        missing = missing_by_command(command, [name], info["wal_segment_size"], int(info["system_identifier"]))
    except BackupError as exc:
        return exc.msg
    return f"{command} does not fetch it." if missing else ""


def wait_restarted(params: t.Mapping[str, t.Any], timeout: float) -> None:
    """Wait until the server, which is being restarted, runs with the configured archive_mode.

    Raises :class:`BackupError` after ``timeout`` seconds: ``connection_failed``, or ``restart_pending`` when the server
    that answers was not restarted.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            with Connection(params) as connection:
                pending = connection.value(
                    "SELECT count(*) FROM pg_settings WHERE name = 'archive_mode' AND pending_restart"
                )
                if not pending:
                    return
                failure = BackupError(
                    f"The server at {connection.address} was not restarted within {timeout:g} s.",
                    code="restart_pending",
                    hint="Restart it, then run this again.",
                )
        except BackupError as exc:
            if exc.code not in ("connection_failed", "query_failed"):
                raise
            failure = exc
        if time.monotonic() >= deadline:
            raise failure
        time.sleep(INTERVAL)
