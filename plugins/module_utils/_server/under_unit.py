# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a unit that was started has brought up the server that was meant.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import os
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.control import (
    SHUT_DOWN_IN_RECOVERY,
    read_control,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.launch import READY
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.log import collector_log, log_tail, quoted_log
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.process import ServerProcess, server_process
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.running import find_server
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.units import full_name, unit_of

# A unit that has a main process shows its server within this time.
_APPEARS = 15.0


def check_unit(data_directory: str, unit: str, ready: bool, timeout: float) -> t.Optional[ServerProcess]:
    """Return the server of ``data_directory`` that runs under ``unit``, None when it ended at its recovery target.

    With ``ready`` it must accept connections within ``timeout`` seconds. Raises :class:`BackupError`: ``start_failed``,
    ``start_timeout``, ``other_directory`` when the unit runs another server, ``wrong_unit`` when another unit or nobody
    runs this one.
    """
    name = full_name(unit)
    appears = time.monotonic() + _APPEARS
    deadline = time.monotonic() + timeout
    while True:
        process = server_process(data_directory)
        if process is None:
            found = unit_of(name)
            # A standby that was shut down and is starting again looks the same in pg_control.
            if not ready and (found is None or not found.main_pid) and _shut_down_at_target(data_directory):
                return None
            if time.monotonic() > appears:
                raise _absent(data_directory, name)
        elif process.owner.unit != name:
            raise BackupError(
                f"The server on {data_directory} (process {process.pid}) does not run under the unit {name}.",
                code="wrong_unit",
                hint=f"Compare: systemctl status {process.pid}, systemctl status {name}.",
            )
        elif not ready or _is_ready(data_directory):
            return process
        elif time.monotonic() > deadline:
            raise BackupError(
                f"The server on {data_directory} was restarted and does not accept connections within {timeout:g} s.",
                code="start_timeout",
                hint="It may still be recovering: see its log, or wait longer.",
                log=log_tail(process.log_file),
            )
        time.sleep(0.1)


def _is_ready(data_directory: str) -> bool:
    found = find_server(data_directory)
    return found is not None and found.is_main and found.status in READY


def _shut_down_at_target(data_directory: str) -> bool:
    control = read_control(os.path.join(os.fsencode(data_directory), b"global", b"pg_control"))
    return control.state == SHUT_DOWN_IN_RECOVERY


def _absent(data_directory: str, name: str) -> BackupError:
    unit = unit_of(name)
    if unit is not None and unit.main_pid:
        return BackupError(
            f"The unit {name} runs process {unit.main_pid}, which is not the server of {data_directory}.",
            code="other_directory",
            hint=f"Read its definition: systemctl cat {name}.",
        )
    log = collector_log(data_directory)
    return BackupError(
        f"The server on {data_directory} does not start under the unit {name}: {quoted_log(log)}",
        code="start_failed",
        hint=f"Read its journal: journalctl -u {name} -e.",
        log=log_tail(log),
    )
