# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A primary that removes WAL as early as it can, and a standby without a replication slot."""

from __future__ import annotations

import typing as t

from tests.harness.sandbox import Sandbox, slot_name
from tests.harness.servers import Server, wait_until

# A primary that removes WAL as early as it can: its segments have 1 MB.
TINY: t.Final[dict[str, t.Any]] = {
    "max_wal_size": "24MB",
    "min_wal_size": "2MB",
    "wal_keep_size": 0,
    "checkpoint_timeout": "30s",
    "checkpoint_completion_target": "0.9",
    # Until the next attempt of a standby the primary writes more than it keeps.
    "wal_retrieve_retry_interval": "8s",
}
PG1, PG2 = "pg1", "pg2"


def pair(sandbox: Sandbox, **settings: t.Any) -> tuple[Server, Server]:
    """Return a primary that removes WAL early, and a standby without a replication slot."""
    primary = sandbox.primary(name=PG1, archive=False, initdb=["--wal-segsize=1"], **{**TINY, **settings})
    standby = sandbox.standby(primary, name=PG2, **TINY)
    without_slot(standby)
    return primary, standby


def without_slot(standby: Server) -> None:
    """Make a standby stream without its slot."""
    assert standby.upstream is not None
    standby.sql("ALTER SYSTEM RESET primary_slot_name")
    standby.reload()
    receives = "SELECT 1 FROM pg_stat_wal_receiver WHERE slot_name IS NULL"
    wait_until(lambda: streams(standby) and standby.sql(receives), "it streams without a slot")
    standby.upstream.sql("SELECT pg_drop_replication_slot(%s)", [slot_name(standby.name)])


def streams(standby: Server) -> bool:
    """Return whether the primary calls the standby streaming."""
    assert standby.upstream is not None
    query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name = %s"
    return bool(standby.upstream.value(query, [standby.name]))


def slots(server: Server) -> list[str]:
    """Return the names of a server's replication slots."""
    return [name for (name,) in server.sql("SELECT slot_name FROM pg_replication_slots ORDER BY 1")]
