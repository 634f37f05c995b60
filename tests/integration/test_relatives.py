# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which live servers are connected with a data directory."""

from __future__ import annotations

import contextlib
import typing as t

import pytest

from tests.harness.modules import Modules, Result
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import popen

pytestmark = pytest.mark.majors(14, 18)


def relatives(server: Server, **login: t.Any) -> Result:
    """Ask the module, as the server user."""
    return Modules(server, as_server=True, **login).ok("live_relatives", data_directory=str(server.data))


def test_a_primary_and_its_standby(sandbox: Sandbox, major: int) -> None:
    """The primary names its standby, the standby its upstream, also while it is down or has no login."""
    primary = sandbox.primary(major)
    standby = sandbox.standby(primary, name="pg2")
    found = relatives(primary)
    ((name, address, lsn),) = [tuple(one.values()) for one in found["standbys"]]
    assert (name, address, found["upstream"]) == ("pg2", "127.0.0.1", None)
    assert primary.value("SELECT %s::pg_lsn <= pg_current_wal_lsn()", [lsn])
    by_titles = relatives(primary, login_user="nobody_there")
    assert [(one["name"], one["address"]) for one in by_titles["standbys"]] == [("postgres", "127.0.0.1")]
    for _state in ("up", "down"):
        upstream = relatives(standby)["upstream"]
        assert upstream["address"] == f"127.0.0.1:{primary.port}"
        assert upstream["system_identifier"] == primary.system_identifier
        assert primary.value("SELECT %s::pg_lsn <= pg_current_wal_lsn()", [upstream["lsn"]])
        standby.stop()
    primary.stop()
    assert relatives(standby)["upstream"] is None
    assert relatives(primary)["standbys"] == []


def test_who_is_no_standby(sandbox: Sandbox, major: int) -> None:
    """A receiver of WAL and a subscriber replay nothing of the cluster's own."""
    primary = sandbox.primary(major, archive=False, wal_level="logical")
    primary.sql("SELECT pg_create_physical_replication_slot('for_receiver')")
    primary.sql("SELECT pg_create_logical_replication_slot('for_subscriber', 'pgoutput')")
    primary.sql("CREATE PUBLICATION everything FOR ALL TABLES")
    place = sandbox.directory("received")
    program = primary.tool("pg_receivewal", "--version").args[0]
    logical = primary.tool("pg_recvlogical", "--version").args[0]
    commands = [
        [program, "-D", place, "-S", "for_receiver"],
        [logical, "--start", "-S", "for_subscriber", "-d", "postgres", "-f", "/dev/null",
         "-o", "proto_version=1", "-o", "publication_names=everything"],
    ]  # fmt: skip
    with contextlib.ExitStack() as running:
        for command in commands:
            process = popen(command, env=primary.env)
            running.callback(process.wait)
            running.callback(process.kill)
        wait_until(
            lambda: primary.value("SELECT count(*) = 2 FROM pg_stat_replication WHERE state = 'streaming'"), "both run"
        )
        assert relatives(primary)["standbys"] == []
