# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The private role that stops, starts and restarts a server for other roles: which way it uses."""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest

from tests.harness import binaries
from tests.harness.playbook import Play, host_vars, run_playbook
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_file


@pytest.fixture
def server(sandbox: Sandbox, major: int) -> Server:
    """A running server."""
    return sandbox.primary(major, archive=False)


def place(sandbox: Sandbox) -> pathlib.Path:
    """Return the directory of the playbook."""
    return sandbox.directory("play") if not (sandbox.root / "play").exists() else sandbox.root / "play"


def call(sandbox: Sandbox, server: Server, tasks_from: str, **variables: t.Any) -> Play:
    """Include the role in a play."""
    settings = {"data_directory": str(server.data), "log_file": str(server.log_file), **variables}
    play = {
        "hosts": "all",
        "gather_facts": False,
        "become": True,
        "become_user": "{{ pg_backup_become_user }}",
        "environment": binaries.environment(server.major),
        "tasks": [
            {
                "ansible.builtin.include_role": {"name": "pgfleet.basebackup._server", "tasks_from": tasks_from},
                "vars": {f"_server_{name}": value for name, value in settings.items()},
            }
        ],
    }
    playbook = own_file(place(sandbox) / "playbook.yml", json.dumps([play]), mode=0o644)
    return run_playbook(playbook, {"main": host_vars(server)}, directory=sandbox.root)


def ran(play: Play) -> list[str]:
    """Return the tasks that were not skipped, without the check of the arguments and the includes."""
    internal = [f"ansible.builtin.{name}" for name in ("include_role", "include_tasks", "validate_argument_spec")]
    events = [event for event in play.of("main") if event["outcome"] != "skipped"]
    return [event["task"].rpartition(" | ")[2] for event in events if event["action"] not in internal]


def test_without_a_service(sandbox: Sandbox, server: Server) -> None:
    programs = str(binaries.prefix(server.major) / "bin")
    first = server.pid
    found = "Find out who runs the server"
    assert ran(call(sandbox, server, "restart").ok()) == [found, "Restart the server"]
    wait_until(lambda: server.pid not in (None, first), "another process")
    assert ran(call(sandbox, server, "stop").ok()) == [found, "Remember who ran it", "Stop the server"]
    assert server.pid is None
    assert ran(call(sandbox, server, "start", bin_directory=programs).ok()) == [found, "Start the server"]
    assert server.value("SELECT 1") == 1


def test_own_tasks_come_first(sandbox: Sandbox, server: Server) -> None:
    """The user's file may have the name of the role's own file, which must not include itself."""
    pid = server.pid
    for tasks_from in ("start", "stop", "restart"):
        own_file(place(sandbox) / f"{tasks_from}.yml", "- name: mine\n  ansible.builtin.debug:\n", mode=0o644)
        own = call(sandbox, server, tasks_from, hook=f"{tasks_from}.yml", service="no-such-service")
        assert ran(own.ok()) == ["pgfleet.basebackup._server : mine"]
    # A unit that is not the server's is refused before anything is done.
    for tasks_from in ("stop", "restart"):
        failed = call(sandbox, server, tasks_from, service="no-such-service")
        assert [event["action"] for event in failed.of("main", "failed")] == ["pgfleet.basebackup.process_info"]
    assert server.pid == pid
