# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The progress of recovery, and waiting for its target.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.

Sources: PostgreSQL, "Recovery Information Functions", "Recovery Target" (recovery_target_action), "Hot Standby".
"""

from __future__ import annotations

import os
import struct
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.control import (
    SHUT_DOWN_IN_RECOVERY,
    read_control,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import identity, identity_of, same
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import Connection
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.log import log_tail, quoted_log
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.running import main_process
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import format_lsn

# A server that reports ready but refuses connections for this long never will accept one. A server that a service
# manager starts may take as long to appear.
GRACE = 5.0

# minRecoveryPointTLI in pg_control, right after minRecoveryPoint (pg_control.h).
_MIN_RECOVERY_TIMELINE_OFFSET = 144

QUESTION = """
SELECT r.in_recovery,
       CASE WHEN r.in_recovery THEN pg_get_wal_replay_pause_state() = 'paused' ELSE false END AS paused,
       current_setting('recovery_target_action') = 'pause'
       AND concat(current_setting('recovery_target'), current_setting('recovery_target_time'),
                  current_setting('recovery_target_lsn'), current_setting('recovery_target_xid'),
                  current_setting('recovery_target_name')) <> '' AS may_pause,
       pg_last_wal_replay_lsn()::text AS replay_lsn,
       to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
       AS last_transaction_at,
       CASE WHEN r.in_recovery THEN greatest(c.timeline_id, m.min_recovery_end_timeline)
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END AS timeline,
       pg_backend_pid() AS backend_pid, s.system_identifier::text, i.data_page_checksum_version <> 0 AS data_checksums
FROM pg_is_in_recovery() r(in_recovery), pg_control_checkpoint() c, pg_control_recovery() m, pg_control_system() s,
     pg_control_init() i
