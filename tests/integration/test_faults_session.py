# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The session is lost, or must survive: backends, networks, timeouts, and the session process itself."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import sys
import time
import types
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import stop as _stop
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session import keeper as _keeper
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session import session as _session
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session.session import Session

from tests.harness.binaries import server_python
from tests.harness.modules import Modules, run_module_as
from tests.harness.sandbox import Sandbox, free_port
from tests.harness.servers import Server, is_alive, wait_until
from tests.harness.user import me, popen
from tests.integration.helpers.leftovers import all_is_well, command_line, left_behind, processes, sessions
from tests.integration.helpers.load import spread_the_next_checkpoint
from tests.integration.helpers.steps import Background, Steps, restores

BOTH: t.Final = pytest.mark.majors(15, 18)

FORWARDER: t.Final = """
import select, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
peers = {}
while True:
    for one in select.select([listener, *peers], [], [])[0]:
        if one is listener:
            near, far = listener.accept()[0], socket.create_connection(("127.0.0.1", int(sys.argv[2])))
            peers.update({near: far, far: near})
        elif one in peers:
            data = one.recv(65536)
            if data:
                peers[one].sendall(data)
            else:
                peers[one].close()
                del peers[peers.pop(one)]
                one.close()
"""


@pytest.fixture
def steps(sandbox: Sandbox, modules: Modules, primary: Server, repository: pathlib.Path) -> t.Iterator[Steps]:
    """The steps of a backup of the primary; nothing of it may remain at the end."""
    yield Steps(modules, primary)
    all_is_well(sandbox, repository, primary)


def session_of(steps: Steps) -> Session:
    """Return the session, for queries that do not renew its lease."""
    return Session(str(steps.work / "session"))


@BOTH
def test_backend_is_terminated(steps: Steps, primary: Server) -> None:
    """The copy stops at once and names the cause, the backup is void, and the next one is good."""
    steps.start()
    with steps.copying() as copy:
        primary.sql("SELECT pg_terminate_backend(%s)", [steps.state["backend_pid"]])
        result = steps.stops_soon(copy)
    assert result["code"] == "connection_lost"
    assert "terminating connection due to administrator command" in result["msg"]
    assert "void" in result["msg"]
    steps.void()
    steps.whole()


@BOTH
def test_network_is_cut(steps: Steps, modules: Modules, primary: Server) -> None:
    """Something on the network path closes the connection."""
    port = free_port()
    forwarder = popen([sys.executable, "-c", FORWARDER, str(port), str(primary.port)], user=me())
    try:
        modules.common.update(primary.login(tcp=True), login_port=port)
        modules.common.pop("login_unix_socket", None)
        wait_until(lambda: not modules.run("server_info").get("failed"), "the forwarder forwards")
        steps.start()
        with steps.copying() as copy:
            forwarder.kill()
            result = steps.stops_soon(copy)
    finally:
        forwarder.kill()
        forwarder.wait()
    assert result["code"] == "connection_lost"
    steps.void()


@BOTH
def test_session_timeouts_do_not_end_it(steps: Steps, primary: Server, major: int) -> None:
    """Timeouts of role and database end other idle sessions, but neither ours nor a start that takes longer."""
    spread_the_next_checkpoint(primary)
    names = ["idle_in_transaction_session_timeout", "idle_session_timeout", "lock_timeout", "statement_timeout"]
    if major >= 17:
        names.append("transaction_timeout")
    for name in names:
        primary.sql(f"ALTER ROLE postgres SET {name} = '500ms'")
        primary.sql(f"ALTER DATABASE postgres SET {name} = '500ms'")
    steps.start(fast=False)
    assert steps.state["started_at"] - steps.state["created_at"] > 1, "the start must outlast the timeouts"
    with contextlib.closing(primary.connect()):
        wait_until(lambda: "terminating connection due to idle-session timeout" in primary.log, "a witness was ended")
    primary.sql("ALTER ROLE postgres RESET ALL")
    primary.sql("ALTER DATABASE postgres RESET ALL")
    assert session_of(steps).ask("status")["state"] == "running"
    steps.finish()


