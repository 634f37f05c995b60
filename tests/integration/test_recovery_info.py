# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for recovery: each way it can end, a server that dies, and starting and stopping the right server."""

from __future__ import annotations

import datetime
import pathlib
import shutil
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import recovery as _recovery

from tests.harness import binaries
from tests.harness.checks import restore
from tests.harness.modules import Result, run_module_as_server
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_file


class World:
    """A primary with an archive, a backup of it, 100 rows and the restore point ``here``, then 100 rows more."""

    def __init__(self, sandbox: Sandbox, major: int) -> None:
        self.sandbox = sandbox
        self.primary = sandbox.primary(major)
        self.primary.sql("CREATE TABLE numbers (i int)")
        self.backup = sandbox.directory("backup")
        self.primary.tool("pg_basebackup", "-D", self.backup / "data", "-c", "fast", "-X", "none", "--no-sync")
        self.primary.sql("INSERT INTO numbers SELECT generate_series(1, 100)")
        self.target_lsn = self.primary.value("SELECT pg_create_restore_point('here')")
        self.committed_before = self.primary.value("SELECT clock_timestamp()")
        self.primary.sql("INSERT INTO numbers SELECT generate_series(1, 100)")
        self.primary.switch_wal()
        archive = self.primary.archive
        assert archive is not None
        segment = self.primary.value("SELECT pg_walfile_name(%s::pg_lsn)", [self.target_lsn])
        wait_until((archive / segment).exists, "the segment is archived")

    def copy(self, name: str, **settings: t.Any) -> Server:
        """Return a restored server that is not started; ``settings`` take precedence."""
        server = restore(self.sandbox, self.backup, self.primary.archive, self.primary.major, name=name, start=False)
        return server.conf(**settings)


def state(server: Server, wanted: str, *, check: bool = False, **more: t.Any) -> Result:
    """Call server_state for ``server``."""
    programs = str(binaries.prefix(server.major) / "bin")
    arguments = {"data_directory": str(server.data), "state": wanted, "log_file": str(server.log_file)}
    return run_module_as_server("server_state", {**arguments, "bin_directory": programs, **more}, check=check)


def recovery(server: Server, wait_for: str = "target", **more: t.Any) -> Result:
    """Call recovery_info for ``server``."""
    arguments = {"data_directory": str(server.data), "log_file": str(server.log_file), "interval": 0.05, "timeout": 60}
    return run_module_as_server("recovery_info", {**server.login(), **arguments, "wait_for": wait_for, **more})


@pytest.mark.majors(14, 15, 18)
def test_each_end_of_recovery(sandbox: Sandbox, major: int) -> None:
    """Promote, pause and shutdown at the same target report the same point; a second start changes nothing."""
    world = World(sandbox, major)
    found = {}
    for action in ("promote", "pause", "shutdown"):
        server = world.copy(action, recovery_target_name="here", recovery_target_action=action)
        assert state(server, "started", check=True)["changed"] is True
        assert server.pid is None
        assert state(server, "started")["changed"] is True
        found[action] = recovery(server)
        assert not found[action].get("failed"), found[action]
        if action != "shutdown":
            assert state(server, "started")["changed"] is state(server, "started", check=True)["changed"] is False
            assert server.value("SELECT count(*) FROM numbers") == 100
            assert recovery(server, "consistent")["reached"] == recovery(server, "none")["reached"]
            assert state(server, "stopped", check=True)["changed"] is True
            assert state(server, "stopped")["changed"] is True
            assert recovery(server, "none")["code" if action == "promote" else "reached"] in ("server_gone", "shutdown")
        assert state(server, "stopped")["changed"] is False
        assert server.pid is None

    assert {action: one["reached"] for action, one in found.items()} == {
        "promote": "promoted",
        "pause": "paused",
        "shutdown": "shutdown",
    }
    assert {one["replay_lsn"] for one in found.values()} == {world.target_lsn}
    assert [one["timeline"] for one in found.values()] == [2, 1, 1]
    assert [one["in_recovery"] for one in found.values()] == [False, True, True]
    assert [one["running"] for one in found.values()] == [True, True, False]
    assert {one["system_identifier"] for one in found.values()} == {world.primary.system_identifier}
    assert {one["data_checksums"] for one in found.values()} == {major >= 18}
    for action in ("promote", "pause"):
        text = found[action]["last_transaction_at"]
        last = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z")
        assert abs((world.committed_before - last).total_seconds()) < 10, text


