# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a program manages a server's configuration, so that ALTER SYSTEM must leave it alone.

Such a program has its own record of the parameters, and copies of ``postgresql.auto.conf`` reach other nodes when it
rebuilds them.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import os
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.conf import AUTO_CONF
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import Connection
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.owner import PATRONI, owner_of

PATRONI_FILE = "patroni.dynamic.json"
# Supervisors that keep the configuration, too.
MANAGERS = {"patroni": "Patroni", "stolon-keeper": "Stolon", "pg_autoctl": "pg_auto_failover"}


def manager_of(connection: Connection) -> str:
    """Return what manages the configuration of a server, for a message, "" when nothing is known to do so.

    Patroni is seen by its file in the data directory, even while it is paused or stopped. The rest can be seen only
    on the server's own host.
    """
    try:
        if connection.value("SELECT (pg_stat_file(%s, true)).size IS NOT NULL", (PATRONI_FILE,)):
            return f"Patroni ({PATRONI_FILE} is in the data directory)"
    except BackupError as exc:
        if exc.details.get("sqlstate") != "42501":
            raise
    backend = f"/proc/{connection.claimed_pid}"
    try:
        if not os.path.exists(f"{backend}/cwd/{AUTO_CONF}"):
            return ""
        with open(f"{backend}/stat", encoding="utf-8", errors="replace") as stream:
            parent = int(stream.read().rpartition(")")[2].split()[1])
        owner = owner_of(parent)
        found = os.lstat(f"{backend}/cwd/{AUTO_CONF}")
    except OSError:
        return ""
    if owner.kind == PATRONI or owner.program in MANAGERS:
        return f"{MANAGERS.get(owner.program, owner.program)} (process {owner.pid})"
    if stat.S_ISLNK(found.st_mode):
        return f"a program that has made {AUTO_CONF} a link"
    if not found.st_mode & stat.S_IWUSR:
        return f"a program that has made {AUTO_CONF} read-only"
    return ""


def require_unmanaged(connection: Connection, wanted: t.Mapping[str, str]) -> None:
    """Raise :class:`BackupError`, code ``config_managed``, when ALTER SYSTEM must not set the ``wanted`` values."""
    manager = manager_of(connection) if wanted else ""
    if not manager:
        return
    values = ", ".join(f"{name}: {value!r}" for name, value in wanted.items())
    commands = (
        "patronictl edit-config (below postgresql: parameters:), then patronictl restart for each node"
        if manager.startswith("Patroni")
        else "its own commands"
    )
    raise BackupError(
        f"The configuration of the server at {connection.address} is managed by {manager}; ALTER SYSTEM is not used.",
        code="config_managed",
        hint=f"Set the parameters by {commands}: {values}. Then run this again; it checks what is set.",
    )