@BOTH
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_session_process_is_killed(steps: Steps, number: signal.Signals) -> None:
    """The copy stops at once, whether or not the process can still record why."""
    steps.start()
    with steps.copying() as copy:
        os.kill(steps.keeper, number)
        result = steps.stops_soon(copy)
    if number == signal.SIGKILL:
        assert result["code"] == "session_killed"
    else:
        assert result["code"] == "signal"
        assert "signal 15" in result["msg"]
    steps.void()


@pytest.mark.parametrize("option", ["session_timeout", "session_idle_timeout"])
def test_time_is_up(steps: Steps, primary: Server, option: str) -> None:
    """A session whose lease is not renewed, or that is too old, ends by itself and records why."""
    steps.start(**{option: 1})
    keeper = steps.keeper
    wait_until(lambda: not is_alive(keeper), "the session process has ended", timeout=5)
    assert not sessions(primary)
    result = steps.fails("backup_copy")
    assert result["code"] == option
    assert " 1 s." in result["msg"]
    assert f"Raise {option} above" in result["hint"]
    steps.void()


def test_time_is_up_during_the_copy(steps: Steps) -> None:
    """The absolute limit also ends a backup that is being copied."""
    steps.start(session_timeout=2)
    with steps.copying() as copy:
        result = copy.result()
    assert result["code"] == "session_timeout"
    steps.void()


def test_running_copy_renews_the_lease(steps: Steps) -> None:
    """A copy that takes longer than the idle timeout keeps the session, though no module asks for it."""
    steps.start(session_idle_timeout=1)
    with steps.copying(256 << 20) as copy:
        with steps.stopped_processes():
            copy.kill()
            begun = time.monotonic()
            wait_until(lambda: time.monotonic() - begun > 2, "two idle time-outs have passed")
            assert session_of(steps).ask("status", renew=False)["state"] == "running"
    steps.finish()


def test_folder_is_removed(steps: Steps, primary: Server) -> None:
    """The unfinished backup is removed: its session soon ends by itself, and the next backup can start."""
    steps.start()
    keeper = steps.keeper
    shutil.rmtree(steps.work)
    wait_until(lambda: not is_alive(keeper), "the session process has ended", timeout=10)
    assert steps.fails("backup_copy")["code"] == "unknown_backup"
    assert not steps.ok("backup_abort")["changed"]


@BOTH
def test_module_is_killed_between_stop_and_label(sandbox: Sandbox, steps: Steps, primary: Server) -> None:
    """The server returns label and map only once; the session process keeps them, and a second stop continues."""
    steps.start()
    steps.ok("backup_copy")
    with stop_in_the_middle(steps, primary) as stop:
        stop.kill()
        assert not (steps.work / "data" / "backup_label").exists()
    wait_until(lambda: steps.state["state"] == "stopped", "the session process has finished")
    assert steps.ok("backup_stop")["changed"]
    assert (steps.work / "data" / "backup_label").read_bytes() == bytes.fromhex(steps.state["label_file"])
    steps.finish()
    restores(sandbox, steps, primary)