"""


def _refuse_other(backend_pid: int, data_directory: str) -> None:
    """Raise :class:`BackupError` when the server that answered is not the one that runs on ``data_directory``.

    The working directory of its processes is its data directory. Next to a live server a wrong port is an easy mistake.
    """
    try:
        here = same(identity_of(os.stat(f"/proc/{backend_pid}/cwd")), identity(data_directory))
    except PermissionError:
        # A process of another account, whose directory cannot be read.
        return
    except OSError:
        here = False
    if not here:
        raise BackupError(
            f"The server that answers is not the one on {data_directory}.",
            code="other_server",
            hint=f"Set {option('login_port')} and {option('login_unix_socket')}, or {option('login_host')},"
            " to the restored server.",
        )


def ask(params: t.Mapping[str, t.Any], data_directory: t.Optional[str] = None) -> dict[str, t.Any]:
    """Return the progress of recovery: the row of :data:`QUESTION`, with ``running`` and ``reached``.

    Raises :class:`BackupError` when the server does not answer, and ``other_server`` when another one does.
    """
    for attempt in (1, 2, 3):
        with Connection(params) as connection:
            try:
                row = connection.row(QUESTION)
                if data_directory:
                    # Its process ends with the connection.
                    _refuse_other(row["backend_pid"], data_directory)
                break
            except BackupError as exc:
                # Recovery ended between two function calls of the query.
                if exc.details.get("sqlstate") != "55000" or attempt == 3:
                    raise
    row["running"] = True
    del row["backend_pid"]
    if not row["in_recovery"]:
        row["reached"] = "promoted"
    elif row["paused"] and row["may_pause"]:
        row["reached"] = "paused"
    else:
        row["reached"] = "consistent"
    return row


def after_shutdown(data_directory: str) -> t.Optional[dict[str, t.Any]]:
    """Return what :func:`ask` would of a server that its recovery has shut down at the target; None if it did not.

    What has been replayed is minRecoveryPoint then: the shutdown wrote it.
    """
    control = read_control(os.path.join(os.fsencode(data_directory), b"global", b"pg_control"))
    if control.state != SHUT_DOWN_IN_RECOVERY:
        return None
    (timeline,) = struct.unpack_from("<I", control.raw, _MIN_RECOVERY_TIMELINE_OFFSET)
    return {
        "in_recovery": True,
        "paused": False,
        "replay_lsn": format_lsn(control.min_recovery_point),
        "last_transaction_at": None,
        "timeline": timeline,
        "system_identifier": str(control.system_identifier),
        "data_checksums": control.data_checksum_version != 0,
        "running": False,
        "reached": "shutdown",
    }


class Waiter:
    """Waits until a server has reached ``wait_for``: ``none`` (it answers), ``consistent`` or ``target``."""

    def __init__(
        self,
        params: t.Mapping[str, t.Any],
        data_directory: t.Optional[str],
        log_file: t.Optional[str],
        wait_for: str,
        timeout: float,
        interval: float,
    ) -> None:
        self.params = params
        self.data_directory = data_directory
        self.log_file = log_file
        self.wait_for = wait_for
        self.timeout = timeout
        self.interval = interval
        self._began = time.monotonic()
        self._seen = False
        self._ready_since: t.Optional[float] = None

    def wait(self) -> dict[str, t.Any]:
        """Return the last answer.

        Raises :class:`BackupError`: ``connection_failed``; ``server_gone`` with the end of the log; ``recovery_paused``
        when something other than the target paused replay; ``recovery_timeout``, after which recovery continues.
        """
        while True:
            answer, silence = None, None
            try:
                answer = ask(self.params, self.data_directory)
            except BackupError as exc:
                silence = exc
                answer = self._unanswered(exc)
            if answer is not None and self._is_there(answer):
                return answer
            if time.monotonic() > self._began + self.timeout:
                raise self._late(answer, silence)
            time.sleep(self.interval)

    def _is_there(self, answer: dict[str, t.Any]) -> bool:
        if self.wait_for == "none" or answer["reached"] in ("promoted", "paused", "shutdown"):
            return True
        if answer["paused"] and self.wait_for == "target":
            raise BackupError(
                f"Replay is paused at {answer['replay_lsn']}, but the recovery target was not reached.",
                code="recovery_paused",
                hint="Either max_connections or another parameter of PostgreSQL's chapter Hot Standby is lower than at"
                " the source (see the server's log), or pg_wal_replay_pause() was called.",
                **{name: answer[name] for name in ("replay_lsn", "last_transaction_at", "timeline")},
            )
        return self.wait_for == "consistent"

    def _unanswered(self, error: BackupError) -> t.Optional[dict[str, t.Any]]:
        """Judge a server that does not answer by its process; raise when waiting is pointless."""
        if error.code not in ("connection_failed", "query_failed"):
            raise error
        if self.data_directory is None:
            if self.wait_for == "none":
                raise error
            return None
        now = time.monotonic()
        process = main_process(self.data_directory)
        if process is None:
            answer = after_shutdown(self.data_directory)
            if answer is None and (self._seen or self.wait_for == "none" or now > self._began + GRACE):
                raise BackupError(
                    f"The server on {self.data_directory} is not running: {quoted_log(self.log_file)}",
                    code="server_gone",
                    log=log_tail(self.log_file),
                )
            return answer
        self._seen = True
        if process.status not in ("ready", "standby"):
            self._ready_since = None
        elif self._ready_since is None:
            self._ready_since = now
        if self.wait_for == "none" or (self._ready_since is not None and now > self._ready_since + GRACE):
            raise error
        return None

    def _late(self, answer: t.Optional[dict[str, t.Any]], silence: t.Optional[BackupError]) -> BackupError:
        if answer is None:
            where = silence.msg if silence else "it did not answer."
            facts = {}
        else:
            facts = {name: answer[name] for name in ("replay_lsn", "last_transaction_at", "timeline")}
            where = f"it has replayed to {facts['replay_lsn']}, transactions to {facts['last_transaction_at']}."
        goal = {"target": "its recovery target", "consistent": "a consistent state"}.get(self.wait_for, "an answer")
        return BackupError(
            f"The server has not reached {goal} within {self.timeout:g} s: {where}",
            code="recovery_timeout",
            hint=f"Recovery continues; check again later, or set a longer {option('timeout')}.",
            **facts,
        )