@pytest.mark.majors(15, 18)
def test_recovery_that_does_not_get_there(sandbox: Sandbox, major: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target never reached, an endless standby, a manual pause, a server that does not start."""
    monkeypatch.setattr(_recovery, "GRACE", 0.5)
    world = World(sandbox, major)
    lost = world.copy("lost", recovery_target_name="nowhere")
    state(lost, "started")
    died = recovery(lost)
    assert died["code"] == "server_gone"
    assert "recovery ended before configured recovery target was reached" in died["msg"]
    assert str(lost.log_file) in died["msg"]

    standby = world.copy("standby", wal_retrieve_retry_interval="100ms")
    (standby.data / "recovery.signal").rename(standby.data / "standby.signal")
    assert state(standby, "started")["changed"] is True
    assert recovery(standby, "consistent")["reached"] == "consistent"
    late = recovery(standby, timeout=0.3)
    assert late["code"] == "recovery_timeout"
    assert late["replay_lsn"] in late["msg"]
    standby.sql("SELECT pg_wal_replay_pause()")
    wait_until(lambda: standby.value("SELECT pg_get_wal_replay_pause_state()") == "paused", "replay is paused")
    assert recovery(standby)["code"] == "recovery_paused"
    # A failed login is reported soon, not after the whole timeout.
    refused = recovery(standby, login_user="nobody_of_this_name")
    assert (refused["code"], "nobody_of_this_name" in refused["msg"]) == ("connection_failed", True)

    broken = world.copy("broken", shared_buffers="a lot")
    failed = state(broken, "started")
    assert failed["code"] == "start_failed"
    assert "shared_buffers" in failed["msg"]
    assert recovery(broken, "none")["code"] == "server_gone"
    (broken.data / "global" / "pg_control").unlink()
    assert state(broken, "started")["code"] == "not_startable"
    assert state(broken, "started", bin_directory="/usr/bin")["code"] == "programs_missing"
    assert state(broken, "started", data_directory="/usr/bin")["code"] == "no_data_directory"
    assert state(broken, "stopped", data_directory="/no/where")["changed"] is False


def test_the_process_of_another_server_is_left_alone(sandbox: Sandbox, major: int) -> None:
    """After a reboot the process id in a stale postmaster.pid may be that of the live server."""
    primary = sandbox.primary(major, archive=False)
    stale = sandbox.directory("stale")
    for name in ("postmaster.pid", "PG_VERSION"):
        own_file(stale / name, (primary.data / name).read_text())
    pid = primary.pid
    for check in (True, False):
        result = run_module_as_server(
            "server_state", {"data_directory": str(stale), "state": "stopped", "mode": "immediate"}, check=check
        )
        assert result["changed"] is False
    assert primary.pid == pid
    assert primary.value("SELECT 1") == 1
    # With a live server a wrong port is soon reported; its answer must not pass for the restored server's.
    other = run_module_as_server("recovery_info", {**primary.login(), "data_directory": str(stale)})
    assert (other.get("failed"), other.get("code")) == (True, "other_server"), other
    for place in (primary.data, pathlib.Path(primary.data, "..", "data")):
        asked = run_module_as_server("recovery_info", {**primary.login(), "data_directory": str(place)})
        assert asked["reached"] == "promoted", asked
    # Through a link to the data directory it is the same server.
    link = pathlib.Path(sandbox.root, "link")
    link.symlink_to(primary.data)
    result = run_module_as_server("server_state", {"data_directory": str(link), "state": "stopped"})
    assert result["changed"] is True
    assert primary.pid is None
    shutil.rmtree(stale)


@pytest.mark.majors(14, 18)
def test_restart(sandbox: Sandbox, major: int) -> None:
    """Command line and log stay; a failed start or stop is reported; a stopped server stays stopped."""
    server = sandbox.primary(major)
    command = pathlib.Path(f"/proc/{server.pid}/cmdline").read_bytes()
    before, lines = server.pid, len(server.log.splitlines())
    assert state(server, "restarted", check=True)["changed"] is True
    assert server.pid == before
    unused = str(sandbox.root / "unused.log")
    done = state(server, "restarted", log_file=unused, bin_directory=None)
    assert not done.get("failed"), done
    assert (done["changed"], done["running"], done["was_running"]) == (True, True, True), done
    assert done["bin_directory"] == str(binaries.prefix(major) / "bin")
    assert done["log_file"] == str(server.log_file)
    assert server.pid != before
    # The data directory in a configuration file would beat that of -D.
    named = pathlib.Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert named.startswith(command)
    assert f"\0-c\0data_directory={server.data}\0".encode() in named
    assert state(server, "restarted")["changed"] is True
    assert pathlib.Path(f"/proc/{server.pid}/cmdline").read_bytes() == named
    assert len(server.log.splitlines()) > lines
    assert not pathlib.Path(unused).exists()

    with server.connect():
        pid = server.pid
        held = state(server, "restarted", mode="smart", timeout=1)
        assert (held["code"], server.pid) == ("stop_timeout", pid)
    wait_until(lambda: server.pid is None, "the smart shutdown that was asked for ends")
    for check in (True, False):
        assert state(server, "restarted", check=check)["code"] == "server_not_running"
    assert server.pid is None
    assert state(server, "started")["changed"] is True

    server.conf(shared_buffers="a lot")
    broken = state(server, "restarted")
    assert broken["code"] == "start_failed"
    assert "shared_buffers" in broken["msg"]
    assert server.pid is None