@contextlib.contextmanager
def stop_in_the_middle(steps: Steps, primary: Server) -> t.Iterator[Background]:
    """Yield a stop whose session process has the label but has not passed it on: its next query waits for a lock."""
    with contextlib.closing(primary.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE pg_tablespace IN ACCESS EXCLUSIVE MODE")
        stop = Background(lambda: steps.run("backup_stop"))
        wait_until(lambda: steps.state.get("label_file"), "the server has answered stop")
        assert steps.state["state"] == "stopping"
        yield stop


@BOTH
def test_label_cannot_be_written(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the label fails: the second call continues from the session's record."""

    def fail(path: str, content: bytes) -> None:
        raise OSError(28, "No space left on device", path)

    steps.start()
    steps.ok("backup_copy")
    with monkeypatch.context() as patch:
        patch.setattr(_stop, "write_bytes", fail)
        result = steps.fails("backup_stop")
        assert "backup_label: No space left on device" in result["msg"]
    assert not steps.published.exists()
    steps.finish()


@BOTH
def test_session_process_is_killed_during_stop(steps: Steps, primary: Server) -> None:
    """The process dies with what the server returned: the backup is void and reported as void."""
    steps.start()
    steps.ok("backup_copy")
    with stop_in_the_middle(steps, primary) as stop:
        os.kill(steps.keeper, signal.SIGKILL)
        result = stop.result()
    assert result["code"] == "session_killed"
    assert "void" in result["msg"]
    assert not (steps.work / "data" / "backup_label").exists()
    steps.void()


@BOTH
def test_session_process_dies_before_it_can_write_the_label_down(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill after the server has ended the backup and before anything is on disk."""
    source = pathlib.Path(_keeper.__file__).read_text()
    there = "        lsn, label, space_map = self._rows(query)[0]\n"
    assert there in source
    deadly = source.replace(there, f"{there}        os.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(_session, "inspect", types.SimpleNamespace(getsource=lambda module: deadly))
    steps.start()
    steps.ok("backup_copy")
    result = steps.fails("backup_stop")
    assert result["code"] == "session_killed"
    steps.void()


@BOTH
def test_status_while_start_waits_for_the_checkpoint(steps: Steps, primary: Server) -> None:
    """With fast=false start waits for a checkpoint; during it the session answers, and the catalogue shows it."""
    spread_the_next_checkpoint(primary)
    start = Background(lambda: steps.run("backup_start", fast=False))
    wait_until(lambda: steps.state.get("state") == "starting", "the session starts")
    asked = time.monotonic()
    assert session_of(steps).ask("status")["state"] == "starting"
    ((entry,),) = [one["unfinished"] for one in steps.modules.ok("backup_info")["clusters"]]
    assert (entry["state"], entry["working"], entry["session_alive"]) == ("starting", True, True)
    assert time.monotonic() - asked < 1
    assert start.running
    result = start.result()
    assert not result.get("failed"), result
    assert steps.state["started_at"] - steps.state["created_at"] > 1
    steps.finish()


def test_long_path(sandbox: Sandbox, steps: Steps, primary: Server) -> None:
    """The repository's path is longer than a socket's may be."""
    repository = sandbox.directory("r" * 100)
    assert len(str(repository)) > 108
    steps = Steps(Modules(primary, repository=str(repository), cluster="c" * 60), primary, "i" * 60)
    steps.start()
    assert session_of(steps).ask("status")["state"] == "running"
    steps.finish()
    assert steps.published.is_dir()
    all_is_well(sandbox, repository, primary)


@pytest.mark.parametrize("way", ["option", "environment"])
def test_password_is_nowhere(steps: Steps, primary: Server, repository: pathlib.Path, way: str) -> None:
    """No command line, environment, file or result holds it, neither during the copy nor afterwards."""
    password = primary.password
    login = {**primary.login(tcp=True), "ssl_mode": "disable"}
    del steps.modules.common["login_unix_socket"]
    steps.modules.common.update(login)
    results: list[t.Any] = []
    if way == "option":
        results.append(steps.start())
    else:
        del steps.modules.common["login_password"]
        arguments = steps.modules.arguments("backup_start", backup_id=steps.id, fast=True)
        environment = {"PGPASSWORD": password}
        results.append(run_module_as("backup_start", arguments, python=server_python(), env=environment))
        steps.modules.common["login_password"] = password
        assert results[0]["changed"], results
    with steps.copying(64 << 20) as copy:
        ours = left_behind(repository)
        assert steps.keeper in ours
        assert steps.progress["pid"] in ours
        for pid in processes():
            assert password not in command_line(pid)
        for pid in ours:
            assert password.encode() not in environment_of(pid)
        results.append(copy.result())
    results.append(steps.finish())
    results.append(steps.modules.ok("server_info"))
    results.append(steps.fails("backup_start"))
    assert password not in repr(results)
    for path in repository.rglob("*"):
        if path.is_file() and path.stat().st_size < 1 << 20:
            assert password.encode() not in path.read_bytes(), path


def environment_of(pid: int) -> bytes:
    """Return the environment with which a process was started."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    return b""
