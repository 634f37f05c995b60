# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The harness by its own use: what it calls a good backup is one that pg_basebackup made."""

from __future__ import annotations

import pathlib

import pytest

from tests.harness import binaries
from tests.harness.checks import data_checksum, restore_and_check
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.harness.user import own_directory


@pytest.mark.majors(*binaries.MAJORS)
def test_pg_basebackup_of_a_standby_restores(
    sandbox: Sandbox, primary: Server, standby: Server, repository: pathlib.Path, major: int
) -> None:
    """A backup in the layout of a published one is verified, restored next to its live source and compared."""
    primary.pgbench_init()
    standby.catch_up()
    backup = own_directory(repository / "one")
    ((oid, location),) = standby.sql(
        "SELECT oid, pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'extra'"
    )
    own_directory(backup / "tablespaces")
    standby.tool("pg_basebackup", "-D", backup / "data", "-c", "fast", "-X", "none", "--no-sync",
                 "-T", f"{location}={backup}/tablespaces/{oid}")  # fmt: skip
    primary.switch_wal()
    expected = data_checksum(primary)

    def compare(restored: Server) -> None:
        assert data_checksum(restored) == expected
        assert restored.value("SELECT pg_tablespace_location(%s)", [oid]).startswith(str(restored.directory))

    restore_and_check(sandbox, backup, primary.archive, major, compare, verify_wal=False)
    assert data_checksum(primary) == expected
