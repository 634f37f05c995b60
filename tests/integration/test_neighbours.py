# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other clusters on the host: no backup, archive, restore or restart reaches what belongs to them."""

from __future__ import annotations

import os
import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import owner as _owner
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.process import server_process
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.way import way_of

from tests.harness.modules import Modules
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.harness.user import own_directory, run
from tests.integration.helpers.source import Source


def beside(sandbox: Sandbox, major: int) -> tuple[Server, pathlib.Path]:
    """Start another server and return it with the location of its tablespace."""
    server = sandbox.primary(major, name="neighbour", archive=False, tablespaces=["precious"])
    return server, server.directory / "tablespaces" / "precious"


@pytest.mark.parametrize("runs", [True, False])
def test_backups_in_a_data_directory(sandbox: Sandbox, primary: Server, major: int, runs: bool) -> None:
    """Repository and name of the cluster together are the data directory of another server."""
    other, _space = beside(sandbox, major)
    if not runs:
        other.stop()
    modules = Modules(primary, as_server=True, repository=str(other.directory), cluster=other.data.name)
    names = set(os.listdir(other.data))
    assert [one["code"] for one in modules.ok("server_info")["problems"]] == ["repository_inside_cluster"]
    assert modules.run("backup_start", backup_id="b1")["code"] == "repository_inside_cluster"
    assert set(os.listdir(other.data)) == names


@pytest.mark.parametrize("place", ["data/pg_wal", "data/wal", "tablespaces/precious/wal"])
def test_archive_in_another_cluster(
    sandbox: Sandbox, primary: Server, repository: pathlib.Path, major: int, place: str
) -> None:
    """A segment that is archived into the WAL of another server would replace one of its own."""
    other, _space = beside(sandbox, major)
    modules = Modules(primary, as_server=True, repository=str(repository), cluster="main")
    options = {"directory": str(other.directory / place), "script_directory": str(sandbox.root / "scripts")}
    for method in ("script", "basic_archive"):
        answer = modules.run("wal_archiving", method=method, **options)
        assert answer["code"] == "archive_inside_cluster", answer
    assert not primary.value("SELECT count(*)::int FROM pg_file_settings WHERE sourcefile LIKE '%auto.conf'")


def test_tablespace_of_a_cluster_that_does_not_run(sandbox: Sandbox, major: int) -> None:
    """Without a data directory nothing says whose files these are, so a mapping does not overwrite them."""
    source = Source(sandbox, major, tablespaces=["extra"])
    source.backup()
    oid = source.server.value("SELECT oid::text FROM pg_tablespace WHERE spcname = 'extra'")
    other, space = beside(sandbox, major)
    other.stop()
    source.refused(source.place(), "tablespace_not_empty", tablespace_mapping={oid: str(space)}, delta=True)
    other.start()
    assert other.value("SELECT count(*) FROM in_precious") == 1000


def test_tablespace_made_after_the_backup(sandbox: Sandbox, major: int) -> None:
    """The source had it on another host, in a directory of the same name as that of a live server of this one."""
    source = Source(sandbox, major)
    source.backup()
    other, space = beside(sandbox, major)
    other.stop()
    away = space.with_name("away")
    run(["mv", space, away])
    own_directory(space)
    source.server.sql(f"CREATE TABLESPACE late LOCATION '{space}'")
    source.server.sql("CREATE TABLE numbers TABLESPACE late AS SELECT generate_series(1, 1000)")
    source.archived()
    source.server.stop()
    run(["rm", "-rf", space, source.server.data])
    run(["mv", away, space])
    other.start()
    answer = source.refused(source.place(), "tablespace_created_later")
    assert str(space) in answer["msg"]
    assert str(other.data) in answer["msg"]
    source.restored(source.place("early"), check=True, recovery_target="immediate")


def test_a_unit_of_several_servers(sandbox: Sandbox, major: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that starts all servers of a host by a script would stop them all."""
    one = sandbox.primary(major, archive=False)
    process = server_process(str(one.data))
    assert process is not None
    process = process._replace(owner=_owner.Owner("systemd", "servers.service"))
    monkeypatch.setattr(_owner, "_units_of", lambda _pid: ("servers.service", ""))
    other, _space = beside(sandbox, major)
    for state in ("stopped", "restarted"):
        with pytest.raises(BackupError) as caught:
            way_of(str(one.data), process, state, "", {})
        assert caught.value.code == "managed_server"
    monkeypatch.setattr(_owner, "_units_of", lambda pid: ("servers.service" if pid == process.pid else "", ""))
    assert way_of(str(one.data), process, "stopped", "", {}).unit == "servers.service"
    assert other.running


def test_archiving_of_another_host(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """The login leads to another host, where the data directory has the name of that of a server here."""
    local = sandbox.primary(major, name="local", archive=False)
    remote = sandbox.primary(major, name="remote", archive=False)
    away = remote.data.with_name("away")
    run(["mv", remote.data, away])
    run(["cp", "-a", local.data, remote.data])
    modules = Modules(remote, as_server=True, repository=str(repository), cluster="main")
    answer = modules.run("wal_archiving", method="script", script_directory=str(sandbox.root / "scripts"))
    assert answer["code"] == "data_directory_of_another_server", answer
    run(["rm", "-rf", remote.data])
    run(["mv", away, remote.data])
    assert not remote.value("SELECT count(*)::int FROM pg_file_settings WHERE sourcefile LIKE '%auto.conf'")
