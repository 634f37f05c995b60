# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that others run is left to them: supervisors, Patroni, containers."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shlex
import signal
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import owner as _owner
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import process as _process

from tests.harness import binaries
from tests.harness.modules import run_module_as, run_module_as_server
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import me, own_file, popen, server_user

LOOP: t.Final = 'while :; do "$0" -D "$1"; done'
# A supervisor in Python, as Patroni is one: it starts the program again whenever it ends.
AGAIN: t.Final = """\
import subprocess, sys
while True:
    subprocess.run(sys.argv[2:])
"""
IDLE: t.Final = "import time\ntime.sleep(300)\n"


@pytest.fixture
def server(sandbox: Sandbox, major: int) -> Server:
    """A server that is stopped."""
    made = sandbox.primary(major, archive=False)
    made.stop()
    return made


def postgres(server: Server) -> str:
    """Return the program."""
    return str(binaries.prefix(server.major) / "bin" / "postgres")


def is_ready(server: Server) -> bool:
    """Return whether it accepts connections."""
    with contextlib.suppress(FileNotFoundError):
        return "ready" in (server.data / "postmaster.pid").read_text()
    return False


@contextlib.contextmanager
def supervised(server: Server, *command: str | pathlib.Path) -> t.Iterator[int]:
    """Let a command run the server; yields the command's process."""
    process = popen([*command], env=server.env, start_new_session=True)
    try:
        wait_until(lambda: is_ready(server), "the server accepts connections")
        yield process.pid
    finally:
        process.kill()
        process.wait()
        server.kill()


@contextlib.contextmanager
def idle(*command: str | pathlib.Path) -> t.Iterator[None]:
    """Run a command meanwhile."""
    process = popen([*command])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def refused(server: Server, pid: int | None) -> list[dict[str, t.Any]]:
    """Require that no state is brought about, also in check mode, and return the refusals."""
    found = []
    for state in ("stopped", "restarted"):
        for check in (True, False):
            said = run_module_as_server(
                "server_state", {"data_directory": str(server.data), "state": state}, check=check
            )
            assert said.get("code") == "managed_server", said
            found.append(said)
        said = run_module_as_server("process_info", {"data_directory": str(server.data), "state": state})
        assert said.get("code") == "managed_server", said
    assert server.pid == pid
    assert server.value("SELECT 1") == 1
    return found


def owner(server: Server) -> _owner.Owner:
    """Return who runs it."""
    found = _process.server_process(str(server.data))
    assert found is not None
    return found.owner


def test_a_shell_that_starts_it_again(server: Server) -> None:
    with supervised(server, "sh", "-c", LOOP, postgres(server), server.data) as pid:
        assert owner(server) == _owner.Owner("supervisor", "", "sh", pid)
        assert f"sh (process {pid})" in refused(server, server.pid)[0]["msg"]


@pytest.mark.parametrize(("name", "words"), [("runsv", "sv down"), ("supervisord", "supervisorctl")])
def test_a_supervisor_by_its_name(sandbox: Sandbox, server: Server, name: str, words: str) -> None:
    """Its own commands are named, and the hook that takes over."""
    script = own_file(sandbox.directory("bin") / name, AGAIN, mode=0o755)
    command = [binaries.server_python(), script, "service", postgres(server), "-D", server.data]
    with supervised(server, *command) as pid:
        assert owner(server) == _owner.Owner("supervisor", "", name, pid)
        hints = [said["hint"] for said in refused(server, server.pid)]
        assert all(words in hint and "hook_" in hint for hint in hints)


def test_patroni_as_the_parent(sandbox: Sandbox, server: Server) -> None:
    script = own_file(sandbox.directory("bin") / "patroni", AGAIN, mode=0o755)
    with supervised(server, binaries.server_python(), script, "x.yml", postgres(server), "-D", server.data) as pid:
        assert owner(server) == _owner.Owner("patroni", "", "patroni", pid)
        assert all("patronictl pause" in said["hint"] for said in refused(server, server.pid))


def test_patroni_that_is_no_parent(sandbox: Sandbox, server: Server) -> None:
    """Patroni adopts a server that it finds; its configuration names the directory. A neighbour's does not count."""
    folder = sandbox.directory("bin")
    script = own_file(folder / "patroni", IDLE, mode=0o755)
    other = own_file(folder / "other.yml", f"postgresql:\n  data_dir: {server.data}2\n")
    mine = own_file(folder / "mine.yml", f"postgresql:\n  data_dir: {server.data}\n")
    server.start()
    with idle(binaries.server_python(), script, other):
        assert _owner.manager_of(str(server.data)) is None
    with idle(binaries.server_python(), script, mine):
        wait_until(lambda: _owner.manager_of(str(server.data)), "Patroni runs")
        refused(server, server.pid)
        server.stop()
        programs = str(binaries.prefix(server.major) / "bin")
        arguments = {"data_directory": str(server.data), "state": "started", "bin_directory": programs}
        assert run_module_as_server("server_state", arguments)["code"] == "managed_server"
        assert server.pid is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a namespace of process ids")
def test_a_container(sandbox: Sandbox, server: Server) -> None:
    """Seen from outside, and from within, where the server is process 1."""
    user = server_user()
    become = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command = [*unshare, *become, postgres(server), "-D", str(server.data)]
    process = popen(command, user=me(), env=server.env)
    try:
        wait_until((server.data / "postmaster.pid").exists, "the server runs")
        found = wait_until(lambda: _process.server_process(str(server.data)), "it is seen")
        assert found.owner == _owner.Owner("container", "", "", None)
        arguments = {"data_directory": str(server.data), "state": "stopped"}
        said = run_module_as_server("server_state", arguments)
        assert (said["code"], "docker restart" in said["hint"]) == ("managed_server", True), said
        words = ["nsenter", f"--target={found.pid}", "--pid", "--mount", "--", *become, binaries.server_python()]
        enter = own_file(sandbox.root / "enter", f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', mode=0o755, user=me())
        inside = run_module_as("process_info", arguments, python=str(enter), user=me())
        assert inside["code"] == "managed_server", inside
        assert inside["kind"] == "container"
        assert pathlib.Path(f"/proc/{found.pid}").exists()
    finally:
        process.kill()
        process.wait()
        # Its number is that of process 1 out here.
        (server.data / "postmaster.pid").unlink(missing_ok=True)


def test_the_shell_from_which_the_module_runs(server: Server) -> None:
    """A person who started it in the foreground of this shell is nobody else."""
    process = popen([postgres(server), "-D", server.data], env=server.env)
    try:
        wait_until(lambda: is_ready(server), "the server accepts connections")
        assert owner(server).kind == "none"
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait()
