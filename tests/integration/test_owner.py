# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who runs a real server, and with what, as /proc shows it."""

from __future__ import annotations

import json
import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import owner as _owner
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import process as _process

from tests.harness.modules import Modules
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.harness.user import server_user


@pytest.fixture
def server(sandbox: Sandbox, major: int) -> Server:
    """A server that pg_ctl started."""
    return sandbox.primary(major, archive=False)


def facts(server: Server) -> _process.ServerProcess:
    """Return the process of a server that runs."""
    found = _process.server_process(str(server.data))
    assert found is not None
    return found


def test_by_hand(server: Server) -> None:
    found = facts(server)
    assert found.owner == _owner.Owner("none", "", "", None)
    for name in ("data_directory", "config_file", "hba_file", "ident_file"):
        assert getattr(found, name) == server.value(f"SHOW {name}")
    assert found.port == server.value("SELECT current_setting('port')::int")
    assert found.external_pid_file == ""
    assert [*found.socket_directories] == server.value("SHOW unix_socket_directories").split(", ")
    assert pathlib.Path(found.bin_directory, "pg_ctl").exists()
    assert (found.log_file, found.os_user) == (str(server.log_file), server_user().name)
    server.stop()
    assert _process.server_process(str(server.data)) is None


def test_it_is_recorded_in_the_backup(sandbox: Sandbox, server: Server) -> None:
    """The restore of a host that was lost knows who ran the server, and with what."""
    modules = Modules(server, as_server=True, repository=str(sandbox.directory("backups")), cluster="main")
    found = modules.ok("server_info", external_archive=True)["run_by"]
    assert (found["kind"], found["main_pid"]) == ("none", server.pid)
    done = modules.ok("backup_start", wal="none", backup_id="b1")
    record = json.loads((pathlib.Path(done["directory"]) / "backup.json").read_text())
    recorded = record["server"]["run_by"]
    assert recorded == {name: found[name] for name in recorded}
    assert recorded["config_file"] == server.value("SHOW config_file")
    modules.ok("backup_abort", backup_id="b1")
